#!/bin/bash
#
# test/analyze.sh: static analysis of src/, with what is installed of
#
#	cppcheck	the whole of src/ with PostgreSQL's macros simplified
#	gcc			-fanalyzer, each file compiled for PG_CONFIG's server
#	clang-tidy	bugprone-*, cert-*, clang-analyzer-*, concurrency-*
#
# Exit code 0 only if none of them has a finding. What is switched off, and why,
# stands below beside its name. One file at a time, and politely (nice).
#
# Environment: PG_CONFIG; OUTBOX_ANALYZERS (of "cppcheck gcc clang-tidy").

set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

pg_config=${PG_CONFIG:-pg_config}
include=$("$pg_config" --includedir-server) || exit 1
# With assertions: they tell the analyzers what holds.
system=(-isystem "$include" -DUSE_ASSERT_CHECKING=1)
findings=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Show what an analyzer found, and count it.
report()
{
	local name=$1 count

	count=$(grep -cE '(error|warning|style|performance|portability):' "$work/$name")
	cat "$work/$name"
	echo "$name: $count findings"
	findings=$((findings + count))
}

have()
{
	command -v "$1" > /dev/null && return
	echo "$1: not installed, left out"
	return 1
}

# The checks of style that are left out:
#	variableScope, constParameter, constVariable, constParameterPointer,
#	constParameterCallback, constVariablePointer	PostgreSQL's own style
#		declares at the top of a block and uses const where it is a promise
#	unusedStructMember	structs that mirror a layout have members nobody reads
#	unmatchedSuppression, missingInclude*, checkersReport, toomanyconfigs
#		say nothing of the code
analyze_cppcheck()
{
	local off=(variableScope constParameter constVariable constParameterPointer
		constVariablePointer constParameterCallback unusedStructMember
		unmatchedSuppression missingInclude missingIncludeSystem checkersReport toomanyconfigs)

	# ereport(ERROR) does not come back, which its macro hides from cppcheck
	cat > "$work/macros.h" <<-'END'
		#define PG_VERSION_NUM 150000
		#define RD_KAFKA_VERSION 0x020002ff
		#define PGDLLEXPORT
		#define PG_MODULE_MAGIC extern int magic
		#define PG_FUNCTION_INFO_V1(f) extern int f##_info
		#define ERROR 21
		#define FATAL 22
		#define ereport(level, ...) do { (void) (__VA_ARGS__); if ((level) == ERROR || (level) == FATAL) abort(); } while (0)
		#define elog(level, ...) ereport(level, __VA_ARGS__)
		#define foreach(cell, list) for (cell = first(list); cell; cell = next(cell))
		#define PG_TRY() {
		#define PG_CATCH() } if (failed()) {
		#define PG_FINALLY() } {
		#define PG_END_TRY() }
		#define PG_ENSURE_ERROR_CLEANUP(f, arg) {
		#define PG_END_ENSURE_ERROR_CLEANUP(f, arg) }
		#define PG_USED_FOR_ASSERTS_ONLY
		#define pg_attribute_noreturn() __attribute__((noreturn))
		#define pg_noreturn
		#define pg_attribute_printf(a, b)
		#define likely(x) (x)
		#define unlikely(x) (x)
	END
	nice cppcheck --quiet --std=c11 --inline-suppr --max-configs=1 -D__linux__ \
		--enable=warning,style,performance,portability "${off[@]/#/--suppress=}" \
		--include="$work/macros.h" src 2> "$work/cppcheck"
}

# In C, gcc's analyzer follows paths through one file. Left out:
#	-Wno-analyzer-malloc-leak, -Wno-analyzer-use-of-uninitialized-value in files
#		that include postgres.h: memory belongs to contexts that are freed as a
#		whole, and a longjmp out of PG_TRY looks like a path of its own
analyze_gcc()
{
	local file

	for file in src/*.c; do
		local off=()

		if grep -q '^#include "postgres.h"' "$file"; then
			off=(-Wno-analyzer-malloc-leak -Wno-analyzer-use-of-uninitialized-value)
		fi
		nice gcc -std=gnu11 -O1 -fanalyzer "${off[@]}" "${system[@]}" -Isrc \
			-c "$file" -o "$work/file.o" 2>> "$work/gcc"
	done
}

# Left out:
#	bugprone-easily-swappable-parameters, bugprone-narrowing-conversions,
#	bugprone-implicit-widening-of-multiplication-result, bugprone-branch-clone,
#	bugprone-macro-parentheses, bugprone-assignment-in-if-condition,
#	bugprone-reserved-identifier, cert-dcl37-c, cert-dcl51-cpp	matters of taste,
#		or of PostgreSQL's headers
#	bugprone-sizeof-expression	sizeof(((Type *) NULL)->member), meant so
#	bugprone-suspicious-include, cert-err33-c	snprintf() whose result nobody
#		needs
#	clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling
#		wants memcpy_s(), which glibc has not
#	concurrency-mt-unsafe	strerror(), called by the thread of the relay alone
#	clang-analyzer-deadcode.DeadStores	PG_GETARG_* and isnull of columns that
#		are NOT NULL
analyze_clang_tidy()
{
	local checks='-*,bugprone-*,cert-*,clang-analyzer-*,concurrency-*'
	local check file

	for check in bugprone-easily-swappable-parameters bugprone-narrowing-conversions \
		bugprone-implicit-widening-of-multiplication-result bugprone-branch-clone \
		bugprone-macro-parentheses bugprone-assignment-in-if-condition \
		bugprone-reserved-identifier cert-dcl37-c cert-dcl51-cpp \
		bugprone-sizeof-expression bugprone-suspicious-include cert-err33-c \
		clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling concurrency-mt-unsafe \
		clang-analyzer-deadcode.DeadStores; do
		checks+=",-$check"
	done
	for file in src/*.c; do
		nice clang-tidy --quiet --checks="$checks" "$file" -- -std=gnu11 "${system[@]}" -Isrc \
			2> /dev/null >> "$work/clang-tidy"
	done
}

for analyzer in ${OUTBOX_ANALYZERS:-cppcheck gcc clang-tidy}; do
	have "$analyzer" || continue
	: > "$work/$analyzer"
	"analyze_${analyzer//-/_}"
	report "$analyzer"
done
[ "$findings" -eq 0 ]
