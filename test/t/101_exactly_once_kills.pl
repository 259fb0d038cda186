
# P2, P6: exactly once survives kill -9 of the relay at each step of a Kafka
# transaction (fault points: a random kill rarely hits these milliseconds) and at
# random. Readers of committed messages find every committed event once, and
# each key's in order.
#
# With the read-back switched off (fault point "forget") the same comparison
# must find repeats: it is able to fail.
#
# OUTBOX_KILLS is how often the relay dies at each point.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $kills = $ENV{OUTBOX_KILLS} // 3;
my @points = split /,/, $ENV{OUTBOX_POINTS} // "defined,sent,positioned,committing,committed,stored";

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('events', 4);
my $node = new_node(
	'kills',
	kafka => $kafka,
	conf => {
		'restart_after_crash' => 'on',
		# nobody flushes what the relay wrote
		'wal_writer_delay' => '10s',
		'outbox_kafka.delivery' => 'exactly_once',
		'outbox_kafka.max_transaction_messages' => 500
	});
new_database($node, 'd');
$node->safe_psql(
	'd', q{
	CREATE TABLE ledger (event uuid, key int, version bigint);
	CREATE SEQUENCE version;
	CREATE FUNCTION spread(n int) RETURNS void LANGUAGE sql AS $$
		INSERT INTO ledger
		SELECT outbox.publish('events', v::text, (k)::text), k, v
		FROM (SELECT 1 + i % 7 AS k, nextval('version') AS v
			  FROM generate_series(1, n) AS i OFFSET 0) AS x
	$$;
	CREATE PROCEDURE load(transactions int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. transactions LOOP
			-- one writer: versions commit in order
			PERFORM spread(1 + i % 20 + CASE WHEN i % 40 = 0 THEN 1200 ELSE 0 END);
			IF i % 7 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
			PERFORM pg_sleep(0.004);
		END LOOP;
	END $$});

# Publish until the parent closes its end; through crashes.
sub start_load
{
	my $pid = fork // die "could not fork: $!";
	return $pid if $pid;
	open(STDERR, '>', '/dev/null');
	while (getppid() != 1)
	{
		try_sql($node, 'd', 'CALL load(2000)');
		sleep 0.1;
	}
	POSIX::_exit(0);
}

sub stop_load
{
	my ($pid) = @_;
	kill 'TERM', $pid;
	waitpid $pid, 0;
	# its session ends with the statement: nothing is written afterwards
	wait_until('nobody writes', sub {
		(try_sql($node, 'd', q{
			SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE query LIKE 'CALL load%'}) // '') eq '0'; });
	return;
}

sub set_fault
{
	my ($fault) = @_;
	wait_until('the setting is changed', sub {
		defined try_sql($node, 'postgres', "ALTER SYSTEM SET outbox_kafka.fault_point = '$fault'"); });
	$node->reload;
	return;
}

sub deaths
{
	my ($point) = @_;
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
	return scalar(() = $log =~ /dies at fault point "\Q$point\E"/g);
}

sub run_deaths
{
	my ($point, $wanted) = @_;
	set_fault("$point:" . (2 + int(rand(4))));
	wait_until("the relay has died $wanted times at $point",
		sub { deaths($point) >= $wanted }, 300,
		sub { PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /(.{0,3000})\z/s; $1 });
	set_fault('');
	return;
}

# Lost, repeated, extra, misordered.
sub compare
{
	my %ledger = map { my ($id, @rest) = split /\|/; ($id => \@rest) }
	  split /\n/, $node->safe_psql('d', 'SELECT event, key, version FROM ledger');
	my %seen;
	my %last;
	my %result = (lost => 0, repeated => 0, extra => 0, misordered => 0);
	for my $record ($kafka->consume('events',
			properties => { 'isolation.level' => 'read_committed' }))
	{
		my $id = $record->{header}{ce_id};
		$result{extra}++ unless $ledger{$id};
		next if $seen{$id}++ && ++$result{repeated};
		$result{misordered}++ if ($last{ $record->{key} } // 0) > $record->{payload};
		$last{ $record->{key} } = $record->{payload};
	}
	$result{lost} = grep { !$seen{$_} } keys %ledger;
	note(scalar(keys %ledger) . ' events committed');
	return \%result;
}

my $nothing = { lost => 0, repeated => 0, extra => 0, misordered => 0 };

sub wait_quiet
{
	wait_state($node, 'd', 'idle', 120);
	wait_delivered($node, 'd', 120);
	return;
}

for my $point (@points)
{
	my $load = start_load();
	run_deaths($point, $kills);
	stop_load($load);
	wait_quiet();
	is_deeply(compare(), $nothing, "$kills deaths at \"$point\": exactly once");
}

# What Kafka has committed the disk knows, also when nobody else writes to it.
for my $i (1 .. $kills)
{
	my $died = deaths('committed');
	set_fault('committed:1');
	try_sql($node, 'd', 'SELECT spread(1)');
	wait_until('the relay has died', sub { deaths('committed') > $died }, 60);
	set_fault('');
	wait_quiet();
}
is_deeply(compare(), $nothing, "$kills deaths after a single message: exactly once");

# at random
my $load = start_load();
for my $i (1 .. 2 * $kills)
{
	my $pid = wait_until('a relay runs', sub {
		try_sql($node, 'd', q{SELECT pid FROM outbox.relay_status WHERE state IN ('running', 'idle')}) || undef; }, 120);
	sleep rand(1);
	kill 'KILL', $pid;
}
stop_load($load);
insist_sql($node, 'd', 'SELECT 1');
wait_quiet();
is_deeply(compare(), $nothing, 'killed at random: exactly once');

# an orderly end, too
$load = start_load();
for my $i (1 .. 3)
{
	my $pid = wait_state($node, 'd', qr/^(running|idle)$/, 60)->{pid};
	kill 'TERM', $pid;
	wait_until('another one runs', sub { (relay_pid($node, 'd') // $pid) != $pid });
}
stop_load($load);
wait_quiet();
is_deeply(compare(), $nothing, 'ended in order: exactly once');

unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/messages may be sent a second time/, 'the position was always known');

# the proof that this finds repeats
$node->safe_psql('postgres', q{ALTER SYSTEM SET outbox_kafka.max_transaction_messages = 100});
my $before = deaths('committed');
set_fault('forget,committed:3');
$load = start_load();
wait_until('the relay has died twice more', sub { deaths('committed') >= $before + 2 }, 300);
stop_load($load);
set_fault('');
wait_quiet();
cmp_ok(compare()->{repeated}, '>', 0, 'without the read-back messages are repeated');

$node->stop;
done_testing();
