-- Who may publish where.
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;
\set SHOW_CONTEXT never
CREATE ROLE regress_outbox_app;
CREATE ROLE regress_outbox_member IN ROLE regress_outbox_app;
CREATE ROLE regress_outbox_noinherit NOINHERIT;
GRANT regress_outbox_app TO regress_outbox_noinherit;
CREATE ROLE regress_outbox_other;

-- Try both ways of publishing, and say what came of it.
CREATE FUNCTION try(topic text, OUT publish text, OUT "insert" text) LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM outbox.publish(topic, 'x');
		publish := 'ok';
	EXCEPTION WHEN insufficient_privilege THEN
		publish := sqlerrm;
	END;
	BEGIN
		INSERT INTO outbox.message (topic, payload) VALUES (try.topic, 'x');
		insert := 'ok';
	EXCEPTION WHEN insufficient_privilege THEN
		insert := sqlerrm;
	END;
END
$$;
GRANT EXECUTE ON FUNCTION try(text) TO PUBLIC;

-- nobody at first
SET ROLE regress_outbox_app;
SELECT * FROM try('orders');
RESET ROLE;

-- all topics
SELECT outbox.grant_publish('regress_outbox_app');
SELECT * FROM outbox.publish_grant;
SET ROLE regress_outbox_app;
SELECT * FROM try('orders');
SELECT * FROM try('anything.else');
SET ROLE regress_outbox_other;
SELECT * FROM try('orders');
RESET ROLE;

-- another grant replaces the one before
SELECT outbox.grant_publish('regress_outbox_app', '{orders,billing.*,*-dlq,a*b*c}');
SELECT * FROM outbox.publish_grant;
SET ROLE regress_outbox_app;
SELECT t AS topic, publish FROM unnest('{orders,billing.,billing.paid,x-dlq,-dlq,abc,aXbYc,aabbcc,abcbc}'::text[]) AS t, try(t);
SELECT t AS topic, publish FROM unnest('{Orders,orders2,xorders,billing,xbilling.paid,billingXpaid,x-dlq2,ab,acb,abcX}'::text[]) AS t, try(t);
SELECT outbox.publish('billing', 'x');
INSERT INTO outbox.message (topic, payload) VALUES ('billing', 'x');
INSERT INTO outbox.message (topic, payload) VALUES ('orders', 'x'), ('billing', 'x');

-- a member may as well, but only one who inherits
SET ROLE regress_outbox_member;
SELECT * FROM try('orders');
SELECT * FROM try('billing');
SET ROLE regress_outbox_noinherit;
SELECT * FROM try('orders');
RESET ROLE;

-- membership gained and lost, in one session
GRANT regress_outbox_app TO regress_outbox_other;
SET ROLE regress_outbox_other;
SELECT * FROM try('orders');
RESET ROLE;
REVOKE regress_outbox_app FROM regress_outbox_other;
SET ROLE regress_outbox_other;
SELECT * FROM try('orders');
RESET ROLE;

-- EXECUTE and INSERT given by hand are not enough
GRANT USAGE ON SCHEMA outbox TO regress_outbox_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO regress_outbox_other;
GRANT INSERT ON outbox.message TO regress_outbox_other;
SET ROLE regress_outbox_other;
SELECT * FROM try('orders');
RESET ROLE;
-- nor is a grant in the table alone
REVOKE ALL ON SCHEMA outbox FROM regress_outbox_other;
INSERT INTO outbox.publish_grant VALUES ('regress_outbox_other', '{*}');
SET ROLE regress_outbox_other;
SELECT * FROM try('orders');
RESET ROLE;
GRANT USAGE ON SCHEMA outbox TO regress_outbox_other;
SET ROLE regress_outbox_other;
SELECT * FROM try('orders');
RESET ROLE;
-- the table changed directly, with triggers of the origin off
SET session_replication_role = replica;
UPDATE outbox.publish_grant SET topics = '{billing}' WHERE role_name = 'regress_outbox_other';
RESET session_replication_role;
SET ROLE regress_outbox_other;
SELECT * FROM try('orders');
SELECT * FROM try('billing');
RESET ROLE;
TRUNCATE outbox.publish_grant;
SET ROLE regress_outbox_other;
SELECT * FROM try('billing');
RESET ROLE;
REVOKE ALL ON SCHEMA outbox FROM regress_outbox_other;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM regress_outbox_other;
REVOKE ALL ON outbox.message FROM regress_outbox_other;

-- a grant that is rolled back was none, a revoke that is rolled back neither
BEGIN;
SELECT outbox.grant_publish('regress_outbox_app');
SET LOCAL ROLE regress_outbox_app;
SELECT * FROM try('orders');
ROLLBACK;
SET ROLE regress_outbox_app;
SELECT * FROM try('orders');
RESET ROLE;
BEGIN;
SAVEPOINT s;
SELECT outbox.grant_publish('regress_outbox_app');
SET LOCAL ROLE regress_outbox_app;
SELECT * FROM try('orders');
ROLLBACK TO s;
SET LOCAL ROLE regress_outbox_app;
SELECT * FROM try('orders');
ROLLBACK;
SELECT outbox.grant_publish('regress_outbox_app', '{orders}');
BEGIN;
SELECT outbox.revoke_publish('regress_outbox_app');
SET LOCAL ROLE regress_outbox_app;
SELECT * FROM try('orders');
ROLLBACK;
SET ROLE regress_outbox_app;
SELECT * FROM try('orders');
RESET ROLE;

-- SECURITY DEFINER: its owner publishes, not its caller
CREATE FUNCTION publish_for_you(topic text) RETURNS boolean SECURITY DEFINER LANGUAGE sql
	AS $$ SELECT outbox.publish(topic, 'x'::text) IS NOT NULL $$;
ALTER FUNCTION publish_for_you(text) OWNER TO regress_outbox_app;
GRANT EXECUTE ON FUNCTION publish_for_you(text) TO regress_outbox_other;
SET ROLE regress_outbox_other;
SELECT publish_for_you('orders');
SELECT publish_for_you('billing');
RESET ROLE;
DROP FUNCTION publish_for_you(text);

-- the grant goes with the role's name
ALTER ROLE regress_outbox_app RENAME TO regress_outbox_renamed;
SET ROLE regress_outbox_renamed;
SELECT * FROM try('orders');
RESET ROLE;
ALTER ROLE regress_outbox_renamed RENAME TO regress_outbox_app;
SET ROLE regress_outbox_app;
SELECT * FROM try('orders');
RESET ROLE;

-- a superuser may, always
SELECT * FROM try('anything');
ALTER ROLE regress_outbox_other SUPERUSER;
SET ROLE regress_outbox_other;
SELECT * FROM try('anything');
RESET ROLE;
ALTER ROLE regress_outbox_other NOSUPERUSER;
SET ROLE regress_outbox_other;
SELECT * FROM try('anything');
RESET ROLE;

-- more topics than are remembered
SELECT outbox.grant_publish('regress_outbox_app', '{many.*}');
SET ROLE regress_outbox_app;
SELECT count(outbox.publish('many.' || g % 5000, 'x')) FROM generate_series(1, 10000) AS g;
SELECT * FROM try('orders');
RESET ROLE;
SELECT count(DISTINCT topic) FROM outbox.message WHERE topic LIKE 'many.%';

-- revoked, and nothing is left behind
SELECT outbox.revoke_publish('regress_outbox_app');
SET ROLE regress_outbox_app;
SELECT * FROM try('many.1');
RESET ROLE;
SELECT * FROM outbox.publish_grant;
SELECT has_table_privilege('regress_outbox_app', 'outbox.message', 'INSERT') AS insert,
	has_any_column_privilege('regress_outbox_app', 'outbox.message', 'INSERT, SELECT') AS columns,
	has_function_privilege('regress_outbox_app', 'outbox.publish(text, jsonb, text, jsonb, int, uuid, text)', 'EXECUTE') AS execute,
	has_schema_privilege('regress_outbox_app', 'outbox', 'USAGE') AS schema;
-- unless the role has other business there
SELECT outbox.grant_publish('regress_outbox_app');
GRANT SELECT ON outbox.pending TO regress_outbox_app;
SELECT outbox.revoke_publish('regress_outbox_app');
SELECT has_schema_privilege('regress_outbox_app', 'outbox', 'USAGE') AS schema;
REVOKE SELECT ON outbox.pending FROM regress_outbox_app;
SELECT outbox.revoke_publish('regress_outbox_app');
SELECT has_schema_privilege('regress_outbox_app', 'outbox', 'USAGE') AS schema;

-- what grant_publish() refuses
SELECT outbox.grant_publish('regress_outbox_nobody');
SELECT outbox.grant_publish('regress_outbox_app', '{}');
SELECT outbox.grant_publish('regress_outbox_app', NULL);
SELECT outbox.grant_publish('regress_outbox_app', '{orders,NULL}');
SELECT outbox.grant_publish(0::oid::regrole);
SELECT outbox.grant_publish(NULL);
SELECT outbox.revoke_publish(NULL);
-- nor does it serve who may only publish
SELECT outbox.grant_publish('regress_outbox_app', '{orders}');
SET ROLE regress_outbox_app;
SELECT outbox.grant_publish('regress_outbox_app');
SELECT outbox.revoke_publish('regress_outbox_other');
UPDATE outbox.publish_grant SET topics = '{*}';
SELECT * FROM outbox.publish_grant;
RESET ROLE;
SELECT outbox.revoke_publish('regress_outbox_app');
-- a name that has to be quoted
CREATE ROLE "regress outbox ""odd""";
SELECT outbox.grant_publish('"regress outbox ""odd"""');
SET ROLE "regress outbox ""odd""";
SELECT * FROM try('orders');
RESET ROLE;
SELECT outbox.revoke_publish('"regress outbox ""odd"""');

-- roles that may not publish any more can be dropped
DROP ROLE regress_outbox_app, regress_outbox_member, regress_outbox_noinherit, regress_outbox_other, "regress outbox ""odd""";
DROP FUNCTION try(text);
DROP EXTENSION outbox_kafka;
