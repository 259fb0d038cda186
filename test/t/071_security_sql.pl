
# What SQL can do to the extension, and to the server through it. Hostile names
# that come first in a search_path (operators, functions, types, temporary
# tables), for the installation, for every function, trigger and view, and for
# the relay. Every privilege on every object, tried as a role with none and as
# one that may publish. Settings that would make the server read a file, run
# code or give up a promise.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::MockBroker;
use PostgreSQL::Test::Utils;

my $broker = OutboxTest::MockBroker->new(topics => { orders => 2 });
my $node = new_node('sql', kafka => $broker);
$node->safe_psql('postgres', 'CREATE ROLE nobody; CREATE ROLE app; CREATE ROLE other; CREATE ROLE owner');

# ---------------------------------------------------------------------------
# A schema full of traps
# ---------------------------------------------------------------------------

my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

# Whatever of it is called counts in a sequence (which no rollback takes back)
# and fails. Operators and functions have the names and argument types of
# those that the extension's statements use, and as a bait more exact ones for
# those that take "any"; types are domains that check the same way.
my $traps = q{
	CREATE SCHEMA evil;
	CREATE SEQUENCE evil.sprung;
	CREATE FUNCTION evil.spring() RETURNS boolean LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM pg_catalog.nextval('evil.sprung');
			RAISE EXCEPTION 'a trap was sprung' USING ERRCODE = 'ZZ001';
		END $$;
	DO $do$
	DECLARE
		body constant text := $$ BEGIN PERFORM evil.spring(); RETURN NULL; END $$;
		types constant regtype[] := '{text,bigint,integer,smallint,boolean,uuid,xid8,xid,oid,bytea,jsonb,
			timestamptz,interval,name,regclass,regrole,regprocedure,regnamespace,text[],aclitem[],pg_snapshot}';
		r record;
		t regtype;
	BEGIN
		FOR r IN
			SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS result, row_number() OVER () AS n
			FROM pg_operator AS o
			WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprkind = 'b'
				AND o.oprname IN ('=', '<>', '<', '<=', '>', '>=', '||', '+', '-', '~', '~~', '@>')
				AND o.oprleft = ANY (types) AND o.oprright = ANY (types)
		LOOP
			EXECUTE format('CREATE FUNCTION evil.operator_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', r.n, r.l, r.r, r.result, body);
			EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.operator_%s)', r.oprname, r.l, r.r, r.n);
		END LOOP;
		FOR r IN
			SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
			FROM pg_proc AS p
			WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
				AND p.proname IN ('now', 'clock_timestamp', 'statement_timestamp', 'md5', 'nextval', 'currval', 'setval',
					'current_database', 'array_position', 'cardinality', 'aclexplode', 'generate_series', 'unnest', 'quote_ident',
					'quote_literal', 'pg_visible_in_snapshot', 'pg_current_snapshot', 'pg_current_xact_id', 'pg_current_xact_id_if_assigned',
					'pg_snapshot_xmin', 'pg_snapshot_xmax', 'set_config', 'current_setting', 'convert_to', 'length', 'octet_length',
					'pg_extension_config_dump', 'textin', 'regclassin', 'int8eq', 'texteq', 'uuid_eq', 'has_schema_privilege',
					'gen_random_uuid', 'timestamptz_mi', 'int4', 'int8', 'text', 'jsonb_build_object', 'to_jsonb', 'pg_notify')
		LOOP
			BEGIN
				EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', r.proname, r.arguments, r.result,
					CASE WHEN r.result LIKE 'SETOF%' OR r.result LIKE 'TABLE%' OR r.arguments LIKE '%OUT %'
						THEN $$ BEGIN PERFORM evil.spring(); END $$ ELSE body END);
			EXCEPTION WHEN OTHERS THEN
				RAISE NOTICE 'no trap for %(%): %', r.proname, r.arguments, sqlerrm;
			END;
		END LOOP;
		FOREACH t IN ARRAY types LOOP
			FOREACH r.proname IN ARRAY '{format,concat,count}'::text[] LOOP
				EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS text LANGUAGE plpgsql AS %L', r.proname, t, body);
				EXECUTE format('CREATE FUNCTION evil.%I(text, %s) RETURNS text LANGUAGE plpgsql AS %L', r.proname, t, body);
				EXECUTE format('CREATE FUNCTION evil.%I(text, text, %s) RETURNS text LANGUAGE plpgsql AS %L', r.proname, t, body);
			END LOOP;
			CONTINUE WHEN t::text LIKE '%[]';
			EXECUTE format('CREATE DOMAIN evil.%I AS %s CHECK (evil.spring())', (SELECT typname FROM pg_type WHERE oid = t), t);
		END LOOP;
	END $do$;
	CREATE TABLE evil.message (topic text);
	CREATE TABLE evil.parked_message (id bigint);
	CREATE TABLE evil.relay_control (topic text);
	CREATE TABLE evil.relay_state (cursor_id int);
	CREATE TABLE evil.publish_grant (role_name text, topics text[]);
	CREATE TABLE evil.pg_roles (oid oid, rolname text);
	CREATE TABLE evil.pg_proc (oid oid);
	CREATE TABLE evil.pg_class (oid oid);
	CREATE TABLE evil.pg_database (oid oid, datname text);
	GRANT ALL ON SCHEMA evil TO PUBLIC;
	GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC;
	GRANT ALL ON SEQUENCE evil.sprung TO PUBLIC;
};
# And first of all: a session's own temporary tables.
my $temporary = join '', map { "CREATE TEMP TABLE $_ (oid oid, topic text, id bigint, rolname text);" }
  qw(message parked_message relay_control relay_state relay_position publish_grant segment pg_roles pg_proc pg_class pg_attribute pg_database);

sub sprung
{
	my ($database) = @_;
	return $node->safe_psql($database, 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM evil.sprung');
}

# The installation, by a superuser who has the traps first in the search_path.
$node->safe_psql('postgres', 'CREATE DATABASE trapped');
$node->safe_psql('trapped', $traps);
is(sprung('trapped'), 0, 'the traps are set');
cmp_ok(
	$node->safe_psql('trapped', q{SELECT count(*) FROM pg_operator WHERE oprnamespace = 'evil'::regnamespace}),
	'>', 80, 'shadowed operators');
cmp_ok(
	$node->safe_psql('trapped', q{SELECT count(DISTINCT proname) FROM pg_proc WHERE pronamespace = 'evil'::regnamespace AND proname NOT LIKE 'operator%'}),
	'>', 30, 'shadowed functions');
$node->safe_psql('trapped', 'SET search_path = evil, pg_catalog; CREATE EXTENSION outbox_kafka');
is(sprung('trapped'), 0, 'CREATE EXTENSION springs none');

# Every function, trigger and view, as a superuser and as a publisher.
# (Parameters have pg_catalog's types: a caller's own expressions are his.)
my $path = "$temporary SET search_path = evil, pg_catalog, pg_temp;";
sub run_trapped
{
	my ($name, $sql) = @_;
	my ($code, $stdout, $stderr) = $node->psql('trapped', "SET client_min_messages = error; $path $sql", on_error_stop => 1);
	is($code, 0, "$name: it works") or diag($stderr);
	is(sprung('trapped'), 0, "$name: no trap is sprung");
	return $stdout;
}

run_trapped('grant_publish', q{SELECT outbox.grant_publish('app', '{orders,parked*}'); SELECT outbox.grant_publish('other', '{x}')});
run_trapped('revoke_publish', q{SELECT outbox.revoke_publish('other')});
for my $role ($superuser, 'app')
{
	run_trapped("publish as $role", qq{
		SET ROLE "$role";
		SELECT outbox.publish('orders', '{"a": 1}'::pg_catalog.jsonb, 'k'::pg_catalog.text);
		SELECT outbox.publish('orders', '{"a": 1}'::pg_catalog.json, 'k'::pg_catalog.text);
		SELECT outbox.publish('orders', 'x'::pg_catalog.text, 'k'::pg_catalog.text, '{"h": ["1", null]}'::pg_catalog.jsonb, 0, '11111111-2222-3333-4444-555555555555'::pg_catalog.uuid, 'c'::pg_catalog.text);
		SELECT outbox.publish('orders', '\\x00'::pg_catalog.bytea, 'k'::pg_catalog.text);
		SELECT outbox.publish('orders', '\\x00'::pg_catalog.bytea, '\\x6b'::pg_catalog.bytea)});
	run_trapped("INSERT as $role", qq{
		SET ROLE "$role";
		INSERT INTO outbox.message (topic, key, payload, headers) VALUES ('orders', 'k', 'x', '{"h": "1"}') RETURNING id, event_id});
	run_trapped("expect_confirmation as $role", qq{
		SET ROLE "$role";
		SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::pg_catalog.text, correlation_id => 'c $role'), '1 h',
			answered_by => '{a}', context => '{}', counts_from => 'publishing');
		SELECT outbox.wait_decided('c $role', '0');
		RESET ROLE;
		SELECT outbox.confirm('c $role', '{}'); SELECT outbox.confirm('c $role', '{}'); SELECT outbox.reject('c $role', 'no', '{}');
		SELECT outbox.wait_decided('c $role', '0')});
}
run_trapped('a restored row', q{
	INSERT INTO outbox.message (xid, id, event_id, topic, payload, created_at)
		VALUES ('4711', 1000001, '11111111-2222-3333-4444-555555555556', 'parked', 'x', '2024-01-01 00:00:00+00')});
run_trapped('status and wait_published', q{
	SELECT outbox.status('11111111-2222-3333-4444-555555555555'::pg_catalog.uuid);
	SELECT outbox.wait_published('11111111-2222-3333-4444-555555555555'::pg_catalog.uuid, '10 s'::pg_catalog.interval)});
run_trapped('pause and resume', 'SELECT outbox.pause(); SELECT outbox.resume()');
# Whatever else steers, with values that do not occur; nothing is called that
# the relay alone or a trigger calls.
my @calls = split /\n/, $node->safe_psql('trapped', q{
	SELECT format('SELECT %s(%s)', p.oid::regproc, (
		SELECT string_agg(CASE t.type WHEN 'text'::regtype THEN $$'no.such.topic'$$ WHEN 'uuid'::regtype THEN $$'11111111-2222-3333-4444-555555555550'$$
				WHEN 'bigint'::regtype THEN '0' WHEN 'integer'::regtype THEN '0' WHEN 'xid8'::regtype THEN $$'3'$$ ELSE 'NULL' END
				|| '::' || replace(format_type(t.type, NULL), 'timestamp with time zone', 'pg_catalog.timestamptz'), ', ' ORDER BY t.n)
		FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t(type, n)))
	FROM pg_proc AS p
	WHERE p.pronamespace = 'outbox'::regnamespace AND p.prorettype <> 'trigger'::regtype
		AND p.proname NOT IN ('publish', 'grant_publish', 'revoke_publish', 'wait_published', 'pause', 'adopt', 'discard_topic', 'expect_confirmation')
	ORDER BY 1});
cmp_ok(scalar @calls, '>', 8, 'more functions');
for my $call (@calls)
{
	$call =~ s/::(text|uuid|xid8|interval|jsonb|regrole|bytea)\b/::pg_catalog.$1/g;
	run_trapped($call, $call);
}
run_trapped('discard_topic', q{SELECT outbox.pause('no.such.topic'::pg_catalog.text);
	SELECT outbox.discard_topic('no.such.topic'::pg_catalog.text); SELECT outbox.resume('no.such.topic'::pg_catalog.text)});
run_trapped('adopt', 'SELECT outbox.adopt()');
my @views = split /\n/, $node->safe_psql('trapped',
	q{SELECT c.oid::regclass FROM pg_class AS c WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('v', 'r', 'p') ORDER BY 1});
cmp_ok(scalar(grep { /status|pending|parked/ } @views), '>=', 5, 'views');
run_trapped("SELECT from $_", "SELECT * FROM $_") for @views;
# What a dump runs: the conditions of the extension's configuration tables.
my $conditions = $node->safe_psql('trapped', q{
	SELECT string_agg(format('SELECT * FROM %s AS t %s', t.relation, t.condition), '; ')
	FROM (SELECT unnest(extconfig)::regclass AS relation, unnest(extcondition) AS condition
		FROM pg_extension WHERE extname = 'outbox_kafka') AS t});
like($conditions, qr/is_delivered/, 'conditions of a dump');
run_trapped('conditions of a dump', $conditions);

# The relay, with the traps in the search_path of its database and of its user.
$node->safe_psql('trapped', q{
	ALTER DATABASE trapped SET search_path = evil, pg_catalog;
	ALTER ROLE CURRENT_USER SET search_path = evil, pg_catalog});
$node->restart;
$node->safe_psql('trapped', q{
	SET search_path = pg_catalog;
	SELECT outbox.publish('orders', i::text, 'k') FROM generate_series(1, 100) AS i;
	SELECT outbox.publish('orders', 'no such partition', 'p', partition => 7);
	SELECT outbox.publish('orders', 'behind', 'p')});
wait_until(
	'the relay has sent all and parked two',
	sub {
		return $node->safe_psql('trapped', q{
			SET search_path = pg_catalog;
			SELECT (SELECT count(*) FROM outbox.pending) = 0 AND (SELECT count(*) FROM outbox.parked WHERE topic = 'orders') = 2}) eq 't';
	});
$node->safe_psql('trapped', q{
	SET search_path = pg_catalog;
	SELECT outbox.retry('orders'); SELECT outbox.discard(event_id) FROM outbox.parked WHERE reason = 'refused'});
wait_until('nothing of the topic is parked',
	sub { $node->safe_psql('trapped', q{SET search_path = pg_catalog; SELECT count(*) FROM outbox.parked WHERE topic = 'orders'}) eq '0' });
$node->safe_psql('trapped', 'ALTER DATABASE trapped RESET search_path; ALTER ROLE CURRENT_USER RESET search_path');
is($node->safe_psql('trapped', 'SELECT CASE WHEN is_called THEN 1 ELSE 0 END FROM evil.sprung'), 0, 'the relay springs none');

# That the traps are not asleep:
for my $bait (q{'a'::pg_catalog.text = 'b'::pg_catalog.text}, q{now()}, q{'1'::text}, q{format('%s', 'x'::pg_catalog.text)})
{
	my $before = sprung('trapped');
	$node->psql('trapped', "$path SELECT $bait");
	cmp_ok(sprung('trapped'), '>', $before, "a trap that is stepped on springs: $bait");
}

# ---------------------------------------------------------------------------
# Privileges
# ---------------------------------------------------------------------------

new_database($node, 'a');
# Who owns a database is nobody in the extension.
$node->safe_psql('a', q{
	ALTER DATABASE a OWNER TO owner;
	SELECT outbox.grant_publish('app', '{orders}');
	SELECT outbox.pause();
	SELECT outbox.publish('orders', 'payload', 'k', event_id => '11111111-2222-3333-4444-555555555555');
	INSERT INTO outbox.message (xid, id, event_id, topic, payload, created_at)
		VALUES ('4711', 1000001, '11111111-2222-3333-4444-555555555556', 'orders', 'x', now());
	CREATE FUNCTION public.attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE statement;
		RAISE EXCEPTION USING ERRCODE = 'ZZ002', MESSAGE = 'done';
	EXCEPTION
		WHEN insufficient_privilege THEN RETURN 'denied';
		WHEN SQLSTATE 'ZZ002' THEN RETURN 'done';
		WHEN OTHERS THEN RETURN 'reached: ' || sqlerrm;
	END $$;
	CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'});

# Every object with everything that can be done to it, as statements.
$node->safe_psql('a', q{
	CREATE TABLE public.statement AS
	WITH relation AS (
		SELECT c.oid, c.oid::regclass::text AS name, c.relkind FROM pg_class AS c
		WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S', 'm', 'f'))
	SELECT name AS object, s.statement
	FROM relation, LATERAL (
		SELECT format(f, name) FROM unnest(CASE WHEN relkind = 'S'
			THEN ARRAY['SELECT * FROM %s', $$SELECT nextval('%s')$$, $$SELECT setval('%s', 1)$$, 'ALTER SEQUENCE %s INCREMENT 2', 'DROP SEQUENCE %s']
			ELSE ARRAY['SELECT 1 FROM %s', 'SELECT * FROM %s', 'INSERT INTO %s DEFAULT VALUES', 'DELETE FROM %s', 'TRUNCATE %s',
				'LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', 'LOCK TABLE %s IN SHARE MODE', 'LOCK TABLE %s IN ROW EXCLUSIVE MODE', 'LOCK TABLE %s IN ACCESS SHARE MODE',
				'ALTER TABLE %s RENAME TO gone', 'DROP TABLE %s', 'ALTER TABLE %s DISABLE TRIGGER ALL',
				'SELECT 1 FROM %s FOR UPDATE', 'CREATE RULE r AS ON INSERT TO %s DO INSTEAD NOTHING',
				'CREATE TRIGGER t BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION public.nothing()',
				'CREATE INDEX ON %s ((1))', 'ALTER TABLE %s ENABLE ROW LEVEL SECURITY', 'COMMENT ON TABLE %s IS NULL'] END) AS f
		UNION ALL
		SELECT format(f, name, a.attname, format_type(a.atttypid, a.atttypmod))
		FROM pg_attribute AS a, unnest(ARRAY['SELECT %2$I FROM %1$s', 'UPDATE %1$s SET %2$I = NULL::%3$s', 'INSERT INTO %1$s (%2$I) VALUES (NULL::%3$s)']) AS f
		WHERE relkind <> 'S' AND a.attrelid = relation.oid AND a.attnum > 0 AND NOT a.attisdropped) AS s(statement)
	WHERE NOT (relkind = 'v' AND statement ~ '^(COMMENT|CREATE TRIGGER|CREATE INDEX|TRUNCATE|DROP)') -- no such thing
	UNION ALL
	SELECT p.oid::regprocedure::text, s.statement
	FROM pg_proc AS p, LATERAL (
		SELECT format(f, p.oid::regproc, coalesce((SELECT string_agg(CASE WHEN NOT p.proisstrict THEN 'NULL' -- a strict function of NULL is not called
				WHEN t.type = 'uuid'::regtype THEN $$'11111111-2222-3333-4444-555555555556'$$ WHEN t.type = 'text'::regtype THEN $$'orders'$$
				WHEN t.type = 'inbox.message'::regtype THEN $$'(,,,,,,,,)'$$
				ELSE $$'0'$$ END || '::' || format_type(t.type, NULL), ', ' ORDER BY t.n)
			FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t(type, n)), ''), p.oid::regprocedure)
		FROM unnest(CASE WHEN p.prorettype = 'trigger'::regtype
			THEN ARRAY['CREATE TRIGGER t BEFORE INSERT ON pg_temp.mine FOR EACH ROW EXECUTE FUNCTION %1$s()', 'DROP FUNCTION %3$s']
			ELSE ARRAY['SELECT %1$s(%2$s)', 'SELECT * FROM %1$s(%2$s)', 'DROP FUNCTION %3$s', 'ALTER FUNCTION %3$s SECURITY DEFINER'] END) AS f) AS s(statement)
	WHERE p.pronamespace = 'outbox'::regnamespace
	UNION ALL
	SELECT 'schema', unnest(ARRAY['CREATE TABLE outbox.mine (x int)', 'CREATE FUNCTION outbox.mine() RETURNS int LANGUAGE sql AS $$SELECT 1$$',
		'CREATE TYPE outbox.mine AS (x int)', 'DROP SCHEMA outbox CASCADE', 'ALTER SCHEMA outbox RENAME TO mine', 'DROP EXTENSION outbox_kafka CASCADE',
		'ALTER EXTENSION outbox_kafka ADD FUNCTION public.nothing()'])
	UNION ALL
	SELECT 'settings', format('SET %s = %L', name, CASE vartype WHEN 'string' THEN '' ELSE setting END)
		FROM pg_settings WHERE name LIKE 'outbox_kafka.%' AND context IN ('superuser', 'user')
	UNION ALL
	SELECT 'settings', format('ALTER DATABASE a SET %s = %L', name, CASE vartype WHEN 'string' THEN '' ELSE setting END)
		FROM pg_settings WHERE name LIKE 'outbox_kafka.%'
	UNION ALL
	SELECT 'settings', unnest(ARRAY['SHOW outbox_kafka.producer_config', 'SHOW outbox_kafka.config_file'])
	UNION ALL
	SELECT 'directly', unnest(ARRAY[$$SELECT outbox.discard('11111111-2222-3333-4444-555555555556')$$, $$SELECT outbox.retry('orders')$$,
		'SELECT outbox.adopt()', 'SELECT outbox.pause()', 'SELECT outbox.resume()', $$SELECT outbox.grant_publish('app', '{*}')$$,
		$$SELECT outbox.status('11111111-2222-3333-4444-555555555555')$$,
		$$UPDATE outbox.relay_position SET position = 1000000$$, $$UPDATE outbox.relay_state SET tail_id = 1000000$$,
		$$DELETE FROM outbox.relay_control$$, $$CREATE FUNCTION pg_temp.f() RETURNS smallint LANGUAGE c AS '$libdir/outbox_kafka', 'outbox_kafka_current_segment'$$])});
cmp_ok($node->safe_psql('a', 'SELECT count(*) FROM public.statement'), '>', 700, 'statements to try');

# What came of it, other than denied: [statement, outcome], in order.
sub attempts
{
	my ($role, $condition) = @_;
	$condition //= 'true';
	return split /\n/, $node->safe_psql('a', qq{
		SET client_min_messages = error;
		SET ROLE "$role";
		CREATE TEMP TABLE mine (x int);
		SELECT s.statement || ' -> ' || t.outcome
		FROM public.statement AS s, LATERAL (SELECT public.attempt(s.statement) OFFSET 0) AS t(outcome)
		WHERE $condition AND t.outcome <> 'denied' ORDER BY 1});
}

# A superuser reaches nearly all of it: what is denied below is denied for want
# of a privilege, not for a mistake in the statement.
# (setval() is not rolled back.)
$node->safe_psql('a', 'GRANT SELECT ON public.statement TO PUBLIC');
my @reached = attempts($superuser, q{s.statement NOT LIKE '%setval%'});
cmp_ok(scalar @reached, '>', 700, 'a superuser gets through');

is_deeply([ attempts('nobody') ], [], 'a role without grants is denied everything');
# (Settings that no database has of its own are refused with another error.)
my @owner = grep { !/^ALTER DATABASE .* cannot be changed/ } attempts('owner');
is_deeply(\@owner, [], 'so is the owner of the database');

my @allowed = (
	qr/^SELECT (id|event_id) FROM outbox\.message -> done$/,
	qr/^SELECT 1 FROM outbox\.message -> done$/,
	qr/^INSERT INTO outbox\.message \((topic|key|payload|headers|partition|event_id|correlation_id)\) VALUES .* -> reached: topic must not be NULL$/,
	qr/^INSERT INTO outbox\.message DEFAULT VALUES -> reached: topic must not be NULL$/,
	qr/^SELECT (\* FROM )?outbox\.publish\(NULL.* -> reached: topic must not be NULL$/,
	qr/^SELECT (\* FROM )?outbox\.expect_confirmation\(NULL.* -> reached: event_id must not be NULL$/,
	qr/^SELECT (\* FROM )?outbox\.wait_decided\('orders'.* -> done$/,
	qr/^SELECT (\* FROM )?outbox\.(confirm|reject)_by_message\(.* -> reached: outbox\.\w+_by_message\(\) is called by inbox workers only$/,
	qr/^SELECT (\* FROM )?outbox\.current_segment\(\) -> done$/);
my @app = grep { !/ -> reached: cannot (insert into|update|delete from) view / } attempts('app');
my @too_much = grep { my $line = $_; !grep { $line =~ $_ } @allowed } @app;
is(join("\n", @too_much), '', 'a role that may publish may do that and no more');
for my $pattern (@allowed)
{
	cmp_ok(scalar(grep { $_ =~ $pattern } @app), '>', 0, "and that it may: $pattern");
}
is($node->safe_psql('a', q{SELECT string_agg(topic, ',') FROM outbox.relay_control}), '*', 'the relay is still paused');
is($node->safe_psql('a', q{SELECT count(*) FROM outbox.parked}), '1', 'what is parked is still parked');
# (The superuser's DROP EXTENSION, rolled back to a savepoint, made it start anew.)
is(wait_state($node, 'a', 'paused')->{state}, 'paused', 'and the relay says so');

# The same by the catalogs, in case a statement above was badly chosen.
for my $role ('nobody', 'app', 'owner')
{
	is($node->safe_psql('a', qq{
		SELECT string_agg(format('%s %s', c.oid::regclass, privilege), ', ')
		FROM pg_class AS c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS privilege
		WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v')
			AND has_table_privilege('$role', c.oid, privilege)}), '', "$role has no privilege on a whole table");
	is($node->safe_psql('a', qq{
		SELECT string_agg(format('%s', c.oid::regclass), ', ') FROM pg_class AS c
		WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v')
			AND has_any_column_privilege('$role', c.oid, 'UPDATE, REFERENCES')}), '', "$role changes and references no column");
	is($node->safe_psql('a', qq{
		SELECT string_agg(format('%s', p.oid::regprocedure), ', ')
		FROM pg_proc AS p
		WHERE p.pronamespace = 'outbox'::regnamespace AND has_function_privilege('$role', p.oid, 'EXECUTE')
			AND NOT (p.proname IN ('publish', 'expect_confirmation', 'wait_decided', 'confirm_by_message', 'reject_by_message') AND '$role' = 'app') AND p.proname <> 'current_segment'}), '', "$role executes nothing else");
}

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------

# Also a superuser's slip is refused, whichever way it comes. test/unit walks
# through all properties; here one of each kind, and the text of the error.
my %refused = (
	'sasl.password=x' => qr/"sasl\.password" can be set in outbox_kafka\.config_file only: it is a secret/,
	'ssl.key.password=x' => qr/config_file only: it is a secret/,
	'ssl.ca.location=/etc/passwd' => qr/config_file only: it makes the server read a file/,
	'sasl.oauthbearer.token.endpoint.url=http://127.0.0.1/' => qr/config_file only: it holds credentials or makes the server call an address/,
	'sasl.kerberos.principal=$(id)' => qr/config_file only: it becomes part of a shell command/,
	'sasl.kerberos.kinit.cmd=id' => qr/cannot be set: it is a shell command/,
	'plugin.library.paths=/tmp/x' => qr/cannot be set: it loads or runs code/,
	'ssl.engine.location=/tmp/x' => qr/cannot be set: it loads or runs code/,
	'enable.idempotence=false' => qr/cannot be set: it is always on/,
	'acks=0' => qr/cannot be set: it is always "all"/,
	'message.timeout.ms=1' => qr/cannot be set: the relay never gives up a message/,
	'bootstrap.servers=x:1' => qr/has a setting of its own/,
	'log_cb=x' => qr/not a property that text can set/,
	'group.id=x' => qr/is not among those that can be set/,
	'linger.ms=fast' => qr/does not take this value of property "linger\.ms"/,
	'nonsense' => qr/entry 1 is not of the form name=value/);
for my $text (sort keys %refused)
{
	for my $statement ("SET outbox_kafka.producer_config = '$text'",
		"ALTER DATABASE a SET outbox_kafka.producer_config = '$text'",
		"ALTER SYSTEM SET outbox_kafka.producer_config = '$text'")
	{
		my ($code, undef, $stderr) = $node->psql('a', $statement);
		like($stderr, qr/ERROR:  invalid value for parameter "outbox_kafka\.producer_config"\n.*DETAIL:  .*$refused{$text}/s, $statement);
		unlike($stderr, qr/parameter.*: "/, 'the value is not repeated');
	}
}
unlike($node->safe_psql('a', 'SHOW outbox_kafka.producer_config'), qr/./, 'none of it was taken');

ok(!$node->log_contains(qr/PANIC|TRAP|was terminated by signal/), 'no process of the server died');
$node->stop;
done_testing();
