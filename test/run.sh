#!/bin/bash
#
# test/run.sh: every test, from a bare clone (make test).
#
# Needs git, make, and root or sudo for the packages. The work is done in a
# temporary directory, by a user without privileges: PostgreSQL does not run as
# root, so root hands over to the user that PostgreSQL's package made
# (OUTBOX_TEST_USER). The extension is built there, with warnings as errors, and
# installed into a private copy of PostgreSQL; nothing on the machine is changed
# but its packages, and no other server is touched.
#
# The last line is the total, "N passed, N failed"; the exit code is 0 only if
# something ran and nothing failed. After a failure the end of the logs is shown
# and the directory is kept.
#
# Environment: PG_CONFIG (which PostgreSQL), TMPDIR, OUTBOX_TEST_USER,
# PROVE_TESTS (only these TAP tests), OUTBOX_TEST_JOBS (how many of them side by
# side, 2), OUTBOX_TEST_PARTS (of "unit regress isolation tap"),
# OUTBOX_TEST_TIME_LIMIT (for each part, 75m).

set -uo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
work=
passed=0
failed=0
time_limit=${OUTBOX_TEST_TIME_LIMIT:-75m}

say()
{
	printf '\n=== %s\n' "$*"
}

# End what a test that was cut off has left: whatever works in our directory.
# PostgreSQL's servers first, who end their own processes.
stop_leftovers()
{
	local file process

	while read -r file; do
		kill -QUIT "$(head -n 1 "$file")" 2> /dev/null
	done < <(find "$work/src" -name postmaster.pid 2> /dev/null)
	for process in /proc/[0-9]*; do
		case $(readlink "$process/cwd" 2> /dev/null) in
			"$work"/*) kill -KILL "${process#/proc/}" 2> /dev/null ;;
		esac
	done
}

finish()
{
	if [ -n "$work" ]; then
		stop_leftovers
		if [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]; then
			rm -rf "$work"
		else
			say "the files of this run are in $work"
		fi
	fi
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}

# What cannot be counted by tests is one failure, and the end.
give_up()
{
	say "FAILED: $*"
	failed=$((failed + 1))
	finish
}

# Run a command in the work directory as the user of the tests.
as_user()
{
	local command=(env HOME="$work/home" LANG=C.UTF-8 LC_ALL=C.UTF-8 PERL5LIB="$work/src/test/lib"
		OUTBOX_TEST_TOTALS="$work/totals" "$@")

	if [ "$(id -u)" -eq 0 ]; then
		command=(runuser -u "$user" -- "${command[@]}")
	fi
	(cd "$work/src" && "${command[@]}" < /dev/null)
}

make_as_user()
{
	as_user timeout --kill-after=30 "$time_limit" \
		make --silent --no-print-directory PG_CONFIG="$private_pg_config" with_llvm=no "$@"
}

# The end of a log, if there is one.
show_end()
{
	local lines=$1 file

	shift
	for file; do
		[ -s "$file" ] || continue
		say "end of $file"
		tail -n "$lines" "$file"
	done
}

# Run a part with its output shown and kept; its exit code.
run_part()
{
	local name=$1

	shift
	say "$name"
	: > "$work/totals"
	[ "$(id -u)" -ne 0 ] || chown "$user" "$work/totals"
	"$@" 2>&1 | tee "$work/log/$name.log"
}

# Add to the sum. A part that failed but counts no failure counts as one.
add_counts()
{
	local name=$1 code=$2 part_passed=$3 part_failed=$4

	if [ "$code" -ne 0 ] && [ "$part_failed" -eq 0 ]; then
		part_failed=1
	fi
	echo "$name: $part_passed passed, $part_failed failed"
	passed=$((passed + part_passed))
	failed=$((failed + part_failed))
}

# unit and TAP tests: counted by the harness.
run_prove()
{
	local name=$1 code part_passed=0 part_failed=0 word a b file base

	shift
	run_part "$name" make_as_user "$@"
	code=$?
	while read -r word a b; do
		case $word in
			count)
				part_passed=$((part_passed + a))
				part_failed=$((part_failed + b))
				;;
			failed)
				base=$(basename "$a" .pl)
				for file in "$work/src/tmp_check/log/regress_log_$base" "$work/src/tmp_check/log/$base"_*.log; do
					show_end 80 "$file"
				done
				;;
		esac
	done < "$work/totals"
	add_counts "$name" $code $part_passed $part_failed
}

# regress and isolation tests: counted by what pg_regress prints for each,
# "test NAME ... ok" or "NAME ... FAILED" up to version 15, "ok 1 - NAME" and
# "not ok 1 - NAME" since.
run_regress()
{
	local name=$1 directory=$2 code log=$work/log/$1.log

	run_part "$name" make_as_user "check-$name"
	code=$?
	if [ $code -ne 0 ]; then
		show_end 150 "$work/src/${directory}regression.diffs"
		show_end 60 "$work/src/${directory}log/postmaster.log"
	fi
	add_counts "$name" $code \
		"$(grep -cE '^ok [0-9]|^(test|    ) .*\.\.\. ok( |$)' "$log")" \
		"$(grep -cE '^not ok [0-9]|^(test|    ) .*\.\.\. FAILED' "$log")"
}

cd "$top" || exit 1

say "packages"
test/install-deps.sh test || give_up "packages could not be installed"

user=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
	user=${OUTBOX_TEST_USER:-postgres}
	id "$user" > /dev/null || give_up "there is no user $user to run the tests"
fi

# In the checkout, so that the next run finds them.
say "Kafka for the tests"
make --no-print-directory -C test/kafka || give_up "Kafka could not be fetched"

say "private copy of PostgreSQL"
work=$(mktemp -d "${TMPDIR:-/tmp}/outbox_kafka-test.XXXXXX") || exit 1
trap 'give_up "interrupted"' INT TERM
mkdir "$work/src" "$work/log" "$work/home"
private_pg_config=$(test/private-postgres.sh "${PG_CONFIG:-pg_config}" "$work/pg") ||
	give_up "PostgreSQL could not be copied"
"$private_pg_config" --version
tar --exclude=./.git --exclude='./tmp_check*' --exclude='*.o' --exclude='*.bc' --exclude='*.so' -cf - . |
	tar -C "$work/src" -xf - || give_up "the sources could not be copied"
if [ "$(id -u)" -eq 0 ]; then
	chown -R "$user" "$work"
fi

say "build"
make_as_user all install > "$work/log/build.log" 2>&1 ||
	{ show_end 60 "$work/log/build.log"; give_up "the build failed"; }
make_as_user test-programs > "$work/log/test-programs.log" 2>&1 ||
	{ show_end 60 "$work/log/test-programs.log"; give_up "the build of the test programs failed"; }

for part in ${OUTBOX_TEST_PARTS:-unit regress isolation tap}; do
	case $part in
		unit) run_prove unit unit ;;
		regress) run_regress regress '' ;;
		isolation) run_regress isolation output_iso/ ;;
		tap) run_prove tap check-tap ${PROVE_TESTS:+PROVE_TESTS="$PROVE_TESTS"} ;;
		*) give_up "no such part: $part" ;;
	esac
done

say "all"
finish
