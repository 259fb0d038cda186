#!/bin/bash
#
# test/bench/trouble.sh PART: what trouble costs those who are not in it.
#
#   leaderless   a broker is dead, and with it the only replica of some
#                partitions: the rate of all others
#   refused      100 messages among good ones of one partition that the broker
#                refuses: the rate of the good keys, once they are isolated
#   xmin         a transaction holds a snapshot: the rate, the time that a write
#                of progress takes, dead rows
#
# Each prints the rates with and without the trouble, measured side by side in
# one run: a second database of the same server does the same work with the
# same brokers and has no trouble, so what else happens to the machine concerns
# both. The ratio is that of the two ratios. Nothing is asserted but that
# nothing is lost.
#
# Environment:
#   MINUTES      of the whole measurement, half of it without the trouble (10); of
#                xmin: how long the snapshot is held
#   PACE_MS      pause of the writers between transactions (5)
#   PER_TRANSACTION   messages of each topic in a transaction (10)
#   PG_CONFIG, TMPDIR, and the others of test/run.sh, which prepares everything

set -euo pipefail

top=$(cd "$(dirname "$0")/../.." && pwd)
part=${1:-}
if [ $# -ne 1 ] || [ ! -e "$top/test/bench/trouble/$part.pl" ]; then
	echo "usage: $0 $(cd "$top/test/bench/trouble" && echo *.pl | sed 's/\.pl//g; s/ /|/g')" >&2
	exit 2
fi
minutes=${MINUTES:-10}
export MINUTES=$minutes
export OUTBOX_TEST_PARTS=tap PROVE_TESTS=test/bench/trouble/$part.pl
export OUTBOX_TEST_TIME_LIMIT=${OUTBOX_TEST_TIME_LIMIT:-$(awk "BEGIN { print int($minutes * 60 + 1800) }")}
exec "$top/test/run.sh"
