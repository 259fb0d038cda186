-- What outbox.expect_confirmation() and the answers check, without a relay.
\set SHOW_CONTEXT never
\set VERBOSITY default
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;
SET client_min_messages = warning;
CREATE ROLE regress_outbox_shop;
CREATE ROLE regress_outbox_thief;
SELECT outbox.grant_publish('regress_outbox_shop');
SELECT outbox.grant_publish('regress_outbox_thief');
GRANT EXECUTE ON FUNCTION outbox.confirm(text, jsonb), outbox.reject(text, text, jsonb) TO regress_outbox_shop, regress_outbox_thief;
CREATE SCHEMA shop;
GRANT ALL ON SCHEMA shop TO regress_outbox_shop, regress_outbox_thief;
CREATE FUNCTION shop.good(outbox.decision) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION shop."Odd name"(outbox.decision) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION shop.two(outbox.decision, int) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION shop.other(text) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION shop.number(outbox.decision) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shop.many(outbox.decision) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE shop.procedure(outbox.decision) LANGUAGE sql AS 'SELECT';
CREATE FUNCTION shop.secret(outbox.decision) RETURNS void LANGUAGE sql AS 'SELECT';
REVOKE EXECUTE ON FUNCTION shop.secret(outbox.decision) FROM PUBLIC;

-- nobody's by default
CREATE ROLE regress_outbox_nobody;
GRANT USAGE ON SCHEMA outbox TO regress_outbox_nobody;
SET ROLE regress_outbox_nobody;
SELECT outbox.expect_confirmation(gen_random_uuid(), '1 s');
SELECT outbox.confirm('x');
SELECT outbox.reject('x', 'y');
SELECT outbox.wait_decided('x', '0');
RESET ROLE;

SET ROLE regress_outbox_shop;
-- only what this transaction has published
SELECT outbox.publish('orders', 'x'::text, event_id => '00000000-0000-7000-8000-000000000001');
SELECT outbox.expect_confirmation('00000000-0000-7000-8000-000000000001', '1 s');
BEGIN;
SELECT outbox.publish('orders', 'x'::text, event_id => '00000000-0000-7000-8000-000000000002') \gset
SELECT outbox.expect_confirmation('00000000-0000-7000-8000-000000000001', '1 s');
ROLLBACK;
\set publish 'outbox.publish(''orders'', ''x''::text)'
SELECT outbox.expect_confirmation(NULL, '1 s');
SELECT outbox.expect_confirmation(:publish, NULL);
SELECT outbox.expect_confirmation(:publish, '0');
SELECT outbox.expect_confirmation(:publish, '-1 s');
SELECT outbox.expect_confirmation(:publish, '1 s', retry_backoff => '0');
SELECT outbox.expect_confirmation(:publish, '290000 years');
SELECT outbox.expect_confirmation(:publish, '101 years');
SELECT outbox.expect_confirmation(:publish, '1000 years -360000 days 1 s');
SELECT outbox.expect_confirmation(:publish, '1 s', retry_backoff => '2000000000 days');
SELECT outbox.expect_confirmation(:publish, '1 s', retry_backoff => '2000000000 hours');
SELECT outbox.expect_confirmation(:publish, '1 s', max_attempts => 0);
SELECT outbox.expect_confirmation(:publish, '1 s', counts_from => 'yesterday');
SELECT outbox.expect_confirmation(:publish, '1 s', answered_by => '{}');
SELECT outbox.expect_confirmation(:publish, '1 s', answered_by => '{a,NULL}');
SELECT outbox.expect_confirmation(:publish, '1 s', on_confirmed => 'shop.two');
SELECT outbox.expect_confirmation(:publish, '1 s', on_confirmed => 'shop.other');
SELECT outbox.expect_confirmation(:publish, '1 s', on_rejected => 'shop.number');
SELECT outbox.expect_confirmation(:publish, '1 s', on_rejected => 'shop.many');
SELECT outbox.expect_confirmation(:publish, '1 s', on_expired => 'shop.procedure');
SELECT outbox.expect_confirmation(:publish, '1 s', on_expired => 'shop.secret');
SELECT outbox.expect_confirmation(:publish, '1 s', on_late => 'shop.nonsense');
BEGIN READ ONLY;
SELECT outbox.expect_confirmation('00000000-0000-7000-8000-000000000001', '1 s');
ROLLBACK;

-- the correlation id: that of the message, or its event id; one at a time
SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text, event_id => '00000000-0000-7000-8000-000000000003'), '1 h');
SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text, correlation_id => 'one'), '1 h',
	'shop.good', 'shop."Odd name"', context => '{"a": 1}');
SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text, correlation_id => 'one'), '1 h');
BEGIN;
INSERT INTO outbox.message (topic, payload, correlation_id, event_id) VALUES ('orders', 'x', 'two', '00000000-0000-7000-8000-000000000004');
SELECT outbox.expect_confirmation('00000000-0000-7000-8000-000000000004', '1 h', answered_by => '{a,b}', counts_from => 'publishing');
SELECT outbox.expect_confirmation('00000000-0000-7000-8000-000000000004', '1 h');
ROLLBACK;
BEGIN;
SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text, correlation_id => 'two'), '1 h', answered_by => '{a,b}', counts_from => 'publishing');
SELECT outbox.wait_decided('two', '0');
ROLLBACK;
SELECT outbox.wait_decided('two', '0');
SELECT outbox.wait_decided('one', '0');
RESET ROLE;
SELECT correlation_id, on_confirmed, on_rejected, expected_by, context, deadline FROM outbox.confirmation ORDER BY id;

-- who may answer
SET ROLE regress_outbox_thief;
SELECT outbox.confirm('one');
SELECT outbox.wait_decided('one', '0');
SELECT outbox.confirm(NULL);
RESET ROLE;
-- only a worker can say that it is handling a message
SELECT outbox.confirm_by_message(ROW('answers', 0, 0, NULL, NULL, NULL, now(), NULL, 'one')::inbox.message);
SELECT outbox.reject_by_message(ROW('answers', 0, 0, NULL, NULL, NULL, now(), NULL, 'one')::inbox.message);

-- the first one decides
SET ROLE regress_outbox_shop;
SELECT outbox.confirm('one', '{"b": 2}');
SELECT outbox.confirm('one');
SELECT outbox.reject('one', 'too late', '{"c": 3}');
SELECT outbox.reject('one', 'again');
SELECT outbox.confirm('none of ours');
SELECT outbox.wait_decided('one', '0');
-- then its correlation id can be used again
SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text, correlation_id => 'one'), '1 h');
SELECT outbox.reject('one', repeat('x', 5000)) ;
SELECT outbox.wait_decided('one', '0');
RESET ROLE;
SELECT correlation_id, status, length(reason) AS reason, decided_by, repeated, late, late_answer
	FROM outbox.confirmations ORDER BY expected_at;
SELECT detail, late_reason, late_detail FROM outbox.confirmation WHERE late > 0;
-- no detail in the view
SELECT attname FROM pg_attribute WHERE attrelid = 'outbox.confirmations'::regclass AND attname IN ('detail', 'context', 'late_detail');

-- rolled back to a savepoint
BEGIN;
SAVEPOINT s;
SELECT outbox.confirm('00000000-0000-7000-8000-000000000003');
ROLLBACK TO s;
SELECT outbox.reject('00000000-0000-7000-8000-000000000003', 'no');
COMMIT;
SELECT outbox.wait_decided('00000000-0000-7000-8000-000000000003', '0');
-- nothing follows the caller's search_path
CREATE FUNCTION shop.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'evil'; END $$;
SET search_path = shop, pg_catalog;
SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text, correlation_id => 'three'), '1 h');
SELECT outbox.confirm('three');
SHOW search_path;
RESET search_path;

-- what a dump brings waits for adopt()
INSERT INTO outbox.confirmation (id, xid, event_id, topic, correlation_id, expected_by, expected_at, within, counts_from, deadline, max_attempts, retry_backoff)
	VALUES (1000000, '3', '00000000-0000-7000-8000-000000000005', 'orders', 'restored', 'regress_outbox_shop', now(), '1 h', 'acknowledgement', now(), 1, '1 s');
SELECT restored, deadline <= now() AS due FROM outbox.confirmations WHERE correlation_id = 'restored';
-- even with the xid of the transaction that restores it
BEGIN;
INSERT INTO outbox.confirmation (id, xid, event_id, topic, correlation_id, expected_by, expected_at, within, counts_from, deadline, max_attempts, retry_backoff)
	VALUES (1000001, pg_current_xact_id(), '00000000-0000-7000-8000-000000000006', 'orders', 'restored too', 'regress_outbox_shop', now(), '1 h', 'acknowledgement', now(), 1, '1 s');
SELECT restored FROM outbox.confirmations WHERE correlation_id = 'restored too';
ROLLBACK;
SELECT outbox.adopt();
SELECT restored, deadline > now() + interval '50 min' AS due_later FROM outbox.confirmations WHERE correlation_id = 'restored';
SELECT outbox.retry_confirmation('restored');

DROP SCHEMA shop CASCADE;
DROP EXTENSION outbox_kafka;
DROP ROLE regress_outbox_shop, regress_outbox_thief, regress_outbox_nobody;
