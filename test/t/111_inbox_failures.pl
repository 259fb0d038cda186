
# Consuming: handlers that fail, in every way they can, and what becomes of
# their messages: the good ones take effect once, in order, the bad ones end as
# dead letters or stop their partition, as the subscription says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Inbox;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('many', 2);
$kafka->create_topic($_) for qw(stop deferred loop end drop big publish answers locks commit crash json dedupe missing);
my $node = new_node(
	'inbox',
	kafka => $kafka,
	conf => {
		'outbox_kafka.handler_timeout' => '1500ms',
		'max_worker_processes' => 40,
		'outbox_kafka.max_inbox_workers' => 20,
	});
new_database($node, 'd');

sub sql { return $node->safe_psql('d', @_) }

# Publish integers from and to, all with the same key.
sub numbers
{
	my ($topic, $from, $to) = @_;
	sql("SELECT count(outbox.publish('$topic', i::text, 'k')) FROM generate_series($from, $to) AS i");
	return;
}

sql(q{
	CREATE TABLE got (n bigserial, topic text, partition int, "offset" bigint, v text, xid xid8 DEFAULT pg_current_xact_id());
	CREATE TABLE tried (topic text, v text, t timestamptz DEFAULT clock_timestamp());
	CREATE SEQUENCE calls;
});

# ---- bad ones among good ones

sql(q{
	CREATE FUNCTION h_many(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO got (topic, partition, "offset", v) VALUES (m.topic, m.partition, m."offset", inbox.payload_text(m));
		IF inbox.payload_text(m)::int % 100 = 0 THEN RAISE EXCEPTION 'bad number %', inbox.payload_text(m); END IF;
	END $$;
	SELECT count(outbox.publish('many', i::text, i::text)) FROM generate_series(1, 3000) AS i;
	SELECT inbox.subscribe('many', '{many}', 'h_many', max_attempts => 2, retry_backoff => '20 ms');
});
wait_handled($node, 'd', q{got WHERE topic = 'many'}, 2970, 60);
wait_handled($node, 'd', q{inbox.dead_letters WHERE name = 'many'}, 30, 60);
wait_caught_up($node, 'd', 'many');
is(sql(q{SELECT count(DISTINCT v), count(*) FILTER (WHERE v::int % 100 = 0) FROM got WHERE topic = 'many'}), '2970|0',
	'the good ones took effect once, the bad ones not at all');
is(sql(q{SELECT count(*) FROM (SELECT "offset" < lag("offset") OVER (PARTITION BY partition ORDER BY n) AS wrong FROM got WHERE topic = 'many') AS x WHERE wrong}),
	0, 'in order');
is(sql(q{SELECT DISTINCT attempts, sqlstate, error LIKE 'bad number %00' FROM inbox.dead_letters WHERE name = 'many'}), '2|P0001|t',
	'a dead letter says why');
is(sql(q{SELECT count(*) FROM inbox.dead_letter WHERE error = 'bad number ' || convert_from(payload, 'UTF8') AND key = payload AND event_id IS NOT NULL AND headers ? 'ce_id'}), 30,
	'and has the message');

# tried again, once the handler is right; out of order, each once
sql(q{CREATE OR REPLACE FUNCTION h_many(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO got (topic, partition, "offset", v) VALUES (m.topic, m.partition, m."offset", inbox.payload_text(m)); END $$});
is(sql(q{SELECT inbox.retry(min(id)) FROM inbox.dead_letters WHERE name = 'many'}), 1, 'retry() of one');
wait_handled($node, 'd', q{got WHERE topic = 'many'}, 2971);
is(sql(q{SELECT inbox.skip(min(id)) FROM inbox.dead_letters WHERE name = 'many'}), 1, 'skip() of one');
is(sql(q{SELECT inbox.retry('many')}), 28, 'retry() of all');
wait_handled($node, 'd', q{got WHERE topic = 'many'}, 2999);
wait_handled($node, 'd', q{inbox.dead_letters WHERE name = 'many'}, 0);
is(sql(q{SELECT count(DISTINCT v) FROM got WHERE topic = 'many'}), 2999, 'each took effect once');

# ---- stop_partition, retry() and skip() of a partition

sql(q{
	CREATE FUNCTION h_stop(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF inbox.payload_text(m) IN ('5', '8') AND NOT EXISTS (SELECT FROM got WHERE topic = 'allow') THEN RAISE EXCEPTION 'no'; END IF;
		INSERT INTO got (topic, partition, "offset", v) VALUES (m.topic, m.partition, m."offset", inbox.payload_text(m));
	END $$;
});
numbers('stop', 1, 10);

# not before all is there
wait_delivered($node, 'd');
sql(q{SELECT inbox.subscribe('stop', '{stop}', 'h_stop', max_attempts => 2, retry_backoff => '20 ms', on_failure => 'stop_partition')});
wait_partition($node, 'd', 'stop', 'stop', 0, q{state = 'stopped' AND lag = 6});
is(inbox_status($node, 'd', 'stop', 'stop', 0, 'position, failing_offset, attempts, lag, last_error'), '4|4|2|6|no', 'a stopped partition');
is(sql(q{SELECT string_agg(v, ' ' ORDER BY n) FROM got WHERE topic = 'stop'}), '1 2 3 4', 'nothing overtakes what failed');
is(sql(q{SELECT inbox.skip('stop', 'stop', 0)}), 1, 'skip()');
wait_partition($node, 'd', 'stop', 'stop', 0, q{state = 'stopped' AND position = 7});
is(sql(q{SELECT "offset", error FROM inbox.dead_letters WHERE name = 'stop'}), '4|no', 'what was skipped is a dead letter');
sql(q{INSERT INTO got (topic) VALUES ('allow')});
is(sql(q{SELECT inbox.retry('stop', 'stop', 0)}), 1, 'retry()');
wait_caught_up($node, 'd', 'stop');
is(sql(q{SELECT string_agg(v, ' ' ORDER BY n) FROM got WHERE topic = 'stop'}), '1 2 3 4 6 7 8 9 10', 'it goes on');
is(sql(q{SELECT inbox.retry('stop', 'stop', 0)}), 0, 'nothing to retry any more');

# ---- deferred constraints: a fault of the whole transaction, found alone

sql(q{
	CREATE TABLE parent (id int PRIMARY KEY);
	CREATE TABLE child (parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
	CREATE FUNCTION h_deferred(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE i int := inbox.payload_text(m);
	BEGIN
		INSERT INTO child VALUES (i);
		IF i <> 7 THEN INSERT INTO parent VALUES (i); END IF;
	END $$;
});
numbers('deferred', 1, 50);
wait_delivered($node, 'd');
sql(q{SELECT inbox.subscribe('deferred', '{deferred}', 'h_deferred', max_attempts => 2, retry_backoff => '20 ms')});
wait_handled($node, 'd', 'child', 49);
is(sql(q{SELECT "offset", sqlstate FROM inbox.dead_letters WHERE name = 'deferred'}), '6|23503', 'a deferred foreign key');

# ---- endless

sql(q{
	CREATE FUNCTION h_loop(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF inbox.payload_text(m) = '2' THEN LOOP PERFORM 1; END LOOP; END IF;
		INSERT INTO got (topic, v) VALUES (m.topic, inbox.payload_text(m));
	END $$;
	SELECT inbox.subscribe('loop', '{loop}', 'h_loop', max_attempts => 1);
});
numbers('loop', 1, 3);
wait_handled($node, 'd', q{got WHERE topic = 'loop'}, 2);
is(sql(q{SELECT "offset", sqlstate FROM inbox.dead_letters WHERE name = 'loop'}), '1|57014', 'a handler that loops');

# ---- ends its own process

sql(q{
	CREATE FUNCTION h_end(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF inbox.payload_text(m) = '2' THEN
			PERFORM nextval('calls');
			PERFORM pg_terminate_backend(pg_backend_pid());
			PERFORM pg_sleep(1);
		END IF;
		INSERT INTO got (topic, v) VALUES (m.topic, inbox.payload_text(m));
	END $$;
	SELECT inbox.subscribe('end', '{end}', 'h_end', max_attempts => 3, retry_backoff => '20 ms');
});
numbers('end', 1, 3);
wait_handled($node, 'd', q{got WHERE topic = 'end'}, 2, 60);
is(sql(q{SELECT "offset", attempts FROM inbox.dead_letters WHERE name = 'end'}), '1|3', 'a handler that ends its process');
cmp_ok(sql(q{SELECT last_value FROM calls}), '<=', 5, 'was called a few times');

# ---- drops itself: nothing becomes a dead letter, the subscription waits

sql(q{
	CREATE FUNCTION h_drop(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO got (topic, v) VALUES (m.topic, inbox.payload_text(m));
		DROP FUNCTION h_drop(inbox.message);
	END $$;
	SELECT inbox.subscribe('drop', '{drop}', 'h_drop', retry_backoff => '20 ms');
});
numbers('drop', 1, 3);
wait_until('the missing handler is shown',
	sub { sql(q{SELECT count(*) FROM inbox.subscription_status WHERE name = 'drop' AND last_error LIKE 'the handler cannot be called: function public.h_drop(inbox.message) does not exist'}) eq '1' },
	undef, sub { inbox_describe($node, 'd') });
sql(q{
	CREATE FUNCTION h_drop(m inbox.message) RETURNS void LANGUAGE sql AS $$
		INSERT INTO got (topic, v) VALUES ((m).topic, inbox.payload_text(m)) $$;
	SELECT inbox.resume('drop')});
wait_handled($node, 'd', q{got WHERE topic = 'drop'}, 3);
is(sql(q{SELECT count(*) FROM inbox.dead_letters WHERE name = 'drop'}), 0, 'a handler that drops itself');
wait_until('the problem is over',
	sub { sql(q{SELECT count(*) FROM inbox.subscription_status WHERE name = 'drop' AND topic IS NULL}) eq '0' },
	undef, sub { inbox_describe($node, 'd') });

# ---- writes a lot, publishes, keeps locks, commits

sql(q{
	CREATE TABLE big (t text);
	ALTER TABLE big ALTER t SET STORAGE EXTERNAL;
	CREATE FUNCTION h_big(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO got (topic, v) VALUES (m.topic, inbox.payload_text(m));
		IF inbox.payload_text(m) = '2' THEN
			INSERT INTO big SELECT repeat('x', 1000000) FROM generate_series(1, 1000);
		END IF;
	END $$;
	SELECT inbox.subscribe('big', '{big}', 'h_big', max_attempts => 1);
});
numbers('big', 1, 3);
wait_until('a gigabyte is written or given up',
	sub { sql(q{SELECT count(*) + (SELECT count(*) FROM inbox.dead_letters WHERE name = 'big') FROM got WHERE topic = 'big'}) == 3 }, 120,
	sub { inbox_describe($node, 'd') });
is(sql(q{SELECT (SELECT count(*) FROM inbox.dead_letters WHERE name = 'big' AND sqlstate = '57014') + count(*) / 1000 FROM big}), 1,
	'a handler that writes a gigabyte, within its time or not');

sql(q{
	CREATE FUNCTION h_publish(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM outbox.publish('answers', inbox.payload_text(m), 'k');
		IF inbox.payload_text(m) = '2' THEN RAISE EXCEPTION 'no answer'; END IF;
	END $$;
	SELECT inbox.subscribe('publish', '{publish}', 'h_publish', max_attempts => 1);
});
numbers('publish', 1, 3);
wait_until('answers', sub { $kafka->message_count('answers') == 2 });
is(join(' ', map { $_->{payload} } $kafka->consume('answers')), '1 3', 'what a failed handler published is not sent');

sql(q{
	CREATE FUNCTION h_locks(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_lock(4711), set_config('work_mem', '64kB', false);
		CREATE TEMP TABLE left_behind (i int);
		INSERT INTO got (topic, v) VALUES (m.topic, current_setting('work_mem'));
		IF inbox.payload_text(m) = '2' THEN COMMIT; END IF;
	END $$;
	SELECT inbox.subscribe('locks', '{locks}', 'h_locks', max_attempts => 1, batch_size => 1);
});
numbers('locks', 1, 3);
wait_handled($node, 'd', q{got WHERE topic = 'locks'}, 2);
wait_handled($node, 'd', q{inbox.dead_letters WHERE name = 'locks' AND sqlstate = '2D000'}, 1);
is(sql(q{SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' AND l.objid = 4711}), 0,
	'neither locks nor temporary tables nor settings stay, and COMMIT is an error');

# ---- input that the handler cannot read

sql(q{
	CREATE FUNCTION h_json(m inbox.message) RETURNS void LANGUAGE sql AS $$
		INSERT INTO got (topic, v) VALUES ((m).topic, inbox.payload_json(m)->>'v') $$;
	SELECT inbox.subscribe('json', '{json}', 'h_json', max_attempts => 1);
});
$kafka->produce('json', 0, value => '{"v":"1"}');
$kafka->produce('json', 0, value => "\xff");
$kafka->produce('json', 0, value => '{"secret');
$kafka->produce('json', 0, key => 'null');
$kafka->produce('json', 0, value => '{"v":"2"}');
wait_handled($node, 'd', q{got WHERE topic = 'json'}, 3);
is(sql(q{SELECT string_agg(coalesce(v, 'null'), ' ' ORDER BY n) FROM got WHERE topic = 'json'}), '1 null 2', 'good JSON and a tombstone');
is(sql(q{SELECT string_agg(sqlstate || ' ' || error, ', ' ORDER BY "offset") FROM inbox.dead_letters WHERE name = 'json'}),
	'22021 invalid byte sequence for encoding "UTF8": 0xff, 22P02 invalid input syntax for type json', 'bad bytes and bad JSON');

# ---- dedupe

sql(q{
	CREATE FUNCTION h_dedupe(m inbox.message) RETURNS void LANGUAGE sql AS $$
		INSERT INTO got (topic, v) VALUES ((m).topic, inbox.payload_text(m)) $$;
	SELECT inbox.subscribe('dedupe', '{dedupe}', 'h_dedupe', dedupe_window => '1 hour');
	SELECT outbox.publish('dedupe', 'a'::text, 'k', event_id => '00000000-0000-4000-8000-000000000001');
	SELECT outbox.publish('dedupe', 'b'::text, 'k', event_id => '00000000-0000-4000-8000-000000000002');
	SELECT outbox.publish('dedupe', 'a again'::text, 'k', event_id => '00000000-0000-4000-8000-000000000001')});
wait_delivered($node, 'd');
sql(q{SELECT outbox.publish('dedupe', 'b again'::text, 'k', event_id => '00000000-0000-4000-8000-000000000002');
	SELECT outbox.publish('dedupe', 'c'::text, 'k')});
wait_handled($node, 'd', q{got WHERE topic = 'dedupe' AND v = 'c'}, 1);
is(sql(q{SELECT string_agg(v, ',' ORDER BY n) FROM got WHERE topic = 'dedupe'}), 'a,b,c', 'a second message with an event id is passed over');
sql(q{BEGIN; SELECT inbox.seek('dedupe', 'earliest'); DELETE FROM got WHERE topic = 'dedupe'; COMMIT});
wait_handled($node, 'd', q{got WHERE topic = 'dedupe' AND v = 'c'}, 1);
is(sql(q{SELECT string_agg(v, ',' ORDER BY n) FROM got WHERE topic = 'dedupe'}), 'a,b,c', 'reading again is no second message');
sql(q{UPDATE inbox.subscription SET dedupe_window = '1 second' WHERE name = 'dedupe'; SELECT inbox.resume('dedupe')});
wait_until('what was seen is forgotten',
	sub { sql(q{SELECT (SELECT count(*) FROM inbox.seen_0) + (SELECT count(*) FROM inbox.seen_1) + (SELECT count(*) FROM inbox.seen_2) + (SELECT count(*) FROM inbox.seen_3)}) eq '0' });
sql(q{SELECT outbox.publish('dedupe', 'b later'::text, 'k', event_id => '00000000-0000-4000-8000-000000000002')});
wait_handled($node, 'd', q{got WHERE topic = 'dedupe' AND v = 'b later'}, 1);
pass('after the window an event id counts as new');

# ---- all this time, no worker ended but the one that was made to

is(sql(q{SELECT count(*) FROM inbox.workers WHERE state NOT IN ('idle', 'running')}), 0, 'all workers run');
$node->stop;
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
unlike($log, qr/PANIC|terminated by signal|subtransaction left|snapshot .* still active|leak/, 'nothing was left behind');
unlike($log, qr/secret/, 'no payload in the log');
done_testing();
