#!/bin/bash
#
# test/demo/demo.sh: the extension at work, in half a minute (make demo).
#
# Builds it, installs it into a private copy of PostgreSQL in a temporary
# directory, runs a server of its own and a stand-in for Kafka there, and takes
# everything away at the end. PostgreSQL does not run as root: root hands over
# to the user of PostgreSQL's package (OUTBOX_DEMO_USER).
#
# The exit code says whether Kafka got what it should have, and nothing else.
#
# Environment: PG_CONFIG (which PostgreSQL), TMPDIR, OUTBOX_DEMO_USER.

set -euo pipefail

program=demo
top=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=../lib/prepare.sh
. "$top/test/lib/prepare.sh"
bold='' plain=''
if [ -t 1 ]; then
	bold=$'\033[1m' plain=$'\033[0m'
fi

step()
{
	printf '\n%s%s%s\n' "$bold" "$*" "$plain"
}

choose_user OUTBOX_DEMO_USER

work=$(mktemp -d "${TMPDIR:-/tmp}/outbox_kafka-demo.XXXXXX")
bindir=
broker_in=
failed=yes

# Without privileges, in the work directory, with an environment of its own.
run()
{
	local command=(env -i PATH="${bindir:+$bindir:}$PATH" HOME="$work" LC_ALL=C.UTF-8
		PGHOST="$work" PGUSER=postgres PGDATABASE=postgres "$@")

	if [ -n "$user" ]; then
		command=(runuser -u "$user" -- "${command[@]}")
	fi
	(cd "$work" && exec "${command[@]}")
}

cleanup()
{
	trap '' INT TERM
	if [ "$failed" = yes ] && [ -s "$work/server.log" ]; then
		printf '\nThe end of the server log:\n'
		tail -n 30 "$work/server.log"
	fi
	if [ -f "$work/data/postmaster.pid" ]; then
		run pg_ctl -D data -m fast -s stop || run pg_ctl -D data -m immediate -s stop || true
	fi
	if [ -n "$broker_in" ]; then
		exec {broker_in}>&-		# it ends with its input
		wait "$broker_pid" 2> /dev/null || true
	fi
	rm -rf "$work"
}
trap cleanup EXIT
trap 'failed=; exit 130' INT
trap 'failed=; exit 143' TERM

# Show SQL, run it in a database, show what it says.
sql()
{
	local text

	text=$(cat)
	sed "s/^/    $1=> /" <<< "$text"
	run psql -X -q -v ON_ERROR_STOP=1 -P footer=off -d "$1" <<< "$text" | sed '/^$/d; s/^/        /'
}

# Ask for one value.
ask()
{
	run psql -X -q -A -t -v ON_ERROR_STOP=1 -d "$1" -c "$2"
}

# Have the stand-in for Kafka do something.
broker()
{
	local answer

	echo "$*" >&"$broker_in"
	read -r answer <&"$broker_out"
	[ "$answer" = ok ] || die "the broker answered: $answer"
}

# What a consumer reads of a topic.
consume()
{
	run kcat -C -q -e -o beginning -b "$servers" -t "$1" "${@:2}"
}

step "0. Build the extension; install it into a private copy of PostgreSQL"
[ -z "$user" ] || chown "$user" "$work"
tar -C "$top" --exclude=./.git --exclude='./tmp_check*' --exclude=./test/kafka --exclude='*.o' --exclude='*.so' \
	--exclude='*.bc' -cf - . | run sh -c 'mkdir src && tar -C src --no-same-owner -xf -'
pg_config=$(run src/test/private-postgres.sh "$(command -v "${PG_CONFIG:-pg_config}")" "$work/pg") ||
	die "PostgreSQL could not be copied"
bindir=$(dirname "$pg_config")
for target in "-C src PG_CONFIG=$pg_config with_llvm=no all install" '-C src/test/mockbroker'; do
	# shellcheck disable=SC2086
	run make --no-print-directory $target > "$work/build.log" 2>&1 || { tail -n 30 "$work/build.log"; die "the build failed"; }
done
echo "    $("$pg_config" --version)"

step "1. Start a Kafka broker (librdkafka's mock of one) and a PostgreSQL server"
coproc BROKER { run src/test/mockbroker/mockbroker -e orders.created:3 stock.reserved:3; }
broker_pid=$BROKER_PID
exec {broker_in}>&"${BROKER[1]}" {broker_out}<&"${BROKER[0]}"
eval "exec ${BROKER[1]}>&- ${BROKER[0]}<&-"
read -r servers <&"$broker_out" || die "the broker did not start"
run initdb -D data -U postgres -A trust -E UTF8 --locale=C --no-sync > "$work/initdb.log" 2>&1 ||
	{ cat "$work/initdb.log"; die "initdb failed"; }
tee "$work/settings" <<EOF | sed 's/^/    /'
shared_preload_libraries = 'outbox_kafka'
outbox_kafka.bootstrap_servers = '$servers'
EOF
run sh -c "cat >> data/postgresql.conf" <<EOF
$(cat "$work/settings")
listen_addresses = ''
unix_socket_directories = '$work'
EOF
run pg_ctl -D data -l server.log -s -w start || die "the server did not start"

step "2. Two databases with the extension; each gets a relay of its own, without a restart"
for database in shop warehouse; do
	ask postgres "CREATE DATABASE $database" > /dev/null
	sql $database <<< "CREATE EXTENSION outbox_kafka;"
done
ask shop 'CREATE TABLE orders (id int PRIMARY KEY, customer text, total numeric)' > /dev/null

step "3. An order and its message in one transaction: both or neither"
sql shop <<'EOF'
BEGIN;
INSERT INTO orders VALUES (1, 'Ada', 42.50);
SELECT outbox.publish('orders.created', to_jsonb(o), key => o.id::text) AS event_id FROM orders AS o WHERE id = 1;
COMMIT;
EOF

step "4. The same, rolled back"
sql shop <<'EOF'
BEGIN;
INSERT INTO orders VALUES (2, 'Eve', 13.00);
SELECT outbox.publish('orders.created', to_jsonb(o), key => o.id::text) AS event_id FROM orders AS o WHERE id = 2;
ROLLBACK;
EOF

step "5. The other database publishes as well"
sql warehouse <<'EOF'
SELECT outbox.publish('stock.reserved', '{"order": 1, "items": 3}', key => '1') AS event_id;
EOF

step "6. Wait until Kafka has acknowledged them, and read them as a consumer does"
for database in shop warehouse; do
	sql $database <<< "SELECT topic, outbox.wait_published(event_id, '30 s') FROM outbox.message_status;"
done
for topic in orders.created stock.reserved; do
	echo "    \$ kcat -C -t $topic"
	consume $topic -f 'partition %p, offset %o, key %k\n%s\n%h\n' | sed 's/^/        /'
done
echo "    Eve's order is not among them."

step "7. The broker goes away; publishing goes on, and messages wait in the database"
broker down all
sql shop <<'EOF'
INSERT INTO orders VALUES (3, 'Grace', 99.90);
SELECT outbox.publish('orders.created', to_jsonb(o), key => o.id::text) AS event_id FROM orders AS o WHERE id = 3;
EOF
event=$(ask shop "SELECT event_id FROM outbox.message_status ORDER BY id DESC LIMIT 1")
sql shop <<EOF
SELECT outbox.wait_published('$event', '1 s');
SELECT topic, bytes FROM outbox.pending;
SELECT state, published, left(last_error, 70) AS last_error FROM outbox.relay_status;
EOF

step "8. It comes back"
broker up all
sql shop <<< "SELECT outbox.wait_published('$event', '30 s');"

step "9. What the views say"
sql shop <<'EOF'
SELECT state, published, pending_estimate, in_flight FROM outbox.relay_status;
SELECT topic, partitions, published, published_bytes FROM outbox.topic_status;
SELECT id, topic, status, created_at FROM outbox.message_status ORDER BY id;
EOF

keys=$(consume orders.created -f '%k\n' | sort | paste -sd ' ')
[ "$keys" = '1 3' ] || die "Kafka should have the orders 1 and 3, it has: $keys"
keys=$(consume stock.reserved -f '%k\n' | sort | paste -sd ' ')
[ "$keys" = 1 ] || die "Kafka should have the reservation of order 1, it has: $keys"
failed=
step "Done: Kafka has the two orders that were committed, each once. Everything is taken away again."
