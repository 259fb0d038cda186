
# A user's function called by a worker: it runs as the role that named it, from
# its first statement to what is deferred to the commit, and leaves nothing
# behind in the worker's session. Functions of confirmations are used to show
# it; those of subscriptions run through the same code. No Kafka is needed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;

my $node = new_node('handler', conf => { 'outbox_kafka.handler_timeout' => '2s' });
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

sql(q{
	CREATE ROLE app LOGIN;
	CREATE ROLE other LOGIN;
	SELECT outbox.grant_publish('app');
	SELECT outbox.grant_publish('other');
	GRANT EXECUTE ON FUNCTION outbox.confirm(text, jsonb), outbox.reject(text, text, jsonb) TO app, other;
	CREATE SCHEMA app AUTHORIZATION app;
	CREATE TABLE app.parent (id int PRIMARY KEY);
	CREATE TABLE app.child (id int REFERENCES app.parent DEFERRABLE INITIALLY DEFERRED);
	CREATE TABLE app.seen (at bigserial, what text);
	CREATE TABLE app.trap (what text);
	ALTER TABLE app.parent OWNER TO app;
	ALTER TABLE app.child OWNER TO app;
	ALTER TABLE app.seen OWNER TO app;
	ALTER TABLE app.trap OWNER TO app;
	GRANT USAGE ON SCHEMA app TO other;
	GRANT SELECT, INSERT ON app.seen TO other;
	GRANT USAGE ON SEQUENCE app.seen_at_seq TO other;
});

my $number = 0;

# Make a function of that body, expect an answer with it, and confirm. Returns
# the correlation id.
sub start_call
{
	my ($body, %options) = @_;
	my $role = $options{role} // 'app';
	my $name = 'f' . ++$number;
	my $attempts = $options{attempts} // 1;
	my $schema = $role eq 'app' ? 'app' : 'public';
	sql('GRANT CREATE ON SCHEMA public TO other');
	return (split /\n/, sql(qq{
		SET ROLE $role;
		CREATE FUNCTION $schema.$name(d outbox.decision) RETURNS void LANGUAGE plpgsql AS \$f\$
		BEGIN
			$body;
		END \$f\$;
		BEGIN;
		SELECT outbox.expect_confirmation(outbox.publish('t', '1'::text), '1 hour', on_confirmed => '$schema.$name',
			max_attempts => $attempts, retry_backoff => '10 ms') AS id \\gset
		COMMIT;
		SELECT outbox.confirm(:'id') \\gset
		SELECT :'id';
	}))[-1];
}

# The same, until it was called. Returns its state and error.
sub call
{
	my ($body, %options) = @_;
	my $id = start_call($body, %options);
	my $state;
	wait_until('the function was called', sub {
			$state = sql("SELECT handler_state FROM outbox.confirmations WHERE correlation_id = '$id'");
			return $state ne 'pending';
		}, 30, sub { sql('SELECT * FROM outbox.confirmations') . sql('SELECT pid, backend_type, query FROM pg_stat_activity') });
	return ($state, sql("SELECT error FROM outbox.confirmations WHERE correlation_id = '$id'"));
}

sub succeeds
{
	my ($name, $body, %options) = @_;
	my ($state, $error) = call($body, %options);
	is($state, 'done', $name) or diag $error;
	return;
}

sub fails
{
	my ($name, $body, $expected, %options) = @_;
	my ($state, $error) = call($body, %options);
	is($state, 'failed', "$name fails");
	like($error, $expected, "$name: the error");
	return;
}

sub seen
{
	my $seen = sql('SELECT what FROM app.seen ORDER BY at DESC LIMIT 1');
	sql('TRUNCATE app.seen');
	return $seen;
}

# ---------------------------------------------------------------------------
# As whom it runs
# ---------------------------------------------------------------------------

succeeds('a function', q{INSERT INTO app.seen (what) VALUES (current_user || ' ' || current_setting('search_path'))});
is(seen(), 'app "$user", public', 'it runs as the role that expects, with the usual search path');

succeeds('a deferred foreign key', q{
	INSERT INTO app.child VALUES (1);
	INSERT INTO app.parent VALUES (1)});
is(sql('SELECT count(*) FROM app.child'), 1, 'it is checked at the end, and holds');
fails('a deferred foreign key that does not hold', q{INSERT INTO app.child VALUES (2)}, qr/violates foreign key/);

sql(q{
	SET ROLE app;
	CREATE FUNCTION app.deferred() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO app.seen (what) VALUES ('deferred as ' || current_user || ' '
			|| (SELECT rolsuper FROM pg_roles WHERE rolname = current_user));
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON app.trap DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION app.deferred();
});
succeeds('a deferred trigger', q{INSERT INTO app.trap VALUES ('x')});
is(seen(), 'deferred as app false', 'it does not run as superuser');
succeeds('a deferred trigger, set to be deferred again', q{
	SET CONSTRAINTS ALL DEFERRED; INSERT INTO app.trap VALUES ('x')});
is(seen(), 'deferred as app false', 'nor does that');

sql(q{
	SET ROLE app;
	CREATE FUNCTION app.note() RETURNS int LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO app.seen (what) VALUES ('cursor as ' || current_user);
		RETURN 1;
	END $$;
});
succeeds('a WITH HOLD cursor', q{EXECUTE 'DECLARE c CURSOR WITH HOLD FOR SELECT app.note()'});
unlike(seen(), qr/cursor as (?!app)/, 'its query runs as nobody else');
succeeds('after it', q{INSERT INTO app.seen (what) SELECT coalesce(string_agg(name, ','), 'none') FROM pg_cursors});
is(seen(), 'none', 'the cursor is gone');

for my $command ('RESET ROLE', 'SET ROLE postgres', 'SET ROLE NONE',
	'SET SESSION AUTHORIZATION DEFAULT', 'RESET SESSION AUTHORIZATION', 'SET LOCAL ROLE postgres',
	"PERFORM set_config('role', 'postgres', false)")
{
	my $statement = $command =~ /^PERFORM/ ? $command : "EXECUTE '$command'";
	fails($command, $statement, qr/cannot set parameter "(?:role|session_authorization)"/);
}
succeeds('RESET ALL', q{EXECUTE 'RESET ALL'; INSERT INTO app.seen (what) VALUES (current_user)});
is(seen(), 'app', 'it changes no role');
fails('what only a superuser may', q{PERFORM pg_read_file('/etc/passwd')}, qr/permission denied/);
fails('a setting that only a superuser may change', q{SET session_replication_role = replica}, qr/permission denied/);
fails('COPY to a program', q{EXECUTE $$COPY app.seen TO PROGRAM 'true'$$}, qr/must be superuser|permission denied/);
fails("another role's table", q{INSERT INTO outbox.parked_message SELECT}, qr/permission denied/);

# ---------------------------------------------------------------------------
# What it leaves behind
# ---------------------------------------------------------------------------

my $look = q{INSERT INTO app.seen (what) VALUES (current_setting('work_mem') || ' ' || coalesce(current_setting('app.x', true), '')
	|| ' ' || current_setting('search_path') || ' ' || current_setting('statement_timeout'))};
my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '%decider%'});
ok($pid, 'the decider is a process');
succeeds('before settings', $look);
my $before = seen();
succeeds('settings', q{
	SET work_mem = '77MB'; SET app.x = 'leaked'; SET search_path = app;
	PERFORM set_config('statement_timeout', '1h', false)});
succeeds('after settings', $look);
is(seen(), $before, 'are as before');

sql(q{
	SET ROLE app;
	CREATE FUNCTION app.sets() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM set_config('work_mem', '77MB', false), set_config('search_path', 'pg_temp', false);
		RETURN NULL;
	END $$;
	CREATE TABLE app.sets (i int);
	CREATE CONSTRAINT TRIGGER sets AFTER INSERT ON app.sets DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION app.sets();
});
succeeds('settings of a deferred trigger', q{INSERT INTO app.sets VALUES (1)});
succeeds('after them', $look);
is(seen(), $before, 'are as before, too');
fails('settings, then an error', q{SET search_path = pg_temp; RAISE EXCEPTION 'settings'}, qr/settings/);
succeeds('after it', $look);
is(seen(), $before, 'they are as before');

succeeds('advisory locks', q{PERFORM pg_advisory_lock(42); PERFORM pg_advisory_lock_shared(1, 2)});
is(sql(q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid <> 0}), 0, 'session locks are released');
is(sql(q{SELECT pg_try_advisory_lock(42)}), 't', 'others can have them');
succeeds('releasing all', q{PERFORM pg_advisory_unlock_all()});
is(sql(qq{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $pid}), 1,
	'the worker keeps the lock that makes it the only one');

succeeds('a prepared statement', q{EXECUTE 'PREPARE p AS SELECT 1'});
succeeds('after it', q{INSERT INTO app.seen (what) SELECT count(*) FROM pg_prepared_statements});
is(seen(), '0', 'it is gone');

succeeds('a temporary table', q{
	CREATE TEMP TABLE seen (at int, what text); INSERT INTO pg_temp.seen VALUES (1, 'x');
	CREATE TEMP TABLE gone (i int) ON COMMIT DROP});
succeeds('a temporary function', q{EXECUTE 'CREATE FUNCTION pg_temp.now() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$'});
sql(q{CREATE TABLE public.seen (what text); GRANT ALL ON public.seen TO other});
succeeds("another role's function", q{INSERT INTO seen (what) VALUES (current_user)}, role => 'other');
is(sql('SELECT what FROM public.seen'), 'other', 'does not find the temporary table');
is(sql(q{SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE nspname LIKE 'pg_temp%'}),
	0, 'which is gone');

succeeds('read only', q{SET TRANSACTION READ ONLY});
succeeds('after it', q{INSERT INTO app.seen (what) VALUES ('writes')});
is(seen(), 'writes', 'the next one writes');

is(sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '%decider%'}), $pid, 'one process did all of that');

# ---------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------

fails('an endless function', q{LOOP PERFORM 1; END LOOP}, qr/statement timeout/);
fails('one that sleeps', q{PERFORM pg_sleep(60)}, qr/statement timeout/);
sql(q{
	SET ROLE app;
	CREATE FUNCTION app.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
	CREATE TABLE app.slow (i int);
	CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON app.slow DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION app.slow();
});
fails('a slow deferred trigger', q{INSERT INTO app.slow VALUES (1)}, qr/statement timeout/);
fails('COMMIT', q{COMMIT}, qr/invalid transaction termination/);
fails('an error with DETAIL', q{RAISE EXCEPTION 'no such %', 'luck' USING DETAIL = 'x'}, qr/no such luck/);
fails('terminating the worker', q{PERFORM pg_terminate_backend(pg_backend_pid())}, qr/must be a superuser|permission denied/);
succeeds('cancelling what may run later', q{PERFORM 1});

my $id = start_call(q{PERFORM pg_sleep(60)}, attempts => 2);
$pid = wait_until('it runs', sub {
		return sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '%decider%' AND query LIKE 'app.%'});
	}, 30);
sql("SELECT pg_cancel_backend($pid)");
wait_until('the call was cancelled', sub {
		return sql("SELECT error FROM outbox.confirmations WHERE correlation_id = '$id'") =~ /user request/;
	}, 30);
sql("SELECT pg_cancel_backend($pid)");
wait_until('it has failed', sub {
		return sql("SELECT handler_state FROM outbox.confirmations WHERE correlation_id = '$id'") eq 'failed';
	}, 30);

# its own function, its own role
succeeds('dropping itself', q{EXECUTE 'DROP FUNCTION app.' || (SELECT p.proname FROM pg_proc AS p
	WHERE p.pronamespace = 'app'::regnamespace AND p.prosrc LIKE '%dropping%' LIMIT 1) || '(outbox.decision)' /* dropping */});
$id = (split /\n/, sql(q{
	CREATE ROLE gone; SELECT outbox.grant_publish('gone'); GRANT CREATE ON SCHEMA public TO gone;
	GRANT EXECUTE ON FUNCTION outbox.confirm(text, jsonb) TO gone;
	SET ROLE gone;
	CREATE FUNCTION public.of_gone(d outbox.decision) RETURNS void LANGUAGE sql AS 'SELECT';
	BEGIN;
	SELECT outbox.expect_confirmation(outbox.publish('t', '1'::text), '1 hour', on_confirmed => 'public.of_gone', max_attempts => 1) AS id \gset
	COMMIT;
	RESET ROLE;
	REVOKE EXECUTE ON FUNCTION public.of_gone(outbox.decision) FROM PUBLIC, gone;
	SELECT outbox.confirm(:'id') \gset
	SELECT :'id'}))[-1];
wait_until('it was tried', sub { sql("SELECT handler_state FROM outbox.confirmations WHERE correlation_id = '$id'") eq 'failed' }, 30);
like(sql("SELECT error FROM outbox.confirmations WHERE correlation_id = '$id'"), qr/permission denied for function/,
	'a function that was taken away is not called');

# the server can be stopped while a function runs
start_call(q{PERFORM pg_sleep(600)});
$node->safe_psql('postgres', q{ALTER SYSTEM SET outbox_kafka.handler_timeout = 0; SELECT pg_reload_conf()});
start_call(q{PERFORM pg_sleep(600)});
wait_until('it runs', sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE '%decider%' AND query LIKE 'app.%'}) }, 30);
my $start = time;
$node->stop('fast');
cmp_ok(time - $start, '<', 20, 'a running function does not hold up a shutdown');

done_testing();
