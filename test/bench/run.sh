#!/bin/bash
#
# test/bench/run.sh: the benchmark, with one command (make bench).
#
# Measures on one machine, in one run, against one real Kafka broker, the relay
# beside what it has to be compared with; see bench.pl for what exactly. The
# figures go to standard output as tables, progress to standard error. Nothing
# is asserted but that both sides sent the same records.
#
# Like the tests it works in a temporary directory, as a user without
# privileges, on a private copy of PostgreSQL into which the extension is built
# from this checkout. All of it is ended and removed at the end.
#
# Environment:
#   BENCH     parts to run: drain,latency,publish (default: all)
#   ROWS      messages in a drain (1000000)
#   RUNS      counted runs, or pairs of runs, of each comparison (5)
#   SECONDS   length of each measurement of latency (20)
#   BENCH_HEADERS   what the application gives as headers: a JSON object, or "none"
#   BENCH_ROWS_PER_TRANSACTION   in the backlog of a drain (1)
#   BENCH_CHECKPOINT   yes: a checkpoint between publishing and draining (no)
#   BENCH_PRODUCER_CONFIG   outbox_kafka.producer_config, for both sides ("")
#   BENCH_SETTINGS  more lines for postgresql.conf
#   PG_CONFIG, TMPDIR, OUTBOX_BENCH_USER (who runs it if root calls)

# SECONDS is bash's own clock, too, but it starts with the caller's value.
seconds=$SECONDS

set -euo pipefail

top=$(cd "$(dirname "$0")/../.." && pwd)
if [ "$seconds" -le 0 ]; then
	seconds=20
fi

die()
{
	echo "bench: $*" >&2
	exit 1
}

user=
if [ "$(id -u)" -eq 0 ]; then
	user=${OUTBOX_BENCH_USER:-postgres}
	id "$user" > /dev/null 2>&1 || die "there is no user $user; name one by OUTBOX_BENCH_USER"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/outbox_kafka-bench.XXXXXX")
child=

# bench.pl ends the servers it started, however it ends itself.
cleanup()
{
	trap '' INT TERM HUP
	if [ -n "$child" ] && kill -TERM "$child" 2> /dev/null; then
		wait "$child" || true
	fi
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# Without privileges, in the work directory.
as_user=(env -C "$work" HOME="$work" LC_ALL=C.UTF-8)
if [ -n "$user" ]; then
	as_user=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups "${as_user[@]}")
fi

echo "preparing in $work" >&2
make --no-print-directory -C "$top/test/kafka" >&2
pg_config=$("$top/test/private-postgres.sh" "${PG_CONFIG:-pg_config}" "$work/pg")
mkdir "$work/src"
tar -C "$top" --exclude=./.git --exclude='./tmp_check*' --exclude='*.o' --exclude='*.bc' --exclude='*.so' -cf - . |
	tar -C "$work/src" -xf -
if [ -n "$user" ]; then
	chown -R "$user" "$work"
fi
"${as_user[@]}" make --no-print-directory -C "$work/src" PG_CONFIG="$pg_config" with_llvm=no all install \
	> "$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; die "the extension could not be built"; }
"${as_user[@]}" make --no-print-directory -C "$work/src/test/bench" PG_CONFIG="$pg_config" \
	> "$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; die "the programs could not be built"; }

"${as_user[@]}" BENCH_SECONDS="$seconds" perl -I "$work/src/test/lib" -I "$work/src/test/bench" \
	"$work/src/test/bench/bench.pl" "$work" "$pg_config" < /dev/null &
child=$!
wait "$child" && code=0 || code=$?
child=
[ "$code" -eq 0 ] || echo "bench: failed, exit code $code" >&2
exit "$code"
