
# Consuming: messages from a real Kafka are handled by a SQL function, in order,
# each once, effects and position in one transaction. Asleep, a worker holds no
# snapshot and writes nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(sleep time);

use OutboxTest;
use OutboxTest::Inbox;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('orders', 3);
$kafka->create_topic('shared', 4);
$kafka->create_topic('raw', 1, { 'max.message.bytes' => 3_000_000,
	'message.timestamp.after.max.ms' => 9223372036854775807 });
$kafka->create_topic('later', 24);
$kafka->create_topic('kept', 1);
my $node = new_node('inbox', kafka => $kafka);
new_database($node, 'd');

# ---- one message

$node->safe_psql('d', q{
	CREATE ROLE app LOGIN;
	CREATE TABLE handled (n bigserial, topic text, partition int, "offset" bigint,
		key bytea, payload bytea, headers jsonb, "timestamp" timestamptz,
		event_id uuid, correlation_id text, who text, xid xid8 DEFAULT pg_current_xact_id());
	GRANT INSERT ON handled TO app;
	GRANT USAGE ON SEQUENCE handled_n_seq TO app;
	GRANT CREATE ON SCHEMA public TO app;
	GRANT EXECUTE ON FUNCTION inbox.subscribe(text, text[], regproc, text, integer, interval, interval, text, integer, integer),
		inbox.pause(text), inbox.resume(text), inbox.unsubscribe(text), inbox.seek(text, text, text, integer) TO app;
	SET ROLE app;
	CREATE FUNCTION handle(m inbox.message) RETURNS void LANGUAGE sql AS $$
		INSERT INTO handled (topic, partition, "offset", key, payload, headers, "timestamp", event_id, correlation_id, who)
		SELECT (m).*, current_user $$;
	SELECT inbox.subscribe('s', '{orders}', 'handle');
});
my $id = publish($node, 'd', q{'orders', '{"a":1}'::jsonb, 'k', '{"x":"1","y":null}', NULL, NULL, 'c-1'});
wait_handled($node, 'd', 'handled', 1);
is($node->safe_psql('d', q{
	SELECT topic, partition, "offset", convert_from(key, 'UTF8'), convert_from(payload, 'UTF8'),
		headers->>'x', headers->'y', headers->>'ce_id' = event_id::text, correlation_id,
		now() - "timestamp" < '1 minute', who FROM handled}),
	'orders|' . murmur2_partition('k', 3) . '|0|k|{"a": 1}|1|null|t|c-1|t|app',
	'a message arrives as it was published, and is handled as who subscribed');
is($node->safe_psql('d', 'SELECT event_id FROM handled'), $id, 'with its event id');

# ---- what else Kafka may hold

$node->safe_psql('d', q{SELECT inbox.subscribe('raw', '{raw}', 'handle')});
wait_caught_up($node, 'd', 'raw');
$kafka->produce('raw', 0, key => 'k');
$kafka->produce('raw', 0, value => "\xff\xfe");
$kafka->produce('raw', 0, value => '', headers => [ a => '1', a => '2', b => "\xff", 'no-value' => undef,
	ce_id => 'no uuid', 'correlation-id' => 'c' ]);
$kafka->produce('raw', 0, value => 'x' x 1_000_000);
$kafka->produce('raw', 0, value => 'then', time => 9223372036854775807);
$kafka->produce('raw', 0, value => 'then', time => 9224318015999999);
$kafka->transact('raw', 0, 'abort', 'aborted 1', 'aborted 2');
$kafka->transact('raw', 0, 'commit', 'committed 1', 'committed 2');
wait_handled($node, 'd', q{handled WHERE topic = 'raw'}, 8);
is($node->safe_psql('d', q{
	SELECT key = 'k' AND payload IS NULL AND event_id IS NULL FROM handled WHERE topic = 'raw' AND "offset" = 0}),
	't', 'a tombstone');
is($node->safe_psql('d', q{
	SELECT key IS NULL AND payload = '\xfffe' AND headers IS NULL FROM handled WHERE topic = 'raw' AND "offset" = 1}),
	't', 'bytes that are no text, and no headers');
is($node->safe_psql('d', q{
	SELECT headers, payload = '', event_id IS NULL, correlation_id FROM handled WHERE topic = 'raw' AND "offset" = 2}),
	'{"a": ["1", "2"], "b": {"base64": "/w=="}, "ce_id": "no uuid", "no-value": null, "correlation-id": "c"}|t|t|c',
	'headers: repeated, not text, without a value, an id that is no UUID');
is($node->safe_psql('d', q{SELECT length(payload) FROM handled WHERE topic = 'raw' AND "offset" = 3}),
	1000000, 'a megabyte');
is($node->safe_psql('d', q{
	SELECT "timestamp" IS NULL FROM handled WHERE topic = 'raw' AND "offset" = 4}),
	't', 'a time that PostgreSQL does not have');
is($node->safe_psql('d', q{
	SELECT "timestamp" AT TIME ZONE 'UTC' FROM handled WHERE topic = 'raw' AND "offset" = 5}),
	'294276-12-31 23:59:59.999', 'the last one that it has');
is($node->safe_psql('d', q{
	SELECT string_agg(convert_from(payload, 'UTF8'), ',' ORDER BY n) FROM handled WHERE topic = 'raw' AND "offset" > 5}),
	'committed 1,committed 2', 'what was aborted is not handled');
wait_caught_up($node, 'd', 'raw');
is(inbox_status($node, 'd', 'raw', 'raw', 0, 'position = end_offset AND position > 9'), 't',
	'control records count for the position');

# ---- payload_text, payload_json

is($node->safe_psql('d', q{
	SELECT inbox.payload_text(m), inbox.payload_json(m)->>'a'
	FROM (SELECT ROW('t', 0, 0, NULL, '{"a":"ü"}'::text::bytea, NULL, NULL, NULL, NULL)::inbox.message AS m) AS x}),
	'{"a":"ü"}|ü', 'payload_text() and payload_json()');

# ---- what a handler may do with its argument, and with settings

$kafka->produce('kept', 0, key => "k$_", value => $_ x 3000, headers => [ id => "00000000-0000-4000-8000-00000000000$_", n => $_ ])
  for 1 .. 9;
$node->safe_psql('d', q{
	CREATE TABLE kept (n bigserial, m inbox.message, settings text, xid xid8 DEFAULT pg_current_xact_id());
	CREATE FUNCTION keep(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		given inbox.message := m;
	BEGIN
		m.payload := 'changed ' || (m.headers->>'n');
		m.key := NULL;
		INSERT INTO kept (m, settings) VALUES (given, concat_ws(' ', current_setting('work_mem'), current_setting('search_path')));
		INSERT INTO kept (m) VALUES (m);
		PERFORM set_config('work_mem', '64kB', false), set_config('search_path', 'pg_catalog', false);
	END $$;
	SELECT inbox.subscribe('kept', '{kept}', 'keep');
});
wait_handled($node, 'd', 'kept', 18);
is($node->safe_psql('d', q{SELECT count(DISTINCT xid) < 9 FROM kept}), 't', 'several messages in a transaction');
is($node->safe_psql('d', q{
	SELECT bool_and(convert_from((m).payload, 'UTF8') = repeat(i::text, 3000) AND (m).key = convert_to('k' || i, 'UTF8')
		AND (m).headers->>'id' = (m).event_id::text AND (m).headers->>'n' = i::text AND (m)."offset" = i - 1)
	FROM (SELECT m, row_number() OVER (ORDER BY n) AS i FROM kept WHERE settings IS NOT NULL) AS x}),
	't', 'its argument can be kept as it is');
is($node->safe_psql('d', q{
	SELECT string_agg(convert_from((m).payload, 'UTF8') || coalesce((m).key::text, ''), ' ' ORDER BY n) FROM kept WHERE settings IS NULL}),
	join(' ', map { "changed $_" } 1 .. 9), 'and be changed');
is($node->safe_psql('d', q{SELECT DISTINCT settings FROM kept WHERE settings IS NOT NULL}), '4MB "$user", public',
	'settings of a call are not those of the next one of the same transaction');

# ---- order, several workers, large batches

$node->safe_psql('d', q{
	CREATE TABLE got (partition int, "offset" bigint, v text, pid int DEFAULT pg_backend_pid(), xid xid8 DEFAULT pg_current_xact_id(), n bigserial);
	CREATE FUNCTION got(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO got VALUES (m.partition, m."offset", inbox.payload_text(m)); END $$;
	SELECT inbox.subscribe('two', '{shared}', 'got', workers => 2);
	SELECT count(outbox.publish('shared', i::text, (i % 50)::text)) FROM generate_series(1, 20000) AS i;
});
wait_handled($node, 'd', 'got', 20000, 60);
is($node->safe_psql('d', q{
	SELECT count(*) FROM (SELECT "offset" < lag("offset") OVER (PARTITION BY partition ORDER BY n) AS wrong FROM got) AS x WHERE wrong}),
	0, 'in the order of each partition');
is($node->safe_psql('d', 'SELECT count(DISTINCT (partition, "offset")) FROM got'), 20000, 'each once');
is($node->safe_psql('d', 'SELECT count(DISTINCT pid) FROM got'), 2, 'two workers share the partitions');
is($node->safe_psql('d', 'SELECT count(*) FROM (SELECT DISTINCT partition, pid FROM got) AS x'), 4,
	'each partition is one worker\'s');
cmp_ok($node->safe_psql('d', 'SELECT count(*)::float8 / count(DISTINCT xid) FROM got'), '>', 20,
	'many messages to a transaction');
wait_caught_up($node, 'd', 'two');
is($node->safe_psql('d', q{SELECT sum(handled) FROM inbox.workers WHERE name = 'two'}), 20000, 'counted');

# another number of workers: nothing is handled twice or left out
$node->safe_psql('d', q{
	SELECT count(outbox.publish('shared', i::text, (i % 50)::text)) FROM generate_series(1, 5000) AS i;
	SELECT inbox.alter_subscription('two', workers => 3)});
$node->safe_psql('d', q{
	SELECT count(outbox.publish('shared', i::text, (i % 50)::text)) FROM generate_series(1, 5000) AS i;
	SELECT inbox.alter_subscription('two', workers => 1)});
wait_handled($node, 'd', 'got', 30000, 60);
is($node->safe_psql('d', 'SELECT count(DISTINCT (partition, "offset")) FROM got'), 30000,
	'changing the number of workers loses and repeats nothing');

# ---- pause, resume

$node->safe_psql('d', q{SELECT inbox.pause('s')}, extra_params => [ '-U', 'app' ]);
publish($node, 'd', q{'orders', 'paused'::text, 'k'});
wait_delivered($node, 'd');
is($node->safe_psql('d', q{SELECT DISTINCT state FROM inbox.subscription_status WHERE name = 's'}), 'paused', 'paused');
is($node->safe_psql('d', q{SELECT count(*) FROM handled WHERE payload = 'paused'}), 0, 'nothing is handled');
$node->safe_psql('d', q{SELECT inbox.resume('s')}, extra_params => [ '-U', 'app' ]);
wait_handled($node, 'd', q{handled WHERE payload = 'paused'}, 1);

# ---- latest: what was written since the subscription was made

# Into many partitions, so that messages arrive while the worker asks where each
# of them begins.
sub publish_later
{
	my ($text) = @_;
	$node->safe_psql('d', "SELECT outbox.publish('later', '$text'::text, partition => i) FROM generate_series(0, 23) AS i");
	return;
}
publish_later('before');
wait_delivered($node, 'd');
$node->safe_psql('d', q{SELECT pg_sleep(0.01); SELECT inbox.subscribe('later', '{later}', 'handle', 'latest')});
publish_later('after');
wait_handled($node, 'd', q{handled WHERE topic = 'later'}, 24);
is($node->safe_psql('d', q{SELECT DISTINCT convert_from(payload, 'UTF8') FROM handled WHERE topic = 'later'}), 'after',
	'latest begins with what comes after subscribe()');

# ---- asleep

wait_caught_up($node, 'd', $_) for qw(s raw kept two later);
my $lsn;
wait_until('nothing is written any more', sub {
	my $now = $node->safe_psql('d', 'SELECT pg_current_wal_insert_lsn()');
	my $same = defined $lsn && $lsn eq $now;
	$lsn = $now;
	sleep 1.5 if !$same;
	return $same;
});
is($node->safe_psql('d', q{
	SELECT count(*), count(backend_xmin), count(backend_xid) FROM pg_stat_activity
	WHERE backend_type = 'outbox_kafka inbox' AND state = 'idle'}), '5|0|0', 'asleep, without a snapshot');
sleep 2;
is($node->safe_psql('d', 'SELECT pg_current_wal_insert_lsn()'), $lsn, 'and without WAL');
is($node->safe_psql('d', q{SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
	WHERE a.backend_type = 'outbox_kafka inbox' AND l.locktype = 'relation'}), 0, 'and without a lock on a table');
publish($node, 'd', q{'orders', 'awake'::text, 'k'});
my $start = time;
wait_handled($node, 'd', q{handled WHERE payload = 'awake'}, 1);
cmp_ok(time - $start, '<', 5, 'and wakes for a message');

# ---- the end of one, and of the extension

my $pid = inbox_pid($node, 'd', 's');
cmp_ok($pid, '>', 0, 'the worker is shown');
$node->safe_psql('d', q{SELECT inbox.unsubscribe('s')}, extra_params => [ '-U', 'app' ]);
wait_until('the worker has left', sub { !kill 0, $pid });
is($node->safe_psql('d', q{SELECT count(*) FROM inbox."offset" AS o WHERE topic = 'orders'}), 0, 'its positions are gone');
$node->safe_psql('d', 'DROP FUNCTION got(inbox.message); DROP FUNCTION handle(inbox.message); DROP FUNCTION keep(inbox.message); DROP TABLE kept; DROP EXTENSION outbox_kafka');
wait_until('no worker is left', sub {
	$node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox_kafka%' AND datname = 'd'}) eq '0' });

$node->stop;
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
unlike($log, qr/WARNING|PANIC|terminated by signal/, 'no warning');
done_testing();
