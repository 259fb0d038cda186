#!/bin/bash
#
# test/sanitize.sh: make test with the extension built for AddressSanitizer and
# UndefinedBehaviorSanitizer (gcc). The server itself is the installed one.
#
# An instrumented library needs the sanitizer's runtime to be the first that the
# process loads, so the tests get a copy of PostgreSQL whose "postgres" is a
# script that preloads it. It preloads a small library of ours as well:
#	- its constructor runs before all others and sets the runtime up: done
#	  later, inside the constructor of one of the server's libraries, that can
#	  wait for itself for ever;
#	- it holds the options for UBSan, which looks for them so late that the
#	  server's process title has overwritten the environment;
#	- it writes down that UBSan has found something, since a report in a
#	  server log that a test throws away is none.
#
# What is not seen: memory of the server's memory contexts (test/valgrind.sh
# does that), leaks, and overflow of signed integers, which PostgreSQL defines
# (-fwrapv).
#
# Environment: what test/run.sh takes. Exit code 0 only if the tests pass and
# no report was written; reports are shown and kept.

set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/outbox_kafka-sanitize.XXXXXX")
chmod 755 "$work"
mkdir -m 1777 "$work/reports"

cat > "$work/preload.c" <<EOF
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void		__ubsan_get_current_report_data(const char **kind, const char **message,
											const char **file, unsigned *line,
											unsigned *column, char **address)
			__attribute__((weak));

const char *
__ubsan_default_options(void)
{
	return "print_stacktrace=1:halt_on_error=1:abort_on_error=1";
}

void
__ubsan_on_report(void)
{
	const char *kind,
			   *message,
			   *file;
	unsigned	line,
				column;
	char	   *address;
	int			fd = open("$work/reports/ubsan", O_WRONLY | O_CREAT | O_APPEND, 0666);

	__ubsan_get_current_report_data(&kind, &message, &file, &line, &column, &address);
	dprintf(fd, "process %d: %s:%u:%u: %s (%s)\n", getpid(), file, line, column, message, kind);
	close(fd);
}

__attribute__((constructor))
static void
set_up_first(void)
{
	void	   *volatile memory = malloc(1);

	free(memory);
}
EOF
gcc -O -fPIC -shared -Wl,-z,initfirst -o "$work/preload.so" "$work/preload.c"

pg_config=$("$top/test/private-postgres.sh" "${PG_CONFIG:-pg_config}" "$work/pg")
bindir=$(dirname "$pg_config")
mv "$bindir/postgres" "$bindir/postgres.real"
cat > "$bindir/postgres" <<EOF
#!/bin/bash
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $work/preload.so"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:log_path=$work/reports/asan
exec -a "\$0" "\$(dirname "\$0")/postgres.real" "\$@"
EOF
chmod 755 "$bindir/postgres"

code=0
PG_CONFIG=$pg_config \
	COPT='-fsanitize=address,undefined -fno-sanitize=object-size -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g' \
	"$top/test/run.sh" "$@" || code=$?

if [ -n "$(ls -A "$work/reports")" ]; then
	cat "$work/reports"/*
	echo "sanitizer reports are in $work/reports"
	exit 1
fi
rm -rf "$work"
echo "no sanitizer reports"
exit $code
