-- outbox.publish() in all its forms, and what it stores.
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;

-- Show the message with this event id, without what differs from run to run.
CREATE FUNCTION stored(event uuid, OUT topic text, OUT key bytea, OUT payload bytea,
		OUT headers jsonb, OUT partition int, OUT correlation_id text)
	LANGUAGE sql
	AS $$
		SELECT m.topic, m.key, m.payload, m.headers, m.partition, m.correlation_id
		FROM outbox.message AS m WHERE m.event_id = event
	$$;

-- every type of payload and key
SELECT * FROM stored(outbox.publish('orders', '{"b": 1,   "a": [true, null]}'::jsonb));
SELECT * FROM stored(outbox.publish('orders', '{"b": 1,   "a": [true, null]}'::json, 'k'));
SELECT * FROM stored(outbox.publish('orders', 'plain text'::text, 'k'));
SELECT * FROM stored(outbox.publish('orders', '\x00ff00'::bytea));
SELECT * FROM stored(outbox.publish('orders', '\x00ff00'::bytea, 'k'));
SELECT * FROM stored(outbox.publish('orders', '\x00ff00'::bytea, '\x0001'::bytea));
-- jsonb has its own text, json keeps the one it was given
SELECT convert_from((stored(outbox.publish('orders', '{"b": 1,   "a": [true, null]}'::jsonb))).payload, 'UTF8');
SELECT convert_from((stored(outbox.publish('orders', '{"b": 1,   "a": [true, null]}'::json))).payload, 'UTF8');
-- untyped literals are text
SELECT * FROM stored(outbox.publish('orders', '{"a": 1}'));
SELECT * FROM stored(outbox.publish('orders', '\x00', 'k'));
SELECT * FROM stored(outbox.publish('orders', NULL, 'k'));
-- what converts to text by itself
SELECT * FROM stored(outbox.publish('orders'::name, 'abc'::varchar(3), 'k'::varchar));
-- a number or a uuid has to say so
SELECT * FROM stored(outbox.publish('orders', to_jsonb(1), 42::text));
SELECT * FROM stored(outbox.publish('orders', to_jsonb(1), 42));

-- NULL, empty and the JSON null are three things
SELECT * FROM stored(outbox.publish('orders', NULL::jsonb, 'k'));
SELECT * FROM stored(outbox.publish('orders', NULL::json, 'k'));
SELECT * FROM stored(outbox.publish('orders', NULL::text, 'k'));
SELECT * FROM stored(outbox.publish('orders', NULL::bytea, 'k'));
SELECT * FROM stored(outbox.publish('orders', NULL::bytea, '\x01'::bytea));
SELECT * FROM stored(outbox.publish('orders', ''::text, NULL));
SELECT * FROM stored(outbox.publish('orders', ''::text, ''));
SELECT * FROM stored(outbox.publish('orders', ''::bytea, ''::bytea));
SELECT * FROM stored(outbox.publish('orders', 'null'::jsonb));

-- names and all arguments
SELECT * FROM stored(outbox.publish(topic => 'orders', payload => 'x'::text, partition => 3, correlation_id => 'c-1'));
SELECT * FROM stored(outbox.publish('orders', 'x'::text, 'k', '{"b": "1", "a": null, "c": ["1", null], "d": []}', 0,
	'11111111-2222-3333-4444-555555555555', ''));
SELECT outbox.publish(payload => '\x01'::bytea, key => '\x02'::bytea, topic => 'orders', event_id => '11111111-2222-3333-4444-555555555556');
SELECT * FROM stored(outbox.publish('orders', 'x'::text, headers => '{}'));
-- the same event id twice is nobody's mistake here
SELECT outbox.publish('orders', 'x'::text, event_id => '11111111-2222-3333-4444-555555555555');
SELECT count(*) FROM outbox.message WHERE event_id = '11111111-2222-3333-4444-555555555555';

-- topics at the edge of Kafka's rule
SELECT topic FROM stored(outbox.publish('a', 'x'));
SELECT topic FROM stored(outbox.publish('...', 'x'));
SELECT topic FROM stored(outbox.publish('aZ09._-', 'x'));
SELECT length(topic) FROM stored(outbox.publish(repeat('t', 249), 'x'));

-- beyond ASCII; payload, key and headers
SELECT key, payload, headers = '{"n\u00e4me": "\u20ac"}' AS headers_kept
	FROM stored(outbox.publish('orders', U&'\00e9\+01F600'::text, U&'\00df', U&'{"n\00e4me": "\20ac"}'));
SELECT payload FROM stored(outbox.publish('orders', '"\u00e9\ud83d\ude00"'::jsonb));

-- 900 kB that compress and that do not, taken from another table's TOAST
CREATE TABLE source AS
	SELECT i, CASE i WHEN 1 THEN string_agg(md5(g::text), '' ORDER BY g) ELSE repeat('abcdefghi', 100000) END AS large
	FROM generate_series(1, 2) AS i, generate_series(1, 28125) AS g GROUP BY i;
SELECT i, length(large), pg_column_size(large) < 100000 AS compressed FROM source ORDER BY i;
SELECT i, octet_length(payload), md5(payload) = md5(large) AS same
	FROM source, stored(outbox.publish('orders', large)) ORDER BY i;
SELECT i, octet_length(payload), md5(payload) = md5(large) AS same
	FROM source, stored(outbox.publish('orders', convert_to(large, 'UTF8'), 'k')) ORDER BY i;
SELECT i, octet_length(payload), payload = convert_to(to_jsonb(large)::text, 'UTF8') AS same
	FROM source, stored(outbox.publish('orders', to_jsonb(large))) ORDER BY i;
SELECT octet_length(key), md5(key) = md5(large) AS same
	FROM source, stored(outbox.publish('orders', NULL, large)) WHERE i = 1;
DROP TABLE source;

-- an event id is a UUID of version 7 with the time of publishing
SELECT substr(e, 15, 1) AS version, substr(e, 20, 1) IN ('8', '9', 'a', 'b') AS variant,
	to_timestamp(('x' || substr(replace(e, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)
		BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() + interval '1 ms' AS about_now
	FROM CAST(outbox.publish('orders', 'x') AS text) AS e;
-- no two are alike, and they sort about as they were made
CREATE TABLE made AS SELECT g, outbox.publish('many', g::text) AS e FROM generate_series(1, 1000) AS g;
SELECT count(DISTINCT e), count(DISTINCT substr(e::text, 20)) FROM made;
SELECT count(*) FROM (SELECT lag(substr(e::text, 1, 18)) OVER (ORDER BY g) > substr(e::text, 1, 18) AS back FROM made) AS s WHERE back;
-- ids count up, and all have the one xid of their transaction
SELECT count(DISTINCT xid), count(DISTINCT id), max(id) - min(id) FROM outbox.message WHERE topic = 'many';
SELECT bool_and(m.id = f.id + g - 1) FROM made, outbox.message AS m, (SELECT min(id) AS id FROM outbox.message WHERE topic = 'many') AS f
	WHERE m.event_id = e;
-- each of the three indexes has them all
CREATE FUNCTION index_used(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	plan jsonb;
BEGIN
	EXECUTE 'EXPLAIN (FORMAT JSON) ' || query INTO plan;
	RETURN jsonb_path_query_first(plan, '$.**."Index Name"');
END
$$;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT min(id) AS first_id, min(xid::text) AS the_xid FROM outbox.message WHERE topic = 'many' \gset
SELECT index_used(format('SELECT count(*) FROM outbox.message_0 WHERE id >= %s', :first_id)),
	(SELECT count(*) FROM outbox.message_0 WHERE id >= :first_id);
SELECT index_used(format('SELECT count(*) FROM outbox.message_0 WHERE xid = %L AND id > 0', :'the_xid')),
	(SELECT count(*) FROM outbox.message_0 WHERE xid = :'the_xid' AND id > 0);
SELECT index_used('SELECT count(*) FROM made, outbox.message_0 AS m WHERE m.event_id = e'),
	(SELECT count(*) FROM made, outbox.message_0 AS m WHERE m.event_id = e);
RESET enable_seqscan;
RESET enable_bitmapscan;
DROP TABLE made;

-- the transaction decides
BEGIN;
SELECT outbox.publish('rolled.back', 'x') IS NOT NULL AS ok;
ROLLBACK;
BEGIN;
SELECT outbox.publish('kept', '1') IS NOT NULL AS ok;
SAVEPOINT s;
SELECT outbox.publish('rolled.back', 'x') IS NOT NULL AS ok;
ROLLBACK TO s;
SAVEPOINT s;
SELECT outbox.publish('kept', '2') IS NOT NULL AS ok;
RELEASE s;
SELECT outbox.publish('kept', '3') IS NOT NULL AS ok;
-- the xid is the top-level one, also below a savepoint; the time is the clock's
SELECT convert_from(payload, 'UTF8') AS n, xid = pg_current_xact_id() AS top_xid, created_at > now() AS clock, segment = outbox.current_segment() AS segment
	FROM outbox.message WHERE topic = 'kept' ORDER BY id;
COMMIT;
SELECT count(*) FILTER (WHERE topic = 'kept') AS kept, count(*) FILTER (WHERE topic = 'rolled.back') AS rolled_back FROM outbox.message;
-- an exception takes back what its block published
DO $$
BEGIN
	PERFORM outbox.publish('exception', '1');
	BEGIN
		PERFORM outbox.publish('exception', '2');
		RAISE EXCEPTION 'no';
	EXCEPTION WHEN raise_exception THEN
		PERFORM outbox.publish('exception', '3');
	END;
END
$$;
SELECT convert_from(payload, 'UTF8') AS n FROM outbox.message WHERE topic = 'exception' ORDER BY id;

-- from a trigger, as the README shows it
CREATE TABLE orders (id int PRIMARY KEY, state text);
CREATE FUNCTION publish_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.publish('orders.' || lower(TG_OP), to_jsonb(NEW), key => NEW.id::text);
	RETURN NULL;
END
$$;
CREATE TRIGGER publish_order AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION publish_order();
INSERT INTO orders VALUES (1, 'new'), (2, 'new');
UPDATE orders SET state = 'paid' WHERE id = 2;
SELECT topic, convert_from(key, 'UTF8') AS key, convert_from(payload, 'UTF8') AS payload
	FROM outbox.message WHERE topic LIKE 'orders.%' ORDER BY id;
DROP TABLE orders;
DROP FUNCTION publish_order();

-- prepared, with parameters
PREPARE p(text, jsonb, text) AS SELECT outbox.publish($1, $2, $3) IS NOT NULL AS ok;
EXECUTE p('prepared', '{"n": 1}', 'k');
EXECUTE p('prepared', NULL, 'k');
SELECT key, payload FROM outbox.message WHERE topic = 'prepared' ORDER BY id;
DEALLOCATE p;

-- Without a relay, the segment marked on disk is the current one. (A relay that
-- runs already says so itself, and may not have noticed.)
BEGIN;
UPDATE outbox.segment SET is_current = (segment = 5);
SELECT outbox.publish('segment', 'x') IS NOT NULL AS ok;
INSERT INTO outbox.message (topic, payload) VALUES ('segment', 'x');
SELECT bool_and(tableoid = format('outbox.message_%s', segment)::regclass) AS in_its_leaf,
	bool_and(segment = 5 OR (segment = 0 AND current_setting('shared_preload_libraries') LIKE '%outbox_kafka%')) AS as_marked
	FROM outbox.message WHERE topic = 'segment';
UPDATE outbox.segment SET is_current = false;
SELECT outbox.current_segment();
ROLLBACK;
SELECT outbox.current_segment();

-- an index and a constraint that an administrator added are kept up
CREATE INDEX by_topic ON outbox.message_0 (topic) WHERE topic LIKE 'extra%';
ALTER TABLE outbox.message_0 ADD CONSTRAINT no_secret CHECK (topic <> 'secret');
SELECT topic FROM stored(outbox.publish('extra.1', 'x'));
\set VERBOSITY terse
SELECT outbox.publish('secret', 'x');
\set VERBOSITY default
SET enable_seqscan = off;
SELECT index_used($$SELECT topic FROM outbox.message_0 WHERE topic LIKE 'extra%'$$);
SELECT topic FROM outbox.message_0 WHERE topic LIKE 'extra%';
RESET enable_seqscan;

-- a column too many, and the extension says so instead of guessing
BEGIN;
ALTER TABLE outbox.message ADD COLUMN mine int;
SAVEPOINT s;
SELECT outbox.publish('orders', 'x');
ROLLBACK TO s;
INSERT INTO outbox.message (topic, payload) VALUES ('orders', 'x');
ROLLBACK;

-- the extension's functions without the extension
BEGIN;
CREATE FUNCTION pg_temp.publish(topic text, payload text, key text, headers jsonb, partition int, event_id uuid, correlation_id text) RETURNS uuid
	LANGUAGE c AS '$libdir/outbox_kafka', 'outbox_kafka_publish_text';
DROP EXTENSION outbox_kafka;
SELECT pg_temp.publish('a', 'x', NULL, NULL, NULL, NULL, NULL);
ROLLBACK;
SELECT topic FROM stored(outbox.publish('back.again', 'x'));

DROP FUNCTION stored(uuid);
DROP FUNCTION index_used(text);
DROP EXTENSION outbox_kafka;
