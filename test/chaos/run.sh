#!/bin/bash
#
# test/chaos/run.sh: faults at random under load, with one command.
#
#   test/chaos/run.sh --seed 7 --seconds 3600
#   test/chaos/run.sh --seed 7 --seconds 600 --only kill-relay,pause-broker
#
# Three Kafka brokers, a PostgreSQL server with a synchronous standby, writers
# that keep a ledger, and faults that a seed decides on. Prints what is done
# when, and at the end what was committed, received, lost, sent without a
# commit, out of order and repeated. The exit code is 0 if all holds.
#
#   --seed N         what is drawn: the faults and their moments, the load (1)
#   --seconds N      how long faults go on (60)
#   --every S        mean time between two faults (6)
#   --only KIND,...  these faults only, see test/chaos/Chaos/Plan.pm
#   --except KIND,...  all but these
#   --writers N      concurrent writers (16)
#   --pace S         mean pause of a writer between two transactions (0.1)
#   --max-in-flight N  outbox_kafka.max_in_flight (500)
#   --delivery exactly_once  readers of committed messages: nothing may come twice
#   --prove          show that the comparison notices tampering with the log
#   --set NAME=VALUE a further setting of the server; may be repeated
#
# Like the tests it works in a temporary directory, as a user without
# privileges, on a private copy of PostgreSQL into which the extension is built
# from this checkout. It signals nothing but processes that it started; all of
# them are ended at the end, also when it is killed itself. The directory is
# removed if all holds, else it is kept and named.
#
# Environment: PG_CONFIG, TMPDIR, OUTBOX_TEST_USER (who runs it if root calls),
# CHAOS_PATCH (a patch for the copy of the sources: to see that a fault in the
# code is found; doc/testing.md has an example), CHAOS_KEEP (yes: the directory
# is kept in any case).

set -euo pipefail

program=chaos
top=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=../lib/prepare.sh
. "$top/test/lib/prepare.sh"

choose_user OUTBOX_TEST_USER
work=$(mktemp -d "${TMPDIR:-/tmp}/outbox_kafka-chaos.XXXXXX")
child=
code=1

# Wait until nothing works in the directory: the guard of the rig, which waits
# for the rig's end, sees to that.
wait_until_left()
{
	local seconds

	for seconds in $(seq 30); do
		if ! find /proc/[0-9]*/cwd -maxdepth 0 -lname "$work/*" 2> /dev/null | grep -q .; then
			return
		fi
		sleep 1
	done
	echo "chaos: something still works in $work" >&2
	code=1
}

cleanup()
{
	trap '' INT TERM HUP
	if [ -n "$child" ] && kill -TERM "$child" 2> /dev/null; then
		wait "$child" || true
	fi
	wait_until_left
	if [ "$code" -eq 0 ] && [ "${CHAOS_KEEP:-no}" != yes ]; then
		rm -rf "$work"
	else
		echo "chaos: the files of this run are in $work" >&2
	fi
	exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

as_user=(env -C "$work/src" HOME="$work" LANG=C.UTF-8 LC_ALL=C.UTF-8)
if [ -n "$user" ]; then
	as_user=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups "${as_user[@]}")
fi

echo "preparing in $work" >&2
make --no-print-directory -C "$top/test/kafka" >&2
mkdir "$work/run"
copy_sources "$work"
if [ -n "${CHAOS_PATCH:-}" ]; then
	patch --directory="$work/src" --strip=1 < "$CHAOS_PATCH" >&2
fi
quiet_make "$work/build.log" -C "$work/src" all install

pgxs=$(dirname "$("$pg_config" --pgxs)")/../..
"${as_user[@]}" PATH="$("$pg_config" --bindir):$PATH" TESTDIR="$work/run" top_builddir="$work/run" \
	PG_REGRESS="$pgxs/src/test/regress/pg_regress" \
	perl -I "$pgxs/src/test/perl" "$work/src/test/chaos/chaos.pl" "$@" < /dev/null &
child=$!
wait "$child" && code=0 || code=$?
child=
