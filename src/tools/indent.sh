#!/bin/bash
#
# src/tools/indent.sh check|apply|typedefs
#
# The C code in PostgreSQL's own form. check shows what differs from it, apply
# brings it about, typedefs makes typedefs.list anew from the debugging
# information of a finished build (run it after make, make unit and
# make test-programs).
#
# pg_bsd_indent is what PostgreSQL's pgindent calls, with these options; without
# it there is nothing to check with, which is said and is no error.

set -euo pipefail
cd "$(dirname "$0")/../.."
export LC_ALL=C

typedefs=src/tools/typedefs.list
files=(src/*.[ch] test/*/*.[ch] test/modules/*/*.[ch])
options=(-bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 -i4 -l79
	-lp -lpl -nip -npro -sac -tpg -ts4)

make_typedefs()
{
	local programs

	programs=$(find src test -name '*.o' -o -type f -perm -u+x -path 'test/*' ! -name '*.*')
	comm -12 \
		<(readelf --debug-dump=info $programs 2> /dev/null |
			awk '/DW_TAG_typedef/ { typedef = 1; next }
				 typedef && /DW_AT_name/ { sub(/.*: /, ""); sub(/[ \t]+$/, ""); print; typedef = 0 }' |
			sort -u) \
		<(cat "${files[@]}" | grep -oE '[A-Za-z_][A-Za-z0-9_]*' | sort -u)
}

# Comments that start with dashes stay as they are, and the star of a function's
# type stands one blank after it. What knows nothing of PostgreSQL has no type
# text, but variables of that name.
indented()
{
	local names=$typedefs

	if [[ $1 == test/* || $1 == src/kafka* ]]; then
		names=$(mktemp)
		grep -vx text "$typedefs" > "$names"
	fi
	sed 's|/\* -----|/*-_X_-----|' "$1" |
		pg_bsd_indent "${options[@]}" -U"$names" |
		sed -E -e 's|/\*-_X_-----|/* -----|' \
			-e 's/^([A-Za-z_][A-Za-z0-9_]*)[ \t]+\*$/\1 */'
	[ "$names" = "$typedefs" ] || rm -f "$names"
}

case ${1:-} in
	typedefs)
		make_typedefs > "$typedefs.new"
		[ -s "$typedefs.new" ]
		mv "$typedefs.new" "$typedefs"
		;;
	check | apply)
		if ! command -v pg_bsd_indent > /dev/null; then
			echo "pg_bsd_indent is not installed: nothing checked"
			exit 0
		fi
		different=0
		for file in "${files[@]}"; do
			new=$(mktemp)
			indented "$file" > "$new"
			if ! diff -u --label "$file" --label "$file, indented" "$file" "$new"; then
				different=$((different + 1))
				[ "$1" = check ] || cat "$new" > "$file"
			fi
			rm -f "$new"
		done
		if [ "$1" = check ]; then
			echo "${#files[@]} files, $different differ"
			[ "$different" -eq 0 ]
		fi
		;;
	*)
		echo "usage: $0 check|apply|typedefs" >&2
		exit 2
		;;
esac
