#!/bin/bash
#
# test/bench/run.sh: the benchmark, with one command (make bench).
#
#   test/bench/run.sh
#   BENCH=drain CONTENDERS="relay bare" test/bench/run.sh
#   QUICK=yes BENCH=drain,idle test/bench/run.sh     # does all run? says nothing
#
# Measures on one machine, in one run, against one real Kafka broker, the
# extension beside what it has to be compared with; each module in Bench/ says
# how. Progress goes to standard error. The results are added to
# bench-results/results.tsv in the checkout, one line a figure; of those report.pl
# then makes tables (bench-results/report.md, and standard output) and plots
# (bench-results/*.svg). Nothing is asserted but that all contenders sent the
# same records.
#
# Like the tests it works in a temporary directory, as a user without
# privileges, on a private copy of PostgreSQL into which the extension is built
# from this checkout. All of it is ended and removed at the end.
#
# Environment:
#   BENCH        parts: drain, latency, steady, publish, commit (these by
#                default), inbox, rebuild, size, backlog, payload, topics, idle; or all
#   CONTENDERS   of relay, relay_eos (delivery = exactly_once), bare, polling,
#                polling_large (10,000 rows a batch), debezium, debezium_tuned
#                ("relay bare polling debezium debezium_tuned")
#   BENCH_HEADERS   what each record has: plain, the event id (the default), or
#                cloudevents, which is the extension's default and Debezium can not
#   ROWS, RUNS   messages in a drain (1000000), counted rounds (5)
#   RATES, SLICES   latency: transactions a second ("100 1000 5000"), counted
#                slices of 5 s of each (6)
#   STEADY_SECONDS  of publishing at full speed (20)
#   SIZE_SECONDS, SIZE_RATE, SIZE_RETENTION   3600, 500 a second, 5min
#   GROWTH_ROWS, GROWTH_RUNS   "100000 1000000 10000000", 2
#   BATCHES, INBOX_ROWS   inbox: messages a transaction ("1 10 100 1000 10000"),
#                messages at most (500000)
#   TOPICS, SIZES, PAYLOAD_MEGABYTES   "1 10 100 1000", "200 1000 10000 900000",
#                at most so much in a backlog (1000)
#   DATABASES, IDLE_SECONDS   "1 64", 300
#   QUICK        yes: small numbers for all of these that are not given
#   BENCH_ROWS_PER_TRANSACTION   in the backlog of a drain (1)
#   BENCH_CHECKPOINT   yes: a checkpoint between publishing and draining (no)
#   BENCH_PRODUCER_CONFIG   outbox_kafka.producer_config, for relay, bare and
#                polling ("")
#   BENCH_SETTINGS  more lines for postgresql.conf
#   RESULTS      directory for results (bench-results)
#   PG_CONFIG, TMPDIR, OUTBOX_BENCH_USER (who runs it if root calls)

set -euo pipefail

program=bench
top=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=../lib/prepare.sh
. "$top/test/lib/prepare.sh"

choose_user OUTBOX_BENCH_USER
results=${RESULTS:-$top/bench-results}
work=$(mktemp -d "${TMPDIR:-/tmp}/outbox_kafka-bench.XXXXXX")
child=

# bench.pl ends the servers it started, however it ends itself. What it found
# before it failed is kept.
cleanup()
{
	trap '' INT TERM HUP
	if [ -n "$child" ] && kill -TERM "$child" 2> /dev/null; then
		wait "$child" || true
	fi
	if [ -s "$work/results.tsv" ]; then
		mkdir -p "$results"
		cat "$work/results.tsv" >> "$results/results.tsv"
	fi
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

echo "preparing in $work" >&2
make --no-print-directory -C "$top/test/kafka" >&2
if [[ ${CONTENDERS:-debezium} == *debezium* ]]; then
	make --no-print-directory -C "$top/test/bench/connect" >&2
fi
copy_sources "$work"
quiet_make "$work/build.log" -C "$work/src" all install
quiet_make "$work/build.log" -C "$work/src/test/bench"

commit=$(git -C "$top" describe --always --dirty 2> /dev/null || echo unknown)
as_user=(env -C "$work" HOME="$work" LC_ALL=C.UTF-8 BENCH_COMMIT="$commit")
if [ -n "$user" ]; then
	as_user=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups "${as_user[@]}")
fi
"${as_user[@]}" perl -I "$work/src/test/lib" -I "$work/src/test/bench" \
	"$work/src/test/bench/bench.pl" "$work" "$pg_config" < /dev/null &
child=$!
wait "$child" && code=0 || code=$?
child=
if [ "$code" -ne 0 ]; then
	echo "bench: failed, exit code $code" >&2
	exit "$code"
fi
mkdir -p "$results"
cat "$work/results.tsv" >> "$results/results.tsv"
rm "$work/results.tsv"
"$top/test/bench/report.pl" "$results/results.tsv" "$results" | tee "$results/report.md"
