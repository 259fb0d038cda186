# test/lib/prepare.sh: a place to work in for test/bench, test/chaos and
# test/demo; they source it.
#
# The caller has set top (the checkout) and program (its name, for messages).

die()
{
	echo "$program: $*" >&2
	exit 1
}

# Who runs servers: PostgreSQL does not run as root, so root hands over to the
# user of PostgreSQL's package, or another one named in a variable of the
# environment. Sets user; empty: whoever we are.
#
#   choose_user VARIABLE
choose_user()
{
	user=
	if [ "$(id -u)" -eq 0 ]; then
		user=${!1:-postgres}
		id "$user" > /dev/null 2>&1 || die "there is no user $user; name one by $1"
	fi
}

# A private copy of PostgreSQL in DIRECTORY/pg and one of the checkout in
# DIRECTORY/src, which belong to $user. Sets pg_config.
#
#   copy_sources DIRECTORY
copy_sources()
{
	pg_config=$("$top/test/private-postgres.sh" "${PG_CONFIG:-pg_config}" "$1/pg")
	mkdir "$1/src"
	tar -C "$top" --exclude=./.git --exclude='./tmp_check*' --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
		-cf - . | tar -C "$1/src" -xf -
	if [ -n "$user" ]; then
		chown -R "$user" "$1"
	fi
}

# Run make as $user, quietly; show the end of what it said if it fails.
#
#   quiet_make LOG ARGUMENT...
quiet_make()
{
	local log=$1
	local command=(env HOME="$(dirname "$log")" LC_ALL=C.UTF-8 make --no-print-directory PG_CONFIG="$pg_config" with_llvm=no)

	shift
	if [ -n "$user" ]; then
		command=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups "${command[@]}")
	fi
	"${command[@]}" "$@" > "$log" 2>&1 || { tail -n 40 "$log" >&2; die "make $* failed"; }
}
