
# The ledger again while things are taken away: the relay is ended several
# times, the broker is stopped and started and is killed, a backend is killed
# (so the server restarts after a crash) and the whole server is stopped with
# immediate. Nothing may be lost, first arrivals stay in order, and what is
# repeated stays within the documented bound: for each interruption of the
# relay the messages in flight (at most max_in_flight) and the progress not
# flushed yet (at most as many again). The broker's faults repeat nothing: the
# producer is idempotent. At last, crashes right after asynchronous commits.
#
# OUTBOX_LEDGER_SECONDS and OUTBOX_LEDGER_SEED change the load; the moments of
# the faults are drawn with the same seed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use List::Util qw(shuffle);
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;
use OutboxTest::Ledger;

my $max_in_flight = 500;
my $seconds = $ENV{OUTBOX_LEDGER_SECONDS} // 30;
my $seed = $ENV{OUTBOX_LEDGER_SEED} // int(rand(10**9));
srand($seed);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_node(
	'faults',
	kafka => $kafka,
	conf => {
		'fsync' => 'on',
		'restart_after_crash' => 'on',
		'max_prepared_transactions' => 100,
		'wal_writer_delay' => '10s',
		'outbox_kafka.max_in_flight' => $max_in_flight,
		'outbox_kafka.retention' => '0',
		'outbox_kafka.segment_size' => '1MB'
	});
new_database($node, 'a');
my $ledger = OutboxTest::Ledger->new($node, 'a', $kafka);

# The process of the relay; undef also while nobody can connect.
sub relay_of
{
	return try_sql($node, 'a', 'SELECT pid FROM outbox.relay_status') || undef;
}

sub wait_relay
{
	my ($old) = @_;
	return wait_until(
		'another relay runs',
		sub {
			my $pid = relay_of();
			return defined $pid && (!defined $old || $pid != $old) ? $pid : undef;
		});
}

# A backlog, committed this moment: the relay's window is full when the fault
# comes. Mostly without a key, so that the writers are not kept waiting.
sub add_backlog
{
	$node->safe_psql(
		'a', q{
		SELECT count(ledger.publish(CASE WHEN i % 20 = 0 THEN i / 20 END,
									'ledger_' || i % 4, 'backlog', 'text', 2))
		FROM generate_series(1, 8000) AS i});
	return;
}

sub end_relay
{
	my $pid = wait_relay();
	add_backlog();
	my $began = time;
	kill 'TERM', $pid;
	wait_relay($pid);
	note(sprintf 'relay ended, another one after %.2f s', time - $began);
	return;
}

# A backend of the load dies: the server restarts all others.
sub kill_backend
{
	my $before = wait_relay();
	add_backlog();
	my $pid = wait_until(
		'a writer is inside a transaction',
		sub {
			return try_sql(
				$node, 'a',
				q{SELECT pid FROM pg_stat_activity
				  WHERE backend_type = 'client backend' AND backend_xid IS NOT NULL
					AND pid <> pg_backend_pid() LIMIT 1}) || undef;
		});
	kill 'KILL', $pid;
	wait_relay($before);
	note('a backend was killed');
	return;
}

sub restart_server
{
	add_backlog();
	$node->stop('immediate');
	$node->start;
	wait_relay();
	note('the server was stopped with immediate and started');
	return;
}

sub restart_broker
{
	add_backlog();
	$kafka->restart(1);
	note('the broker was restarted');
	return;
}

sub kill_broker
{
	add_backlog();
	$kafka->kill9(1);
	$kafka->start_node(1);
	note('the broker was killed and started');
	return;
}

# Do each fault once, in random order, spread over the load; the load goes on
# until all have happened.
sub run_load
{
	my ($name, $options, @faults) = @_;
	my $began = time;
	my $pause = $seconds / (@faults + 1);
	my $done = 0;

	$ledger->start(seconds => $seconds, seed => $seed, open => 1);
	for my $fault (shuffle @faults)
	{
		my $at = $began + $pause * ($done++ + 0.3 + rand(0.7));
		sleep($at - time) if $at > time;
		$fault->();
	}
	my $written = $ledger->finish;
	ok($written->{ok}, "$name: the writers had no unexpected error");
	cmp_ok($written->{events}, '>', 1000, "$name: the load was a load");

	my $seen = $ledger->compare(%$options);
	is($seen->{lost}, 0, "$name: nothing is lost");
	is($seen->{extra}, 0, "$name: nothing came that was not committed");
	is($seen->{different}, 0, "$name: all came as published");
	is($seen->{out_of_order}, 0, "$name: first arrivals are in order");
	cmp_ok($seen->{duplicates}, '<=', $options->{duplicates},
		"$name: $seen->{duplicates} repeated, within $options->{duplicates}");
	ok($seen->{ok}, "$name: the comparison holds");
	return $seen;
}

diag("seed $seed");

my $first = run_load('broker', { duplicates => 0 },
	\&restart_broker, \&kill_broker);

my @interruptions = (
	(\&end_relay) x 4, \&kill_backend, \&restart_server);
my $bound = $first->{duplicates} + @interruptions * 2 * $max_in_flight;
my $second = run_load(
	'relay and server',
	{ duplicates => $bound, prove => 1 },
	@interruptions, \&restart_broker);
is_deeply($second->{tamperings_unnoticed},
	[], 'the comparison notices every tampering');
diag(sprintf '%d interruptions of the relay repeated %d of %d messages;'
	  . ' the bound is %d x 2 x %d = %d',
	scalar @interruptions, $second->{duplicates} - $first->{duplicates},
	$second->{ledger}, scalar @interruptions, $max_in_flight,
	@interruptions * 2 * $max_in_flight);

# Visible is not durable: a message whose COMMIT did not wait for its WAL is
# sent only when that is flushed, so the crash that follows does not undo it.
# (Nothing else flushes WAL here: the server is quiet, the WAL writer asleep.)
$bound += 2 * $max_in_flight * 3;
for my $round (1 .. 3)
{
	my $count = $kafka->message_count('ledger_0');
	$node->safe_psql(
		'a', q{
		SET synchronous_commit = off;
		SELECT ledger.publish(1, 'ledger_0', 'unflushed', 'text', 1)});
	$kafka->wait_messages('ledger_0', $count + 1, 20);
	$node->stop('immediate');
	$node->start;
	wait_relay();
}
my $third = $ledger->compare(duplicates => $bound);
is($third->{ledger}, $second->{ledger} + 3,
	'asynchronous commits: what was sent outlives a crash');
is($third->{extra}, 0, 'asynchronous commits: nothing else was sent');
ok($third->{ok}, 'asynchronous commits: the comparison holds');

$node->stop;
done_testing();
