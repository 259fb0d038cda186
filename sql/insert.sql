-- A raw INSERT into outbox.message: same checks as outbox.publish(), and only
-- the columns that are the publisher's business.
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
CREATE ROLE regress_outbox_app;
SELECT outbox.grant_publish('regress_outbox_app', '{orders*}');
RESET client_min_messages;

CREATE VIEW stored AS
	SELECT topic, key, payload, headers, partition, correlation_id,
		id > 0 AS has_id, uuid_send(event_id) IS NOT NULL AS has_event,
		created_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() AS created_now
	FROM outbox.message ORDER BY id;

-- one row, several, from a query; explicit defaults in a list of several
INSERT INTO outbox.message (topic, payload) VALUES ('orders', 'one');
INSERT INTO outbox.message (topic, key, payload, headers, partition, event_id, correlation_id)
	VALUES ('orders', '\x6b', '\x00ff', '{"a": "1"}', 2, '11111111-2222-3333-4444-555555555555', 'c-1');
INSERT INTO outbox.message (topic, key, payload) VALUES ('orders', 'k', NULL), ('orders', '', ''), ('orders', DEFAULT, 'x');
INSERT INTO outbox.message (topic, payload, event_id, id, xid, segment, created_at) VALUES
	('orders', 'defaults', DEFAULT, DEFAULT, DEFAULT, DEFAULT, DEFAULT),
	('orders', 'defaults', NULL, NULL, NULL, DEFAULT, NULL);
INSERT INTO outbox.message (topic, payload) SELECT 'orders', convert_to(g::text, 'UTF8') FROM generate_series(1, 3) AS g;
SELECT * FROM stored;
SELECT count(*), count(DISTINCT id), count(DISTINCT event_id) FROM outbox.message;

-- COPY
COPY outbox.message (topic, key, payload, headers) FROM stdin;
orders	k	\\x00ff	{"a": null}
orders	\N	text	\N
\.
SELECT topic, key, payload, headers FROM stored OFFSET 10;

-- RETURNING, and the id order is the order of the rows
BEGIN;
WITH i AS (
	INSERT INTO outbox.message (topic, payload)
		SELECT 'orders', convert_to(g::text, 'UTF8') FROM generate_series(1, 1000) AS g
		RETURNING id, event_id, xid, payload)
SELECT count(*), count(DISTINCT xid) AS xids, bool_and(xid = pg_current_xact_id()) AS ours,
	max(id) - min(id) AS span, count(DISTINCT event_id) AS events,
	bool_and(id - convert_from(payload, 'UTF8')::int = (SELECT min(id) - 1 FROM i)) AS in_order
	FROM i;
ROLLBACK;
SET ROLE regress_outbox_app;
INSERT INTO outbox.message (topic, payload) VALUES ('orders.app', 'x') RETURNING id > 0 AS id, event_id IS NOT NULL AS event_id;
INSERT INTO outbox.message (topic, payload) VALUES ('orders.app', 'x') RETURNING *;
INSERT INTO outbox.message (topic, payload) VALUES ('orders.app', 'x') RETURNING payload;
COPY outbox.message (topic, payload) FROM stdin;
orders.app	from copy
\.
SELECT topic FROM outbox.message;
SELECT count(id) FROM outbox.message;
-- not into a leaf, and not the columns that are the extension's
INSERT INTO outbox.message_0 (topic, payload) VALUES ('orders.app', 'x');
INSERT INTO outbox.message (topic, payload, segment) VALUES ('orders.app', 'x', 1);
INSERT INTO outbox.message (topic, payload, id) VALUES ('orders.app', 'x', 1);
INSERT INTO outbox.message (topic, payload, xid) VALUES ('orders.app', 'x', '1');
INSERT INTO outbox.message (topic, payload, created_at) VALUES ('orders.app', 'x', now());
UPDATE outbox.message SET topic = 'y';
DELETE FROM outbox.message;
TRUNCATE outbox.message;
RESET ROLE;

-- the checks of publish()
INSERT INTO outbox.message (payload) VALUES ('x');
INSERT INTO outbox.message (topic, payload) VALUES ('', 'x');
INSERT INTO outbox.message (topic, payload) VALUES ('a b', 'x');
INSERT INTO outbox.message (topic, payload) VALUES (repeat('t', 250), 'x');
INSERT INTO outbox.message (topic) VALUES ('orders');
INSERT INTO outbox.message (topic, payload, partition) VALUES ('orders', 'x', -1);
INSERT INTO outbox.message (topic, payload, headers) VALUES ('orders', 'x', '[]');
INSERT INTO outbox.message (topic, payload, headers) VALUES ('orders', 'x', '{"b": 1}');
INSERT INTO outbox.message (topic, payload, headers) VALUES ('orders', 'x', '{"ce_id": "1"}');
INSERT INTO outbox.message (topic, payload, correlation_id) VALUES ('orders', 'x', repeat('c', 1025));
INSERT INTO outbox.message (topic, payload) VALUES ('orders', convert_to(repeat('x', 1000000), 'UTF8'));
INSERT INTO outbox.message (topic, payload) SELECT t, 'x' FROM unnest('{fine,"not fine"}'::text[]) AS t;
COPY outbox.message (topic, payload, partition) FROM stdin;
orders	x	-1
\.
SELECT count(*) FROM outbox.message WHERE topic = 'fine';

-- 900 kB
INSERT INTO outbox.message (topic, payload) SELECT 'large', convert_to(string_agg(md5(g::text), '' ORDER BY g), 'UTF8') FROM generate_series(1, 28125) AS g;
SELECT octet_length(payload), md5(payload) = md5((SELECT string_agg(md5(g::text), '' ORDER BY g) FROM generate_series(1, 28125) AS g)) AS same
	FROM outbox.message WHERE topic = 'large';

-- forged: an xid, an id or a time alone is refused, also from a superuser,
-- whatever the session's replication role
INSERT INTO outbox.message (topic, payload, id) VALUES ('forged', 'x', 1);
INSERT INTO outbox.message (topic, payload, id) OVERRIDING SYSTEM VALUE VALUES ('forged', 'x', 1);
INSERT INTO outbox.message (topic, payload, xid) VALUES ('forged', 'x', pg_current_xact_id());
INSERT INTO outbox.message (topic, payload, created_at) VALUES ('forged', 'x', '2000-01-01');
INSERT INTO outbox.message (topic, payload, segment) VALUES ('forged', 'x', 8);
INSERT INTO outbox.message (topic, payload, segment) VALUES ('forged', 'x', -1);
INSERT INTO outbox.message_1 (topic, payload, segment) VALUES ('forged', 'x', 2);
SET session_replication_role = replica;
INSERT INTO outbox.message (topic, payload, id) VALUES ('forged', 'x', 1);
INSERT INTO outbox.message (topic, payload) VALUES ('not a topic', 'x');
UPDATE outbox.message SET topic = 'forged';
DELETE FROM outbox.message;
TRUNCATE outbox.message;
RESET session_replication_role;
SELECT count(*) FROM outbox.message WHERE topic = 'forged';
-- straight into a leaf it is a message like any other
INSERT INTO outbox.message_3 (topic, payload, segment) VALUES ('leaf', 'x', 3) RETURNING xid = pg_current_xact_id() AS ours, id > 0 AS has_id;

-- what is stored stays
UPDATE outbox.message SET topic = 'changed';
UPDATE outbox.message SET topic = 'changed' WHERE false;
DELETE FROM outbox.message WHERE topic = 'orders';
TRUNCATE outbox.message;
UPDATE outbox.message_0 SET topic = 'changed';
DELETE FROM outbox.message_0;
TRUNCATE outbox.message_0;
TRUNCATE outbox.message_3, outbox.segment;
MERGE INTO outbox.message AS m USING (VALUES (1)) AS v(x) ON m.id = v.x WHEN MATCHED THEN DELETE;

-- A restored row brings xid and id: it is parked under its id, not sent.
INSERT INTO outbox.message (xid, id, segment, event_id, topic, key, payload, headers, partition, correlation_id, created_at)
	VALUES ('4711', 1000001, 2, '11111111-2222-3333-4444-555555555556', 'restored', '\x6b', '\x00ff', '{"a": "1"}', 2, 'c-1', '2024-01-01 00:00:00+00');
COPY outbox.message_3 (xid, id, segment, event_id, topic, key, payload, headers, partition, correlation_id, created_at) FROM stdin;
4712	1000002	3	11111111-2222-3333-4444-555555555557	restored	\N	\N	\N	\N	\N	2024-01-01 00:00:00+00
4712	1000003	3	11111111-2222-3333-4444-555555555558	restored	\\x	\\x	\N	\N	\N	2024-01-01 00:00:00+00
\.
SELECT count(*) FROM outbox.message WHERE topic = 'restored';
SELECT id, event_id, topic, key, payload, headers, partition, correlation_id, created_at = '2024-01-01 00:00:00+00' AS created, reason, error,
	parked_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() AS parked_now
	FROM outbox.parked_message ORDER BY id;
-- twice is one time too many
INSERT INTO outbox.message (xid, id, event_id, topic, payload, created_at)
	VALUES ('4711', 1000001, '11111111-2222-3333-4444-555555555556', 'restored', 'x', now());
-- even with the xid of this very transaction
BEGIN;
INSERT INTO outbox.message (xid, id, event_id, topic, payload, created_at)
	VALUES (pg_current_xact_id(), 1000004, gen_random_uuid(), 'restored', 'x', now());
SELECT count(*) FROM outbox.message WHERE topic = 'restored';
ROLLBACK;
-- only who owns the extension may do that
GRANT INSERT ON outbox.message TO regress_outbox_app;
SET ROLE regress_outbox_app;
INSERT INTO outbox.message (xid, id, event_id, topic, payload, created_at)
	VALUES ('4711', 1000005, gen_random_uuid(), 'orders', 'x', now());
INSERT INTO outbox.message (topic, payload, id) VALUES ('orders', 'x', 1);
RESET ROLE;

-- names that stand before pg_catalog in a search_path change nothing
CREATE SCHEMA regress_outbox_evil;
CREATE FUNCTION regress_outbox_evil.nextval(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT -1::bigint';
CREATE FUNCTION regress_outbox_evil.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR regress_outbox_evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_outbox_evil.eq);
CREATE TABLE regress_outbox_evil.message (LIKE outbox.message);
CREATE TABLE regress_outbox_evil.parked_message (LIKE outbox.parked_message);
CREATE TABLE regress_outbox_evil.publish_grant (role_name text, topics text[]);
INSERT INTO regress_outbox_evil.publish_grant VALUES ('regress_outbox_app', '{*}');
GRANT USAGE ON SCHEMA regress_outbox_evil TO regress_outbox_app;
SET search_path = regress_outbox_evil, pg_catalog, public;
INSERT INTO outbox.message (topic, payload) VALUES ('evil', 'x') RETURNING id > 0 AS has_id;
INSERT INTO outbox.message (xid, id, event_id, topic, payload, created_at)
	VALUES ('4711', 1000006, gen_random_uuid(), 'restored', 'x', now());
SET ROLE regress_outbox_app;
SELECT outbox.publish('evil', 'x'::text);
INSERT INTO outbox.message (topic, payload) VALUES ('evil', 'x');
RESET ROLE;
RESET search_path;
SELECT (SELECT count(*) FROM regress_outbox_evil.message) AS message, (SELECT count(*) FROM regress_outbox_evil.parked_message) AS parked;
SELECT count(*) FROM outbox.parked_message WHERE id = 1000006;
SET client_min_messages = error;
DROP SCHEMA regress_outbox_evil CASCADE;
RESET client_min_messages;

-- the trigger functions are for their tables only
CREATE TABLE elsewhere (LIKE outbox.message);
CREATE TRIGGER t BEFORE INSERT ON elsewhere FOR EACH ROW EXECUTE FUNCTION outbox.message_before_insert();
INSERT INTO elsewhere (topic) VALUES ('x');
SELECT outbox.message_before_insert();
DROP TABLE elsewhere;

DROP VIEW stored;
DROP EXTENSION outbox_kafka;
DROP ROLE regress_outbox_app;
