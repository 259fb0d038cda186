
# A saga over four databases of two servers (test/saga, doc/saga.md): steps one
# after the other, each a message and the answer to it; when one is refused or
# nobody answers, what was done is undone in reverse order. Whatever is killed
# meanwhile, in the end a saga has all its effects or none.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Cwd qw(abs_path);
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $directory = abs_path("$FindBin::RealBin/../saga");
my @services = qw(payment stock shipping);
my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 3) for 'saga.done', 'saga.refused', map { "$_.commands" } @services;

my %options = (kafka => $kafka, conf => { 'restart_after_crash' => 'on', 'max_worker_processes' => 32 });
my $first = new_node('first', %options);
my $second = new_node('second', %options);
my %node = (coordinator => $first, payment => $first, stock => $second, shipping => $second);

for my $node ($first, $second)
{
	$node->safe_psql('postgres', 'CREATE ROLE app LOGIN');
}
for my $database ('coordinator', @services)
{
	my $node = $node{$database};
	my $script = $database eq 'coordinator' ? 'coordinator' : 'participant';
	new_database($node, $database);
	$node->safe_psql($database, q{
		GRANT CREATE ON SCHEMA public TO app;
		SELECT outbox.grant_publish('app');
		GRANT EXECUTE ON FUNCTION inbox.subscribe TO app});
	$node->safe_psql($database, "SET ROLE app;\n\\set service $database\n" . slurp_file("$directory/$script.sql"));
}

sub saga
{
	my ($query) = @_;
	return $first->safe_psql('coordinator', $query);
}

saga(q{INSERT INTO step VALUES (1, 'payment'), (2, 'stock'), (3, 'shipping')});

sub start
{
	my ($id, $data) = @_;
	saga("SET ROLE app; SELECT saga_start($id, '$data')");
	return;
}

sub wait_saga
{
	my ($id, $seconds) = @_;
	wait_until("saga $id ends", sub { saga("SELECT status IN ('completed', 'compensated') FROM saga WHERE id = $id") eq 't' },
		$seconds // 60, sub {
			join "\n", saga("SELECT step, action, outcome FROM saga_log WHERE saga = $id ORDER BY number"),
				saga('TABLE inbox.subscription_status'),
				saga("SELECT correlation_id, status, deadline, handler_state, error FROM outbox.confirmations WHERE status IN ('awaiting', 'compensating')"),
				map { $node{$_}->safe_psql($_, 'TABLE inbox.subscription_status') } @services });
	return saga("SELECT status || coalesce(': ' || reason, '') FROM saga WHERE id = $id");
}

sub steps
{
	my ($id) = @_;
	return saga("SELECT string_agg(action || ' ' || step || ' ' || outcome, ', ' ORDER BY number)
		FROM saga_log WHERE saga = $id AND outcome <> 'asked'");
}

# What each service has of a saga.
sub effects
{
	my ($id) = @_;
	return join ' ', map { $node{$_}->safe_psql($_, "SELECT coalesce((SELECT state FROM done WHERE saga = $id), 'nothing')") } @services;
}

# ---------------------------------------------------------------------------
# One saga at a time
# ---------------------------------------------------------------------------

start(1, '{"amount": 10}');
is(wait_saga(1), 'completed', 'all steps are done');
is(steps(1), 'do 1 done, do 2 done, do 3 done', 'in their order');
is(effects(1), 'done done done', 'in every database');

start(2, '{"amount": 10, "refused_by": "shipping"}');
is(wait_saga(2), 'compensated: shipping refuses', 'the last step is refused: compensated');
is(steps(2), 'do 1 done, do 2 done, do 3 rejected, undo 2 done, undo 1 done', 'in reverse order');
is(effects(2), 'undone undone nothing', 'nothing of it is left');

start(3, '{"amount": 10, "refused_by": "payment"}');
is(wait_saga(3), 'compensated: payment refuses', 'the first step is refused');
is(steps(3), 'do 1 rejected', 'nothing is to be undone');
is(effects(3), 'nothing nothing nothing', 'and nothing was done');

# ---------------------------------------------------------------------------
# A participant that does not answer
# ---------------------------------------------------------------------------

$first->safe_psql('postgres', q{ALTER DATABASE coordinator SET saga.patience = '2 s'});
$second->safe_psql('shipping', q{SELECT inbox.pause('commands')});
start(4, '{"amount": 10}');
wait_until('the last step has expired', sub { steps(4) =~ /do 3 expired/ }, 60, sub { steps(4) });
is(saga('SELECT status FROM saga WHERE id = 4'), 'compensating', 'a step that nobody answers: it is being compensated');
$second->safe_psql('shipping', q{SELECT inbox.resume('commands')});
is(wait_saga(4), 'compensated: expired', 'once somebody answers, it is');
like(steps(4), qr/^do 1 done, do 2 done, do 3 expired, (?:undo 3 expired, )*undo 3 done, undo 2 done, undo 1 done$/,
	'what may have been done is undone first, then the rest, in reverse order');
wait_until('it has seen all commands', sub {
	$second->safe_psql('shipping', 'SELECT sum(lag) FROM inbox.subscription_status') eq '0' }, 60);
is(effects(4), 'undone undone undone', 'nothing of it is left, although the step was done after all');
$first->safe_psql('postgres', q{ALTER DATABASE coordinator SET saga.patience = '20 s'});

# ---------------------------------------------------------------------------
# Many at a time, with anything killed
# ---------------------------------------------------------------------------

my $n = 90;
for my $round (0 .. 5)
{
	my ($from, $to) = (100 + $round * $n / 6, 99 + ($round + 1) * $n / 6);
	saga("SET ROLE app; SELECT saga_start(id, jsonb_build_object('amount', id % 7 + 1)
			|| CASE id % 5 WHEN 1 THEN '{\"refused_by\": \"shipping\"}'::jsonb WHEN 2 THEN '{\"refused_by\": \"stock\"}' ELSE '{}' END)
		FROM generate_series($from, $to) AS id");
	my $node = $round % 2 ? $first : $second;
	my $victim = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity
		WHERE backend_type ~ 'outbox_kafka (relay|inbox|decider)' ORDER BY random() LIMIT 1});
	kill_worker($node, $round < 4 ? 'KILL' : 'TERM', $victim) if $victim ne '';
}
wait_until('all sagas end', sub {
	saga("SELECT count(*) FROM saga WHERE status IN ('running', 'compensating')") eq '0' }, 240, sub {
		join "\n", saga("SELECT id, status FROM saga WHERE status IN ('running', 'compensating')"),
			saga('TABLE inbox.subscription_status'),
			saga("SELECT correlation_id, topic, status, deadline, handler_state, error FROM outbox.confirmations WHERE status IN ('awaiting', 'compensating')"),
			map { $node{$_}->safe_psql($_, 'TABLE inbox.subscription_status') } @services });

is(saga("SELECT count(*) FROM saga WHERE id >= 100 AND status = 'completed' AND data ? 'refused_by'"), 0,
	'no saga was completed that somebody refuses');
my $completed = saga("SELECT id || ' ' || (data ->> 'amount') FROM saga WHERE status = 'completed' ORDER BY id");
for my $service (@services)
{
	wait_until("$service has seen all commands", sub {
		$node{$service}->safe_psql($service, 'SELECT sum(lag) FROM inbox.subscription_status') eq '0' }, 60);
	is($node{$service}->safe_psql($service, "SELECT saga || ' ' || amount FROM done WHERE state = 'done' ORDER BY saga"),
		$completed, "$service has the effects of the completed sagas, and no others");
}
diag('completed: ' . (scalar split /\n/, $completed) . ' of ' . saga('SELECT count(*) FROM saga'));
is(saga(q{SELECT count(*) FROM (
		SELECT saga, step, lag(step) OVER (PARTITION BY saga ORDER BY number) AS before
		FROM saga_log WHERE action = 'undo' AND outcome = 'done') AS u
	WHERE step >= before}), 0, 'always undone in reverse order');
is(saga(q{SELECT count(*) FROM (
		SELECT saga, step, lag(step) OVER (PARTITION BY saga ORDER BY number) AS before
		FROM saga_log WHERE action = 'do' AND outcome = 'done') AS d
	WHERE step <> before + 1}), 0, 'and done in order');
is(saga("SELECT count(*) FROM saga WHERE id >= 100 AND status = 'completed'") +
	saga("SELECT count(*) FROM saga WHERE id >= 100 AND status = 'compensated'"), $n, "all $n sagas have ended");

$_->stop for $first, $second;
done_testing();
