
# Answers that are waited for: when the time for one begins and ends, that the
# first decision wins, what is called then, what becomes of a message that was
# not sent in time, and of expectations in a restored copy.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Utils ();
use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new(conf => { 'auto.create.topics.enable' => 'false' });
$kafka->start;
$kafka->create_topic($_, 1) for qw(orders steady other);

my $node = new_node('confirmation', kafka => $kafka,
	conf => { 'outbox_kafka.retention' => '1h', 'max_prepared_transactions' => 5,
		'track_activities' => 'on', 'log_min_messages' => 'log' });
new_database($node, 'a');

sub sql
{
	my ($query, $database) = @_;
	return $node->safe_psql($database // 'a', $query);
}

# The error of a query that has to fail.
sub error
{
	my ($query) = @_;
	my ($code, $out, $err) = $node->psql('a', $query);
	isnt($code, 0, 'an error');
	return $err;
}

sql(q{
	CREATE TABLE called (at timestamptz DEFAULT clock_timestamp(), what text, d outbox.decision);
	CREATE FUNCTION confirmed(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.called (what, d) VALUES ('confirmed', d) $$;
	CREATE FUNCTION rejected(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.called (what, d) VALUES ('rejected', d) $$;
	CREATE FUNCTION expired(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.called (what, d) VALUES ('expired', d) $$;
	CREATE FUNCTION late(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.called (what, d) VALUES ('late', d) $$;
	CREATE FUNCTION bad(d outbox.decision) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO public.called (what, d) VALUES ('bad', d);
		RAISE EXCEPTION 'it is bad'; END $$;
});

my $all = q{on_confirmed => 'public.confirmed', on_rejected => 'public.rejected', on_expired => 'public.expired', on_late => 'public.late'};

# Publish and expect; returns the correlation id.
sub expect
{
	my ($topic, $within, $arguments) = @_;
	$arguments = ", $arguments" if $arguments;
	$arguments //= '';
	return sql("SELECT outbox.expect_confirmation(outbox.publish('$topic', 'x'::text), '$within'$arguments)");
}

sub field
{
	my ($id, $field) = @_;
	return sql("SELECT $field FROM outbox.confirmations WHERE correlation_id = '$id'");
}

sub wait_field
{
	my ($id, $field, $expected, $seconds) = @_;
	wait_until("$field of $id is $expected", sub { field($id, $field) eq $expected }, $seconds // 30,
		sub { sql("SELECT * FROM outbox.confirmations WHERE correlation_id = '$id'") });
	is(field($id, $field), $expected, "$field is $expected");
	return;
}

sub calls
{
	my ($id) = @_;
	return sql("SELECT coalesce(string_agg(what, ',' ORDER BY at), '') FROM called WHERE (d).correlation_id = '$id'");
}

sub decider
{
	return sql(q{SELECT pid FROM pg_stat_activity WHERE datname = 'a' AND backend_type LIKE '%decider%'});
}

# ---------------------------------------------------------------------------
# Decided by an answer
# ---------------------------------------------------------------------------

is(decider(), '', 'without an expectation there is no decider');
my $id = expect('orders', '1 hour', $all);
like($id, qr/^[0-9a-f-]{36}$/, 'the correlation id is the event id if the message has none');
wait_field($id, 'deadline IS NOT NULL', 't');
is(field($id, 'status'), 'awaiting', 'an answer is awaited');
ok(decider(), 'there is a decider now');
is(sql("SELECT outbox.wait_decided('$id', '0.1 s')"), 'awaiting', 'wait_decided at the timeout');
is(sql("SELECT outbox.confirm('$id', '{\"stock\": 3}')"), 'decided', 'the answer decides');
is(sql("SELECT outbox.wait_decided('$id', '10 s')"), 'confirmed', 'wait_decided knows');
wait_field($id, 'handler_state', 'done');
is(calls($id), 'confirmed', 'on_confirmed was called');
is(sql("SELECT (d).answer || ' ' || ((d).detail->>'stock') || ' ' || (d).topic FROM called WHERE (d).correlation_id = '$id'"),
	'confirmed 3 orders', 'it is told');
is(sql("SELECT outbox.confirm('$id')"), 'repeated', 'the same answer again');
is(sql("SELECT outbox.reject('$id', 'no')"), 'late', 'another one is late');
is(sql("SELECT outbox.reject('$id', 'no')"), 'late', 'and again');
wait_field($id, 'late_state', 'done');
is(calls($id), 'confirmed,late', 'on_late was called once');
is(field($id, "status || ' ' || repeated || ' ' || late || ' ' || late_answer"), 'confirmed 1 2 rejected', 'it stays confirmed, the rest is counted');
is(sql("SELECT outbox.confirm('nonsense')"), '', 'nobody waits for that');
is(sql("SELECT outbox.wait_decided('nonsense', '10 s')"), '', 'nor can one');

$id = expect('orders', '1 hour', "$all, context => '{\"order\": 7}'");
sql("SELECT outbox.reject('$id', 'out of stock')");
wait_field($id, 'status', 'compensated');
is(calls($id), 'rejected', 'on_rejected was called');
is(sql("SELECT (d).reason || ' ' || ((d).context->>'order') FROM called WHERE (d).correlation_id = '$id'"),
	'out of stock 7', 'it is told the reason and its context');

# somebody who waits is woken at commit
$id = expect('orders', '1 hour');
my $session = $node->background_psql('a');
$session->query_safe('SELECT 1');
my $before = time;
{
	my $waiter = $node->background_psql('a');
	$waiter->{stdin} .= "SELECT outbox.wait_decided('$id', '60 s');\n\\echo waited\n";
	$waiter->{run}->pump_nb;
	wait_until('somebody waits', sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT outbox.wait_decided%' AND pid <> pg_backend_pid() AND wait_event_type = 'Extension'}) }, 30);
	$before = time;
	sql("SELECT outbox.confirm('$id')");
	wait_until('it is told', sub { $waiter->{run}->pump_nb; $waiter->{stdout} =~ /waited/ }, 30);
	like($waiter->{stdout}, qr/confirmed/, 'a waiting session gets the decision');
	$waiter->quit;
}

like(error(q{BEGIN; SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text), '1 h') AS id \gset
	SELECT outbox.wait_decided(:'id', '1 s')}), qr/cannot be called in the transaction that expects/, 'waiting in the same transaction');

# ---------------------------------------------------------------------------
# Decided by the deadline
# ---------------------------------------------------------------------------

$id = expect('orders', '1.5 s', $all);
wait_field($id, 'status', 'compensated');
is(calls($id), 'expired', 'on_expired was called');
cmp_ok(sql("SELECT extract(epoch FROM decided_at - deadline) FROM outbox.confirmations WHERE correlation_id = '$id'"), '<', 1,
	'within a second of the deadline');
cmp_ok(sql("SELECT extract(epoch FROM decided_at - deadline) FROM outbox.confirmations WHERE correlation_id = '$id'"), '>=', 0,
	'not before it');
is(sql("SELECT outbox.confirm('$id')"), 'late', 'an answer afterwards is late');
wait_field($id, 'late_state', 'done');
is(calls($id), 'expired,late', 'and handed to on_late');
is(field($id, "withdrawn"), 'f', 'what was sent is not withdrawn');

# many at once
sql(q{SELECT outbox.expect_confirmation(outbox.publish('steady', i::text), '1 s', on_expired => 'public.expired') FROM generate_series(1, 500) AS i});
wait_until('500 are compensated', sub {
		sql(q{SELECT count(*) FROM outbox.confirmations WHERE topic = 'steady' AND status = 'compensated'}) == 500 }, 60,
	sub { sql('SELECT status, count(*) FROM outbox.confirmations GROUP BY 1') });
cmp_ok(sql(q{SELECT max(extract(epoch FROM decided_at - deadline)) FROM outbox.confirmations WHERE topic = 'steady'}), '<', 1,
	'500 at once: decided within a second');
is(sql(q{SELECT count(*) FROM called WHERE (d).topic = 'steady'}), 500, 'each was called once');

# whoever has the row decides
$id = expect('orders', '1 s', $all);
wait_field($id, 'deadline IS NOT NULL', 't');
$session->query_safe('BEGIN');
$session->query_safe("SELECT outbox.confirm('$id')");
wait_until('the deadline has passed', sub { sql("SELECT clock_timestamp() > deadline + interval '0.5 s' FROM outbox.confirmation WHERE correlation_id = '$id'") eq 't' }, 30);
is(field($id, 'status'), 'awaiting', 'an answer that is under way is not overtaken by the deadline');
my $id2 = expect('orders', '0.5 s', $all);
wait_field($id2, 'status', 'compensated');
$session->query_safe('COMMIT');
wait_field($id, 'handler_state', 'done');
is(calls($id), 'confirmed', 'and wins');
$id = expect('orders', '1 s', $all);
wait_field($id, 'deadline IS NOT NULL', 't');
$session->query_safe('BEGIN');
$session->query_safe("SELECT outbox.confirm('$id')");
wait_until('the deadline has passed', sub { sql("SELECT clock_timestamp() > deadline + interval '0.5 s' FROM outbox.confirmation WHERE correlation_id = '$id'") eq 't' }, 30);
$session->query_safe('ROLLBACK');
wait_field($id, 'status', 'compensated', 3);
is(calls($id), 'expired', 'rolled back, the deadline does');

# ---------------------------------------------------------------------------
# A function that fails
# ---------------------------------------------------------------------------

$id = expect('orders', '1 hour', "on_rejected => 'public.bad', max_attempts => 3, retry_backoff => '50 ms'");
sql("SELECT outbox.reject('$id', 'no')");
wait_field($id, 'status', 'compensation_failed');
is(field($id, "attempts || ' ' || error"), '3 it is bad', 'attempts and error are shown');
is(calls($id), '', 'what it did is rolled back');
sql(q{CREATE OR REPLACE FUNCTION bad(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.called (what, d) VALUES ('good', d) $$});
is(sql("SELECT outbox.retry_confirmation('$id')"), 1, 'it is tried again');
wait_field($id, 'status', 'compensated');
is(calls($id), 'good', 'and was called');

# ---------------------------------------------------------------------------
# Asleep
# ---------------------------------------------------------------------------

$id = expect('orders', '1 hour');
wait_field($id, 'deadline IS NOT NULL', 't');
my $asleep = sub { sql(q{SELECT pid || ' ' || state_change FROM pg_stat_activity WHERE datname = 'a' AND backend_type LIKE '%decider%'}) };
my $state = $asleep->();
my $same = 0;
wait_until('it sleeps', sub { my $now = $asleep->(); $same = $now eq $state ? $same + 1 : 0; $state = $now; sleep 0.2; $same >= 15 }, 60);
pass('the decider does nothing for three seconds while an answer is awaited');
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE '%decider%' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)}), 0,
	'and holds no snapshot');

# ---------------------------------------------------------------------------
# The broker is away
# ---------------------------------------------------------------------------

$kafka->stop_node(1);
my $acknowledged = expect('orders', '1 s', $all);
my $published = expect('orders', '1 s', "$all, counts_from => 'publishing'");
$id2 = expect('steady', '1 s', "$all, counts_from => 'publishing'");
my $steady = sql(q{SELECT count(*) FROM outbox.message WHERE topic = 'steady'});
wait_field($published, 'status', 'compensated');
wait_field($id2, 'status', 'compensated');
is(field($acknowledged, "status || ' ' || (deadline IS NULL)"), 'awaiting true', 'the time from the acknowledgement has not begun');
$same = 0;
wait_until('it sleeps', sub { my $now = $asleep->(); $same = $now eq $state ? $same + 1 : 0; $state = $now; sleep 0.2; $same >= 10 }, 60);
pass('nor does the decider poll for it');
my $last = sql(q{SELECT outbox.publish('steady', 'last')});
$kafka->start_node(1);
wait_published($node, 'a', $last);
wait_field($acknowledged, 'status', 'compensated');
wait_field($published, 'withdrawn', 't');
wait_field($id2, 'withdrawn', 't');
is(sql("SELECT outbox.status('$published')"), 'discarded', 'a message that was not sent in time is withdrawn');
wait_delivered($node, 'a');
my @ids = map { $_->{header}{ce_id} // '' } $kafka->consume('orders'), $kafka->consume('steady');
is(scalar(grep { $_ eq $published || $_ eq $id2 } @ids), 0, 'it never arrives');
is(scalar(grep { $_ eq $acknowledged || $_ eq $last } @ids), 2, 'the others do');
wait_until('requests are removed', sub { sql('SELECT count(*) FROM outbox.discard_request') == 0 }, 20,
	sub { sql('SELECT * FROM outbox.discard_request') });

# in flight when its time is over, and when the server dies: it may have been
# sent, and is
$kafka->pause(1);
$id = expect('orders', '1.5 s', "$all, counts_from => 'publishing'");
wait_until('it is in flight', sub { sql('SELECT in_flight FROM outbox.relay_status') > 0 }, 30);
wait_field($id, 'status', 'compensated');
ok(sql('SELECT count(*) FROM outbox.discard_request') > 0, 'it is asked to be given up');
$session->quit;
$node->stop('immediate');
$kafka->cont(1);
$node->start;
wait_delivered($node, 'a');
wait_until('requests are removed', sub { sql('SELECT count(*) FROM outbox.discard_request') == 0 }, 20);
cmp_ok(scalar(grep { ($_->{header}{ce_id} // '') eq $id } $kafka->consume('orders')), '>', 0, 'what may have been sent arrives');
is(field($id, 'withdrawn'), 'f', 'and is not shown as withdrawn');
$session = $node->background_psql('a');
$session->query_safe('SELECT 1');

# held and parked ones
sql(q{SELECT outbox.pause('other')});
$id = expect('other', '1 s', "$all, counts_from => 'publishing'");
wait_field($id, 'status', 'compensated');
wait_field($id, 'withdrawn', 't');
sql(q{SELECT outbox.resume('other')});
$id = sql(q{SELECT outbox.expect_confirmation(outbox.publish('other', 'x'::text, partition => 5), '3 s', counts_from => 'publishing')});
wait_until('it is parked', sub { sql("SELECT outbox.status('$id')") eq 'parked' }, 30);
wait_field($id, 'status', 'expired');
wait_field($id, 'withdrawn', 't');
is(sql('SELECT count(*) FROM outbox.parked'), 0, 'a parked one is given up');

# given up by somebody
sql(q{SELECT outbox.pause('other')});
$id = expect('other', '1 hour', $all);
sql("SELECT outbox.discard('$id')");
wait_field($id, 'status', 'compensated');
is(field($id, 'reason'), 'discarded', 'nobody waits for an answer to what was discarded');
sql(q{SELECT outbox.resume('other')});

# in Kafka transactions; one that was in a transaction when the broker went is
# in doubt
sql(q{ALTER SYSTEM SET outbox_kafka.delivery = exactly_once});
sql('SELECT pg_reload_conf()');
wait_published($node, 'a', sql(q{SELECT outbox.publish('orders', 'exactly')}));
$kafka->stop_node(1);
my @expected = map { expect('orders', '1 s', "$all, counts_from => 'publishing'") } 1 .. 3;
wait_field($_, 'status', 'compensated') for @expected;
$last = sql(q{SELECT outbox.publish('orders', 'exactly as well')});
$kafka->start_node(1);
wait_published($node, 'a', $last);
wait_delivered($node, 'a');
wait_until('requests are removed', sub { sql('SELECT count(*) FROM outbox.discard_request') == 0 }, 20);
@ids = map { $_->{header}{ce_id} // '' } $kafka->consume('orders', properties => { 'isolation.level' => 'read_committed' });
for my $event (@expected)
{
	my $arrived = grep { $_ eq $event } @ids;
	is(field($event, 'withdrawn'), $arrived ? 'f' : 't', "exactly once: a message is withdrawn or arrives ($arrived)");
	cmp_ok($arrived, '<=', 1, 'and not more often than once');
}
is(scalar(grep { $_ eq $last } @ids), 1, 'what was not withdrawn arrives once');
sql(q{ALTER SYSTEM RESET outbox_kafka.delivery});
sql('SELECT pg_reload_conf()');

# ---------------------------------------------------------------------------
# Prepared, restarted, copied
# ---------------------------------------------------------------------------

sql(q{BEGIN; SELECT outbox.expect_confirmation(outbox.publish('orders', 'x'::text, correlation_id => 'prepared'), '1 s', on_expired => 'public.expired'); PREPARE TRANSACTION 'p'});
is(field('prepared', 'count(*)'), 0, 'prepared: not there yet');
sql(q{COMMIT PREPARED 'p'});
wait_field('prepared', 'status', 'compensated');

$id = expect('orders', '2 s', $all);
wait_field($id, 'deadline IS NOT NULL', 't');
$id2 = expect('orders', '1 hour', $all);
wait_field($id2, 'deadline IS NOT NULL', 't');
$node->stop('immediate');
sleep 2;
$node->start;
wait_field($id, 'status', 'compensated');
is(calls($id), 'expired', 'what expired while the server was down');

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$id = expect('orders', '4 s', $all);
wait_field($id, 'deadline IS NOT NULL', 't');
$node->command_ok([ 'pg_dump', '-d', $node->connstr('a'), '-f', $dump ], 'dump');
sql('CREATE DATABASE restored', 'postgres');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ], 'restore');
wait_until('a copy can be made', sub { my ($code) = $node->psql('postgres', 'CREATE DATABASE copied TEMPLATE a'); $code == 0 }, 30);
wait_field($id, 'status', 'compensated');
for my $copy ('restored', 'copied')
{
	wait_until("the relay of $copy runs", sub { sql('SELECT pid IS NOT NULL FROM outbox.relay_status', $copy) eq 't' }, 30);
	wait_until("$copy knows that it is one", sub { sql("SELECT count(*) FROM outbox.confirmation WHERE NOT restored AND decision IS NULL", $copy) == 0 }, 30);
	is(sql("SELECT status || ' ' || restored FROM outbox.confirmations WHERE correlation_id = '$id2'", $copy), 'awaiting true', "$copy: still awaited");
}
sleep 1;
is(sql("SELECT status FROM outbox.confirmations WHERE correlation_id = '$id'", 'restored'), 'awaiting', 'in a copy nothing expires');
sql('SELECT outbox.adopt()', 'restored');
wait_until('adopted, it does', sub { sql("SELECT status FROM outbox.confirmations WHERE correlation_id = '$id'", 'restored') eq 'compensated' }, 30,
	sub { sql('SELECT * FROM outbox.confirmation', 'restored') });
is(sql("SELECT count(*) FROM called WHERE (d).correlation_id = '$id'", 'restored'), 1, 'its function is called');

# ---------------------------------------------------------------------------
# Removed
# ---------------------------------------------------------------------------

sql("SELECT outbox.confirm('$id2')");
wait_field($id2, 'handler_state', 'done');
sql(q{ALTER DATABASE a SET outbox_kafka.confirmation_retention = '2 s'});
wait_until('what is decided is removed', sub { sql(q{SELECT count(*) FROM outbox.confirmation WHERE completed_at IS NOT NULL}) == 0 }, 90);
is(sql(q{SELECT string_agg(DISTINCT status, ',') FROM outbox.confirmations}), 'awaiting', 'what is awaited stays');
sql(q{SELECT outbox.confirm(correlation_id) FROM outbox.confirmations});
wait_until('nothing is left', sub { sql('SELECT count(*) FROM outbox.confirmation') == 0 }, 90);
wait_until('the decider goes', sub { decider() eq '' }, 30);
pass('without an expectation there is no decider any more');

$session->quit;
$node->stop;
$kafka->stop;
done_testing();
