-- Subscriptions without a broker: what inbox.subscribe() and its kin refuse,
-- who may decide about a subscription, and what is stored.
\set SHOW_CONTEXT never
\set VERBOSITY default
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;

CREATE ROLE regress_inbox_app;
CREATE ROLE regress_inbox_other;
CREATE FUNCTION on_message(m inbox.message) RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION other_handler(m inbox.message) RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION returns_text(m inbox.message) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION takes_text(t text) RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION "Not Mine"(m inbox.message) RETURNS void LANGUAGE sql AS $$ SELECT $$;
REVOKE EXECUTE ON FUNCTION "Not Mine"(inbox.message) FROM PUBLIC;

-- what is given has to make sense
SELECT inbox.subscribe(NULL, '{t}', 'on_message');
SELECT inbox.subscribe('', '{t}', 'on_message');
SELECT inbox.subscribe('with space', '{t}', 'on_message');
SELECT inbox.subscribe(repeat('x', 101), '{t}', 'on_message');
SELECT inbox.subscribe('s', NULL, 'on_message');
SELECT inbox.subscribe('s', '{}', 'on_message');
SELECT inbox.subscribe('s', '{t,NULL}', 'on_message');
SELECT inbox.subscribe('s', '{t,a/b}', 'on_message');
SELECT inbox.subscribe('s', ARRAY['^orders\..*', '^('], 'on_message');
SELECT inbox.subscribe('s', '{t}', NULL);
SELECT inbox.subscribe('s', '{t}', 'returns_text');
SELECT inbox.subscribe('s', '{t}', 'takes_text');
SELECT inbox.subscribe('s', '{t}', 'on_message', 'first');
SELECT inbox.subscribe('s', '{t}', 'on_message', 'infinity');
SELECT inbox.subscribe('s', '{t}', 'on_message', '2026-02-30');
SELECT inbox.subscribe('s', '{t}', 'on_message', max_attempts => 0);
SELECT inbox.subscribe('s', '{t}', 'on_message', retry_backoff => '0 s');
SELECT inbox.subscribe('s', '{t}', 'on_message', retry_backoff => '300000 years');
SELECT inbox.subscribe('s', '{t}', 'on_message', dedupe_window => '-1 h');
SELECT inbox.subscribe('s', '{t}', 'on_message', dedupe_window => '101 years');
SELECT inbox.subscribe('s', '{t}', 'on_message', on_failure => 'ignore');
SELECT inbox.subscribe('s', '{t}', 'on_message', workers => 65);
SELECT inbox.subscribe('s', '{t}', 'on_message', batch_size => 0);
BEGIN READ ONLY;
SELECT inbox.subscribe('s', '{t}', 'on_message');
ROLLBACK;
SELECT count(*) FROM inbox.subscription;

-- who may
SET ROLE regress_inbox_app;
SELECT inbox.subscribe('s', '{t}', 'on_message');
RESET ROLE;
GRANT EXECUTE ON FUNCTION inbox.subscribe(text, text[], regproc, text, integer, interval, interval, text, integer, integer),
	inbox.alter_subscription(text, text[], regproc, integer, interval, interval, text, integer, integer),
	inbox.pause(text), inbox.resume(text), inbox.unsubscribe(text), inbox.seek(text, text, text, integer), inbox.seek(text, bigint, text, integer),
	inbox.retry(text), inbox.retry(bigint), inbox.retry(text, text, integer), inbox.skip(bigint), inbox.skip(text, text, integer)
	TO regress_inbox_app, regress_inbox_other;
SET ROLE regress_inbox_app;
SELECT inbox.subscribe('s', '{t}', '"Not Mine"');
SELECT inbox.subscribe('s', ARRAY['t', '^orders\..*'], 'on_message', '2026-01-02 03:04:05+00', dedupe_window => '1 day');
SELECT inbox.subscribe('s', '{t}', 'on_message');
SELECT * FROM inbox.subscription;
RESET ROLE;
SELECT name, owner, topics, handler, start_from::timestamptz = '2026-01-02 03:04:05+00' AS start, max_attempts, retry_backoff, on_failure, workers, batch_size, dedupe_window, paused
	FROM inbox.subscription;
SELECT name, topic, state FROM inbox.subscription_status;

-- others may not
SET ROLE regress_inbox_other;
SELECT inbox.pause('s');
SELECT inbox.unsubscribe('s');
SELECT inbox.seek('s', 'earliest');
SELECT inbox.retry('s');
RESET ROLE;
SELECT inbox.alter_subscription('s', handler => 'other_handler');
SET ROLE regress_inbox_app;
SELECT inbox.pause('s');
SELECT inbox.alter_subscription('s', handler => 'other_handler', workers => 2, on_failure => 'stop_partition');
SELECT inbox.alter_subscription('s', topics => '{a/b}');
RESET ROLE;
SELECT handler, workers, on_failure, topics, paused FROM inbox.subscription;
SELECT inbox.resume('s');
SELECT paused FROM inbox.subscription;
SELECT inbox.pause('nobody');
-- a handler that is in another schema, and needs quotes
CREATE SCHEMA "Odd Schema";
CREATE FUNCTION "Odd Schema"."Handle It"(m inbox.message) RETURNS void LANGUAGE sql AS $$ SELECT $$;
SELECT inbox.subscribe('odd', '{t}', '"Odd Schema"."Handle It"');
SELECT handler, owner = current_user AS mine FROM inbox.subscription WHERE name = 'odd';

-- no window any more, and what was seen is forgotten
SELECT inbox.alter_subscription('odd', dedupe_window => '1 h');
INSERT INTO inbox.seen_1 SELECT id, gen_random_uuid(), 't', 0, 0 FROM inbox.subscription;
SELECT inbox.alter_subscription('s', batch_size => 10);
SELECT name, dedupe_window, (SELECT count(*) FROM inbox.seen_1 WHERE subscription = s.id) FROM inbox.subscription AS s ORDER BY name;
SELECT inbox.alter_subscription('s', dedupe_window => '0');
SELECT name, dedupe_window, (SELECT count(*) FROM inbox.seen_1 WHERE subscription = s.id) FROM inbox.subscription AS s ORDER BY name;
SELECT inbox.unsubscribe('odd');
SELECT count(*) FROM inbox.seen_1;
SELECT inbox.subscribe('odd', '{t}', '"Odd Schema"."Handle It"', dedupe_window => '0 s');
SELECT dedupe_window IS NULL AS none FROM inbox.subscription WHERE name = 'odd';

-- positions: those that are known
SELECT inbox.seek('s', 'earliest');
SELECT inbox.seek('s', 'earliest', 't');
SELECT inbox.seek('s', 5, 't', 0);
SELECT inbox.seek('s', 'sometime');
SELECT inbox.seek('s', NULL::text);
SELECT inbox.seek('s', 'infinity'::timestamptz);
SELECT inbox.seek('s', -1, 't', 0);
INSERT INTO inbox."offset" (subscription, topic, partition, position)
	SELECT id, 't', p, 10 FROM inbox.subscription, generate_series(0, 1) AS p WHERE name = 's';
SELECT inbox.seek('s', 5, 't', 0);
SELECT inbox.seek('s', '2026-01-01'::timestamptz, 't');
SELECT inbox.seek('s', 'latest', 't', 1);
SELECT topic, partition, kind, to_offset, to_time = '2026-01-01' AS to_time, requested_by = session_user AS by FROM inbox.request ORDER BY partition;
SELECT inbox.seek('s', 'earliest', 'u');
SELECT inbox.retry('s', 't', 0), inbox.skip('s', 't', 0);
SELECT topic, partition, state, position, lag FROM inbox.subscription_status WHERE name = 's' ORDER BY partition;

-- dead letters
SELECT inbox.retry('s'), inbox.retry(1), inbox.skip(1);
INSERT INTO inbox.dead_letter (id, subscription, subscription_name, topic, partition, "offset", attempts, failed_at)
	SELECT 7, id, name, 't', 0, 3, 5, now() FROM inbox.subscription WHERE name = 's';
SET ROLE regress_inbox_other;
SELECT inbox.skip(7);
RESET ROLE;
SET ROLE regress_inbox_app;
SELECT inbox.retry(7);
RESET ROLE;
SELECT id, name, topic, "offset", attempts, retry_at IS NOT NULL AS retry FROM inbox.dead_letters;

-- the end: positions go, dead letters stay
SELECT inbox.unsubscribe('s');
SELECT (SELECT count(*) FROM inbox."offset"), (SELECT count(*) FROM inbox.request), (SELECT count(*) FROM inbox.dead_letters);
SET ROLE regress_inbox_app;
SELECT inbox.retry(7);
RESET ROLE;
SELECT inbox.skip(7);

-- reading a payload
SELECT inbox.payload_text(m), inbox.payload_json(m) FROM (SELECT ROW('t', 0, 0, NULL, '{"a": 1}', NULL, NULL, NULL, NULL)::inbox.message AS m) AS x;
SELECT inbox.payload_text(m) IS NULL, inbox.payload_json(m) IS NULL FROM (SELECT ROW('t', 0, 0, NULL, NULL, NULL, NULL, NULL, NULL)::inbox.message AS m) AS x;
SELECT inbox.payload_text(ROW('t', 0, 0, NULL, '\xff', NULL, NULL, NULL, NULL));

-- settings
SET outbox_kafka.consumer_config = 'fetch.wait.max.ms=100; check.crcs=true; isolation.level=read_committed';
SET outbox_kafka.consumer_config = 'group.id=mine';
SET outbox_kafka.consumer_config = 'isolation.level=read_uncommitted';
SET outbox_kafka.consumer_config = 'sasl.password=hush';
SET outbox_kafka.consumer_config = 'linger.ms=5';
SET outbox_kafka.producer_config = 'fetch.wait.max.ms=100';
RESET outbox_kafka.consumer_config;

DROP EXTENSION outbox_kafka CASCADE;
DROP SCHEMA "Odd Schema" CASCADE;
DROP FUNCTION takes_text(text);
DROP ROLE regress_inbox_app, regress_inbox_other;
