#!/bin/bash
#
# test/install-deps.sh [demo|test|bench]: what `make demo`, `make test` or `make
# bench` needs.
#
# Looks what is missing and installs that with apt-get, as root or by sudo; does
# nothing where all is there. PostgreSQL may be any of 15 to 18: one that is
# installed, else the newest that the distribution has. PG_CONFIG picks one
# that is somewhere else.

set -euo pipefail

purpose=${1:-test}
case $purpose in
	demo | test | bench) ;;
	*) echo "usage: $0 [demo|test|bench]" >&2; exit 2 ;;
esac

majors='18 17 16 15'

have()
{
	command -v "$1" > /dev/null 2>&1
}

# A C header that the compiler finds.
have_header()
{
	have cc && echo "#include <$1>" | cc -E -x c - > /dev/null 2>&1
}

have_perl_module()
{
	have perl && perl -M"$1" -e 1 2> /dev/null
}

have_python_module()
{
	[ -x /usr/bin/python3 ] && /usr/bin/python3 -c "import $1" 2> /dev/null
}

# Kafka 4 needs Java 17.
have_java()
{
	have java && [ "$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p;' | head -n 1)" -ge 17 ] 2> /dev/null
}

# A PostgreSQL with its server, and what extensions are built with.
have_postgresql()
{
	local pg_config=${PG_CONFIG:-pg_config} major

	have "$pg_config" || return 1
	major=$("$pg_config" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
	[[ " $majors " == *" $major "* ]] &&
		[ -x "$("$pg_config" --bindir)/postgres" ] &&
		[ -f "$("$pg_config" --includedir-server)/postgres.h" ] &&
		[ -f "$("$pg_config" --pgxs)" ]
}

available()
{
	[ -n "$(apt-cache madison "$1" 2> /dev/null)" ]
}

# The first of the named packages that the distribution has.
first_available()
{
	local package

	for package; do
		if available "$package"; then
			echo "$package"
			return
		fi
	done
	echo "$1"					# apt-get will say that there is none
}

# The packages of a PostgreSQL: an installed server decides which.
postgresql_packages()
{
	local major

	for major in $majors; do
		if [ -x "/usr/lib/postgresql/$major/bin/postgres" ]; then
			echo "postgresql-$major postgresql-server-dev-$major"
			return
		fi
	done
	for major in $majors; do
		if available "postgresql-server-dev-$major" && available "postgresql-$major"; then
			echo "postgresql-$major postgresql-server-dev-$major"
			return
		fi
	done
	echo 'postgresql postgresql-server-dev-all'
}

missing=()
need_postgresql=
need_java=

if ! have cc || ! have gcc || ! have_header stdlib.h; then
	missing+=(build-essential)
fi
have make || missing+=(make)
have_header librdkafka/rdkafka.h || missing+=(librdkafka-dev)
have kcat || missing+=(kcat)
have_postgresql || need_postgresql=yes
if [ "$purpose" = bench ]; then
	have gnuplot || missing+=(gnuplot-nox)
fi
if [ "$purpose" != demo ]; then
	have prove || missing+=(perl)
	have_perl_module IPC::Run || missing+=(libipc-run-perl)
	have_java || need_java=yes
	have mvn || missing+=(maven)
	have_python_module psycopg2 || missing+=(python3-psycopg2)
fi

if [ ${#missing[@]} -eq 0 ] && [ -z "$need_postgresql$need_java" ]; then
	exit 0
fi

if ! have apt-get; then
	echo "Please install: ${missing[*]} ${need_postgresql:+PostgreSQL 15 to 18 with its headers} ${need_java:+Java 17}" >&2
	exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
	if ! have sudo; then
		echo "$0: packages are missing (${missing[*]} ${need_postgresql:+postgresql}), and there is no sudo to install them" >&2
		exit 1
	fi
	as_root=(sudo)
fi
as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)

"${as_root[@]}" update
if [ -n "$need_postgresql" ]; then
	read -r -a packages <<< "$(postgresql_packages)"
	missing+=("${packages[@]}")
fi
if [ -n "$need_java" ]; then
	missing+=("$(first_available openjdk-17-jre-headless openjdk-21-jre-headless default-jre-headless)")
fi
echo "installing: ${missing[*]}"
"${as_root[@]}" install -y --no-install-recommends "${missing[@]}" < /dev/null
