#!/bin/bash
#
# test/valgrind.sh: tests with the server under Valgrind's memcheck.
#
# The tests get a copy of PostgreSQL whose "postgres" is a script that starts
# the server under Valgrind, which follows every process the server starts: the
# launcher and the relays as well as the sessions. Everything takes some twenty
# times as long, so by default only PROVE_TESTS below are run.
#
# An error counts when the extension or librdkafka stand in its stack. Lost
# memory counts when it comes from malloc: what a memory context still holds at
# the end of a process is nobody's loss. With a PostgreSQL that was configured
# with CPPFLAGS=-DUSE_VALGRIND, Valgrind also knows the chunks of the memory
# contexts, and sees what is read after pfree() or was never written; with any
# other, only what malloc gives out.
#
# Environment: what test/run.sh takes. Exit code 0 only if the tests pass and
# no error counts; the errors are shown, and all reports kept.

set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/outbox_kafka-valgrind.XXXXXX")
chmod 755 "$work"
mkdir -m 1777 "$work/reports" "$work/run"

pg_config=$("$top/test/private-postgres.sh" "${PG_CONFIG:-pg_config}" "$work/pg")
bindir=$(dirname "$pg_config")
mv "$bindir/postgres" "$bindir/postgres.real"
cp "$top/test/valgrind.supp" "$work/"
# pg_ctl restarts the server by the name it goes by, which must be the script's:
# only a shell can give another, so Valgrind starts one.
cat > "$bindir/postgres" <<EOF
#!/bin/bash
real=\$(dirname "\$0")/postgres.real
case "\$1" in
	-V | --version | -C | --boot | --check | --single | --describe-config)
		exec -a "\$0" "\$real" "\$@" ;;
esac
exec valgrind --quiet --trace-children=yes --num-callers=40 --fullpath-after= \\
	--leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \\
	--suppressions=$work/valgrind.supp --log-file=$work/reports/%p \\
	/bin/bash -c 'exec -a "\$0" "\$@"' "\$0" "\$real" "\$@"
EOF
chmod 755 "$bindir/postgres"

# The errors in the reports that count. They are paragraphs of lines; a frame of
# the extension names a source below TMPDIR, or the library.
errors()
{
	local file

	for file in "$work"/reports/*; do
		awk -v process="$(basename "$file")" -v sources="$work/run/[^)]*[.]c:" '
			function flush() {
				if ((text ~ sources || text ~ /outbox_kafka\.so|librdkafka/) &&
					(text !~ / lost in loss record/ ||
					 text ~ /^[^\n]*\n *at [^\n]*vgpreload_memcheck/))
					printf "process %s:\n%s\n", process, text
				text = ""
			}
			{ sub(/^==[0-9]+== ?/, "") }
			/^ *$/ { flush(); next }
			{ text = text $0 "\n" }
			END { flush() }' "$file"
	done
}

code=0
TMPDIR=$work/run PG_CONFIG=$pg_config COPT='-O1 -g' \
	PGCTLTIMEOUT=${PGCTLTIMEOUT:-600} \
	PG_TEST_TIMEOUT_DEFAULT=${PG_TEST_TIMEOUT_DEFAULT:-1800} \
	OUTBOX_TEST_PARTS=${OUTBOX_TEST_PARTS:-tap} \
	PROVE_TESTS=${PROVE_TESTS:-test/t/010_orders.pl test/t/041_segments.pl} \
	"$top/test/run.sh" "$@" || code=$?

processes=$(find "$work/reports" -type f | wc -l)
if [ "$processes" -eq 0 ]; then
	echo "Valgrind has seen no process"
	exit 1
fi
errors > "$work/errors"
if [ -s "$work/errors" ]; then
	cat "$work/errors"
	echo "Valgrind's reports are in $work/reports"
	exit 1
fi
rm -rf "$work"
echo "no errors from Valgrind in $processes processes"
exit $code
