-- What the extension consists of: everything described, nothing open to
-- everybody, nothing that follows a search_path.
\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;

-- without the row types of relations and their arrays, members since 17
CREATE VIEW member AS
	SELECT classid, objid, pg_describe_object(classid, objid, 0) AS object
	FROM pg_depend
	WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'outbox_kafka')
		AND NOT (classid = 'pg_type'::regclass
			AND EXISTS (SELECT FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = t.typrelid
				WHERE t.oid = objid AND (c.relkind <> 'c' OR t.typelem <> 0)));

SELECT object FROM member ORDER BY object COLLATE "C";

-- members without a comment
SELECT object FROM member WHERE obj_description(objid, classid::regclass::name) IS NULL ORDER BY object COLLATE "C";
-- columns of tables without a comment (the leaves have those of their parent)
SELECT c.oid::regclass AS relation, a.attname
	FROM member AS m
	JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
	JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE col_description(c.oid, a.attnum) IS NULL
	ORDER BY 1, a.attnum;

-- functions that everybody may execute
SELECT p.oid::regprocedure FROM member AS m JOIN pg_proc AS p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	WHERE EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a WHERE a.grantee = 0)
	ORDER BY p.oid::regprocedure::text COLLATE "C";
-- relations and schemas that everybody may use
SELECT c.oid::regclass FROM member AS m JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
	WHERE EXISTS (SELECT FROM aclexplode(c.relacl) AS a WHERE a.grantee = 0);
SELECT n.nspname FROM pg_namespace AS n
	WHERE n.nspname IN ('outbox', 'inbox') AND EXISTS (SELECT FROM aclexplode(n.nspacl) AS a WHERE a.grantee = 0);
-- what pg_monitor got: to look, not to touch
SELECT DISTINCT m.object, a.privilege_type
	FROM member AS m
	JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid,
	aclexplode(c.relacl) AS a
	WHERE a.grantee = 'pg_monitor'::regrole ORDER BY 1, 2;

-- functions that are not C have a search_path of their own, but for two that
-- are inlined and name everything in full
SELECT p.oid::regprocedure FROM member AS m JOIN pg_proc AS p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	JOIN pg_language AS l ON l.oid = p.prolang
	WHERE l.lanname <> 'c' AND NOT coalesce(p.proconfig @> '{"search_path=pg_catalog, pg_temp"}', false);
-- functions that run with the owner's rights: few, and known
SELECT p.oid::regprocedure FROM member AS m JOIN pg_proc AS p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	WHERE p.prosecdef ORDER BY p.oid::regprocedure::text COLLATE "C";
-- publish() is volatile and stays out of parallel plans
SELECT DISTINCT provolatile, proparallel, proisstrict FROM pg_proc WHERE oid::regprocedure::text LIKE 'outbox.publish(%';

-- the tables that C reads are heap, those of messages without autovacuum
SELECT bool_and(am.amname = 'heap') AS heap
	FROM member AS m JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid AND c.relkind = 'r'
	JOIN pg_am AS am ON am.oid = c.relam;
SELECT count(*), bool_and(reloptions @> '{autovacuum_enabled=off}') AS no_autovacuum
	FROM pg_class WHERE oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox.message'::regclass);
-- each leaf has its three indexes, nothing unique, and both triggers, always on
SELECT c.relname, (SELECT string_agg(replace(i.indexrelid::regclass::text, c.relname, '') || CASE WHEN i.indisunique THEN ' unique' ELSE '' END, ', ' ORDER BY i.indexrelid) FROM pg_index AS i WHERE i.indrelid = c.oid) AS indexes,
	(SELECT string_agg(t.tgname || ' ' || t.tgenabled::text, ', ' ORDER BY t.tgname) FROM pg_trigger AS t WHERE t.tgrelid = c.oid) AS triggers
	FROM pg_class AS c WHERE c.relnamespace = 'outbox'::regnamespace AND (c.relispartition OR c.relname = 'message') AND c.relkind IN ('r', 'p')
	ORDER BY c.relname;
-- the triggers of the other tables
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
	WHERE c.relnamespace = 'outbox'::regnamespace AND c.relname NOT LIKE 'message%' AND NOT tgisinternal ORDER BY 1, 2;
-- tables that are updated have a primary key, as logical replication needs it
SELECT c.oid::regclass FROM member AS m JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid AND c.relkind = 'r' AND NOT c.relispartition
	WHERE NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary);
-- the sequence that the cursor relies on
SELECT seqstart, seqincrement, seqmin, seqcache, seqcycle FROM pg_sequence WHERE seqrelid = 'outbox.message_id'::regclass;
-- what a dump takes along
SELECT unnest(extconfig)::regclass AS relation, unnest(extcondition) AS condition FROM pg_extension WHERE extname = 'outbox_kafka';

-- a schema that is somebody else's is not touched, nor taken for ours
DROP VIEW member;
DROP EXTENSION outbox_kafka;
SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox';
CREATE SCHEMA outbox;
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;
DROP SCHEMA outbox;
-- nothing depends on where the caller looks
CREATE SCHEMA regress_outbox_evil;
CREATE FUNCTION regress_outbox_evil.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'evil'; END $$;
CREATE FUNCTION regress_outbox_evil.format(text, VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_format';
SET search_path = regress_outbox_evil, pg_catalog;
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
DROP EXTENSION outbox_kafka;
DROP SCHEMA regress_outbox_evil CASCADE;
