#!/bin/bash
#
# test/demo/demo.sh: the extension at work, in a minute (make demo).
#
# Builds it, installs it into a private copy of PostgreSQL in a temporary
# directory, runs a server of its own and a stand-in for Kafka there, and takes
# everything away at the end. PostgreSQL does not run as root: root hands over
# to the user of PostgreSQL's package (OUTBOX_DEMO_USER).
#
# The exit code says whether Kafka got what it should have and nothing else, and
# orders became what they should have. What the shop and the warehouse of the
# second half do is in shop.sql and warehouse.sql beside this file.
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

# Show SQL, run it in a database (as a role), show what it says.
sql()
{
	local text

	text=$(cat)
	sed "s/^/    $1=> /" <<< "$text"
	run psql -X -q -v ON_ERROR_STOP=1 -P footer=off -d "$1" -U "${2:-postgres}" <<< "$text" | sed '/^$/d; s/^/        /'
}

# Show a file of SQL but for its comments, and run it the same way.
sql_file()
{
	grep -v '^--' "$top/test/demo/$2" | cat -s | sed '1{/^$/d}; s/^/        /'
	run psql -X -q -v ON_ERROR_STOP=1 -d "$1" -U "$3" -o /dev/null < "$top/test/demo/$2"
}

# Wait until a query gives what it should.
wait_for()
{
	local i answer=

	for ((i = 0; i < 300; i++)); do
		answer=$(ask "$1" "$2")
		[ "$answer" != "$3" ] || return 0
		sleep 0.1
	done
	die "$2 gave $answer, not $3"
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
coproc BROKER { run src/test/mockbroker/mockbroker -e customers.created:3 stock.counted:3 \
	orders.created:3 orders.confirmed:3 orders.rejected:3 orders.cancelled:3; }
broker_pid=$BROKER_PID
exec {broker_in}>&"${BROKER[1]}" {broker_out}<&"${BROKER[0]}"
eval "exec ${BROKER[1]}>&- ${BROKER[0]}<&-"
read -r servers <&"$broker_out" || die "the broker did not start"
run initdb -D data -U postgres -A trust -E UTF8 --locale=C --no-sync > "$work/initdb.log" 2>&1 ||
	{ cat "$work/initdb.log"; die "initdb failed"; }
tee "$work/settings" <<EOF | sed 's/^/    /'
shared_preload_libraries = 'outbox_kafka'
outbox_kafka.bootstrap_servers = '$servers'
max_worker_processes = 16
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
ask shop 'CREATE TABLE customers (id int PRIMARY KEY, name text)' > /dev/null

step "3. A customer and the message about it in one transaction: both or neither"
sql shop <<'EOF'
BEGIN;
INSERT INTO customers VALUES (1, 'Ada');
SELECT outbox.publish('customers.created', to_jsonb(c), key => c.id::text) AS event_id FROM customers AS c WHERE id = 1;
COMMIT;
EOF

step "4. The same, rolled back"
sql shop <<'EOF'
BEGIN;
INSERT INTO customers VALUES (2, 'Eve');
SELECT outbox.publish('customers.created', to_jsonb(c), key => c.id::text) AS event_id FROM customers AS c WHERE id = 2;
ROLLBACK;
EOF

step "5. The other database publishes as well"
sql warehouse <<'EOF'
SELECT outbox.publish('stock.counted', '{"item": "teapot", "available": 10}', key => 'teapot') AS event_id;
EOF

step "6. Wait until Kafka has acknowledged them, and read them as a consumer does"
for database in shop warehouse; do
	sql $database <<< "SELECT topic, outbox.wait_published(event_id, '30 s') FROM outbox.message_status;"
done
for topic in customers.created stock.counted; do
	echo "    \$ kcat -C -t $topic"
	consume $topic -f 'partition %p, offset %o, key %k\n%s\n%h\n' | sed 's/^/        /'
done
echo "    Eve is not among them."

step "7. The broker goes away; publishing goes on, and messages wait in the database"
broker down all
sql shop <<'EOF'
INSERT INTO customers VALUES (3, 'Grace');
SELECT outbox.publish('customers.created', to_jsonb(c), key => c.id::text) AS event_id FROM customers AS c WHERE id = 3;
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

keys=$(consume customers.created -f '%k\n' | sort | paste -sd ' ')
[ "$keys" = '1 3' ] || die "Kafka should have the customers 1 and 3, it has: $keys"
keys=$(consume stock.counted -f '%k\n' | sort | paste -sd ' ')
[ "$keys" = teapot ] || die "Kafka should have the number of teapots, it has: $keys"

step "10. The way back. A role that owns the application, with what it needs"
ask postgres 'CREATE ROLE app LOGIN' > /dev/null
for database in shop warehouse; do
	sql $database <<'EOF'
GRANT CREATE ON SCHEMA public TO app;
SELECT outbox.grant_publish('app', '{orders.*}');
GRANT EXECUTE ON FUNCTION inbox.subscribe TO app;
EOF
done

step "11. The warehouse: a message of Kafka's calls a function, which answers by a message"
sql_file warehouse warehouse.sql app
sql warehouse app <<< "INSERT INTO stock VALUES ('teapot', 10), ('cup', 3);"

step "12. The shop: an order awaits an answer, within a time; a function for each that can come of it"
sql_file shop shop.sql app

step "13. One order that can be had, one that cannot"
sql shop app <<'EOF'
SELECT place_order(1, 'teapot', 4, '30 s') AS correlation_id;
SELECT place_order(2, 'cup', 5, '30 s') AS correlation_id;
EOF
wait_for shop "SELECT string_agg(status, ' ' ORDER BY id) FROM orders" 'confirmed rejected'
sql shop app <<< "SELECT * FROM orders ORDER BY id;"
sql warehouse app <<< "SELECT * FROM stock; SELECT * FROM reservation;"
for topic in orders.created orders.confirmed orders.rejected; do
	echo "    \$ kcat -C -t $topic"
	consume $topic -f 'key %k\n%s\n%h\n' | sed 's/^/        /'
done

step "14. The warehouse is down: nobody answers within two seconds, the order is cancelled"
sql warehouse <<< "SELECT inbox.pause('orders');"
sql shop app <<< "SELECT place_order(3, 'teapot', 1, '2 s') AS correlation_id;"
wait_for shop 'SELECT status FROM orders WHERE id = 3' cancelled
sql shop app <<< "SELECT * FROM orders WHERE id = 3;"
sql shop <<< "SELECT topic, status, within, decision, handler_state FROM outbox.confirmations ORDER BY expected_at;"

step "15. It is back, reserves, and answers too late: the shop has that undone"
sql warehouse <<< "SELECT inbox.resume('orders');"
wait_for shop 'SELECT sum(late) FROM outbox.confirmations' 1
wait_for warehouse "SELECT sum(position) FROM inbox.subscription_status WHERE name = 'cancellations'" 1
sql warehouse app <<< "SELECT * FROM stock; SELECT * FROM reservation;"
sql warehouse <<< "SELECT name, topic, sum(position) AS handled, sum(lag) AS lag FROM inbox.subscription_status GROUP BY 1, 2;"
orders=$(ask shop "SELECT string_agg(status, ' ' ORDER BY id) FROM orders")
[ "$orders" = 'confirmed rejected cancelled' ] || die "the orders should be confirmed, rejected and cancelled, they are: $orders"
stock=$(ask warehouse "SELECT string_agg(item || ' ' || available, ', ' ORDER BY item) FROM stock")
[ "$stock" = 'cup 3, teapot 6' ] || die "3 cups and 6 teapots should be left, there are: $stock"
failed=
step "Done: what was committed is in Kafka, each order was answered once or cancelled. Everything is taken away again."
