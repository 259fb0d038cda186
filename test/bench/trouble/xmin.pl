
# A transaction holds a snapshot in the database while messages flow. The rate
# is to stay as it is, writing progress must not become slower, and there are
# no dead rows in the tables of messages. (A held snapshot holds the horizon of
# its own database alone.) See test/bench/trouble.sh.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../../lib";

use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;
use OutboxTest::Trouble;

my $kafka = OutboxTest::Kafka->new(timeout => 600);
$kafka->start;
$kafka->create_topic("$_\_one", 6) for @OutboxTest::Trouble::databases;

my $trouble = OutboxTest::Trouble->new($kafka, topics => ['one'], conf => { 'autovacuum_naptime' => '10s' });
my $node = $trouble->{node};
my $count = sub { return $trouble->published($_[0], 'one'); };
my $minutes = OutboxTest::Trouble::minutes();
my $slice = 60 * $minutes / 10;

# From the commit until the progress that covers it is stored, ms, the median
# of 25: a session that waits makes the relay store it at once.
sub round_trip
{
	my ($database) = @_;
	return $node->safe_psql($database, qq{
		CALL round_trips('${database}_one', 25);
		SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY ms) FROM round_trip});
}

# How long a lookup of progress takes that has to pass all dead versions, as
# whoever reads it by SQL does; and what the tables hold.
sub progress_tables
{
	my ($database) = @_;
	my $state = 'SELECT * FROM outbox.relay_state AS s JOIN outbox.relay_position AS p USING (cursor_id) WHERE cursor_id = 0';
	my @times;
	for (1 .. 5)
	{
		push @times, $1 if $node->safe_psql($database, "EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) $state") =~ /Execution Time: ([\d.]+)/;
	}
	@times = sort { $a <=> $b } @times;
	my $dead = $node->safe_psql($database, q{
		SELECT string_agg(relname || ' ' || coalesce(pg_stat_get_dead_tuples(oid), 0) || ' in ' || pg_relation_size(oid) / 8192 || ' blocks', ', ' ORDER BY relname)
		FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relname IN ('relay_state', 'relay_position')});
	my $messages = $node->safe_psql($database, q{
		SELECT coalesce(sum(pg_stat_get_dead_tuples(oid)), 0)
		FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relname ~ '^message_[0-9]$'});
	return sprintf 'a read %.2f ms, dead rows: %s, messages %d', $times[2], $dead, $messages;
}

# CPU of the relay for each 1,000 messages, in ms: the writes are part of it.
sub relay_cpu
{
	my ($database) = @_;
	open(my $stat, '<', '/proc/' . relay_pid($node, $database) . '/stat') or return 0;
	my @fields = split ' ', (<$stat> =~ s/^.*\) //r);
	return ($fields[11] + $fields[12]) * 10;
}

sub slice_of
{
	my ($what, $before) = @_;
	my %cpu = map { $_ => relay_cpu($_) } @OutboxTest::Trouble::databases;
	my %n = map { $_ => $count->($_) } @OutboxTest::Trouble::databases;
	my $rate = $trouble->measure($slice, $count);
	$trouble->report($what, $before // $rate, $rate);
	for my $database (@OutboxTest::Trouble::databases)
	{
		diag(sprintf '%s, %s: relay %.1f ms CPU per 1,000 messages; commit to stored progress %s ms; %s', $what, $database,
			1000 * (relay_cpu($database) - $cpu{$database}) / (($count->($database) - $n{$database}) || 1),
			round_trip($database), progress_tables($database));
	}
	return $rate;
}

for my $database (@OutboxTest::Trouble::databases)
{
	$node->safe_psql($database, q{
		CREATE UNLOGGED TABLE round_trip (ms numeric(10, 1));
		CREATE PROCEDURE round_trips(topic text, n int) LANGUAGE plpgsql AS $$
		DECLARE
			began timestamptz;
			event uuid;
		BEGIN
			TRUNCATE round_trip;
			FOR i IN 1 .. n LOOP
				event := outbox.publish(topic, 'round trip'::text, key => 'trip');
				COMMIT;
				began := clock_timestamp();
				IF outbox.wait_published(event, '60 s') THEN
					INSERT INTO round_trip VALUES (extract(epoch FROM clock_timestamp() - began) * 1000);
				END IF;
				COMMIT;
			END LOOP;
		END $$});
}
$trouble->start;
my $before = slice_of('without');
my $holder = $node->background_psql('troubled', timeout => 600 + 120 * $minutes);
$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$holder->query_safe('SELECT count(*) FROM pg_class');
my $began = time;
slice_of('held, first minute', $before);
sleep $slice while time - $began + $slice < 60 * $minutes;
slice_of(sprintf('held for %.1f minutes', (time - $began) / 60), $before);
is($node->safe_psql('troubled', q{SELECT coalesce(sum(pg_stat_get_dead_tuples(oid)), 0)
	FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relname ~ '^message_[0-9]$'}), 0, 'no dead rows of messages');
$holder->query_safe('COMMIT');
$holder->quit;
$trouble->finish;
done_testing();
