#!/bin/bash
#
# test/private-postgres.sh PG_CONFIG DIRECTORY
#
# Copy an installed PostgreSQL below DIRECTORY, so that an extension can be
# installed into the copy and the original stays as it is. Prints the path of
# the copy's pg_config.
#
# PostgreSQL finds its files relative to its programs, so the copy keeps the
# places of bin, lib and share to each other. The headers are only linked to.

set -euo pipefail

pg_config=$1
target=$2

# Distributions wrap pg_config; the wrapped one lies with the other programs.
bindir=$("$pg_config" --bindir)
pg_config=$bindir/pg_config

copy()
{
	mkdir -p "$target$1"
	cp -RL "$1/." "$target$1/"
}

link()
{
	[ -e "$target$1" ] && return
	mkdir -p "$target$(dirname "$1")"
	ln -s "$1" "$target$1"
}

copy "$bindir"
copy "$("$pg_config" --pkglibdir)"
copy "$("$pg_config" --sharedir)"
link "$("$pg_config" --includedir)"
link "$("$pg_config" --pkgincludedir)"
link "$("$pg_config" --includedir-server)"
echo "$target$pg_config"
