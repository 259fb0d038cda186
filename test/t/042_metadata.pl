
# A cluster that cannot make up its mind: leaders that move from broker to
# broker, a partition without a leader, topics that vanish from the metadata
# and come back, requests for metadata and for a place to write that fail,
# brokers that go and come in turn, all of it in the middle of a load. Nothing
# is lost, each key keeps its order, nothing is parked or held for good, the
# relay is the same process all the time, and it does not fill the log.
#
# The mock brokers check sequence numbers of transactions only. Without these
# they take a batch also when the one before it was refused, which no real one
# does: the order is looked at with exactly once only.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use List::Util qw(shuffle);
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $seed = $ENV{OUTBOX_METADATA_SEED} // 42;
my $seconds = $ENV{OUTBOX_METADATA_SECONDS} // 12;
srand $seed;
diag("OUTBOX_METADATA_SEED=$seed");

my $brokers = 3;
my %partitions = (calm => 2, wild => 6, gone => 3);
my @topics = sort keys %partitions;

sub any { my ($from, $to) = @_; return $from + int rand(1 + $to - $from); }

sub trouble_with
{
	my ($delivery) = @_;

	my $broker = OutboxTest::MockBroker->new(
		brokers => $brokers, topics => \%partitions, timeout => 120 + $seconds);

	my $node = new_node($delivery, conf => {
			'outbox_kafka.bootstrap_servers' => $broker->bootstrap,
			'outbox_kafka.delivery' => $delivery });
	new_database($node, 'a');
	my $sql = sub { return $node->safe_psql('a', $_[0]) };

	# Each round publishes one message of each of 30 keys to each topic, numbered.
	$sql->(q{
		CREATE TABLE stop ();
		CREATE TABLE round (n int NOT NULL);
		INSERT INTO round VALUES (0);
		CREATE PROCEDURE load() LANGUAGE plpgsql AS $$
		BEGIN
			WHILE NOT EXISTS (SELECT FROM stop) LOOP
				UPDATE round SET n = n + 1;
				PERFORM outbox.publish(t, n::text, key => 'k' || k)
					FROM round, unnest(ARRAY['calm', 'gone', 'wild']) AS t, generate_series(1, 30) AS k;
				COMMIT;
				PERFORM pg_sleep(0.05);
			END LOOP;
		END $$});
	my $load = $node->background_psql('a');
	$load->query_until(qr/started/, "\\echo started\nCALL load();\n");
	wait_until('messages flow', sub { relay_status($node, 'a')->{published} > 900 });
	my $pid = relay_pid($node, 'a');
	my $log_start = -s $node->logfile;

	# What happens to the cluster. Each has an end; at most one broker is down.

	my %counts;
	my $down = 0;
	my $command = sub { $broker->command($_[0]) };

	my %events = (
		# every partition of a topic, to some broker
		move => sub {
			$command->("leader wild $_ " . any(1, $brokers)) for 0 .. $partitions{wild} - 1;
		},
		# one partition to and fro, faster than a client asks
		flap => sub {
			my $partition = any(0, $partitions{wild} - 1);
			$command->("leader wild $partition " . any(1, $brokers)) for 1 .. 10;
		},
		leaderless => sub {
			my $partition = any(0, $partitions{wild} - 1);
			$command->("leader wild $partition -1");
			sleep 0.3;
			$command->("leader wild $partition " . any(1, $brokers));
		},
		# unknown for a moment, and for longer than the relay waits for an answer
		vanish => sub {
			$command->('topic-error gone UNKNOWN_TOPIC_OR_PART');
			$command->("leader gone $_ " . any(1, $brokers)) for 0 .. $partitions{gone} - 1;
			sleep any(0, 1) ? 0.1 : 1.5;
			$command->('topic-error gone 0');
		},
		unavailable => sub {
			$command->('topic-error gone LEADER_NOT_AVAILABLE');
			sleep 0.2;
			$command->('topic-error gone 0');
		},
		stale => sub {
			$command->('error produce NOT_LEADER_FOR_PARTITION ' . any(1, 10));
		},
		silent => sub {
			my $number = any(1, $brokers);
			$command->("rtt $number 400");
			sleep 0.5;
			$command->("rtt $number 0");
		},
		down => sub {
			$command->("up $down") if $down;
			$down = $down % $brokers + 1;
			$command->("down $down");
		},
		up => sub {
			$command->("up $down") if $down;
		});

	# librdkafka 2.1 to 2.9 crash when a topic's metadata has an error and
	# partitions, as the mock brokers' have; the relay warns of these versions.
	if ($node->log_contains(qr/Use librdkafka 2\.0, or 2\.10/))
	{
		diag('topics do not vanish: this librdkafka would crash');
		delete @events{qw(vanish unavailable)};
	}

	my $end = time + $seconds;
	my @next;
	while (time < $end || @next > 0)
	{
		@next = shuffle(sort keys %events) unless @next;
		my $event = shift @next;
		$counts{$event}++;
		$events{$event}->();
		sleep 0.05 + rand 0.3;
	}
	diag("$delivery: " . join ', ', map { "$_ $counts{$_}" } sort keys %counts);
	is(scalar(keys %counts), scalar(keys %events), 'each kind of event came up');

	# Then all is well again

	$command->("up $_") for 1 .. $brokers;
	$command->("rtt $_ 0") for 1 .. $brokers;
	$command->('clear produce');
	$command->('topic-error gone 0');
	$command->("leader $_->[0] $_->[1] 1")
	  for map { my $t = $_; map { [ $t, $_ ] } 0 .. $partitions{$t} - 1 } @topics;
	$sql->('INSERT INTO stop DEFAULT VALUES');
	$load->query_safe('SELECT 1');
	$load->quit;

	my $lanes = sub {
		return $sql->('SELECT topic, partition, reason, error, messages_waiting FROM outbox.held_lanes');
	};
	wait_until('nothing is held', sub { $lanes->() eq '' }, 60, $lanes);
	is($sql->('SELECT count(*) FROM outbox.parked'), 0, 'nothing is parked');
	wait_delivered($node, 'a', 60);
	is(relay_pid($node, 'a'), $pid, 'the relay was not restarted');

	my $rounds = $sql->('SELECT n FROM round');
	my $expected = $rounds * 30 * @topics;
	my (%times, %last, $misordered, %moved);
	wait_until('all have arrived', sub {
			%times = %last = %moved = ();
			$misordered = 0;
			for my $record (map { OutboxTest::Kcat::consume($broker->bootstrap, $_) } @topics)
			{
				my $key = "$record->{topic} $record->{key}";
				next if $times{"$key $record->{payload}"}++;
				$moved{$key}++ if ($last{$key}{partition} // $record->{partition}) != $record->{partition};
				$misordered++ if $record->{payload} < ($last{$key}{number} // 0);
				$last{$key} = { number => $record->{payload}, partition => $record->{partition} };
			}
			return keys %times >= $expected;
		}, 60, sub {
			my @missing;
			for my $topic (@topics)
			{
				for my $key (map { "k$_" } 1 .. 30)
				{
					push @missing, grep { !$times{$_} } map { "$topic $key $_" } 1 .. $rounds;
				}
			}
			splice @missing, 20;
			return scalar(keys %times) . " of $expected, missing: @missing";
		});
	is(scalar(keys %times), $expected, "$delivery: each of $expected messages arrived");
	is($misordered, 0, 'in order') if $delivery eq 'exactly_once';
	is(scalar(keys %moved), 0, 'no key changed its partition');
	my $repeated = grep { $_ > 1 } values %times;
	diag("$repeated arrived more than once");

	# What the log has of it

	my @lines = grep { /outbox_kafka/ } split /\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile, $log_start);
	note "log: $_" for @lines;
	unlike(join("\n", @lines), qr/ERROR|FATAL|PANIC/, 'no error in the log');
	my $events = 0;
	$events += $_ for values %counts;
	cmp_ok(scalar @lines, '<', 20 + 3 * $events, scalar(@lines) . " lines in the log for $events events");

	$node->stop;
	$broker->stop;
	return;
}

trouble_with('at_least_once');
trouble_with('exactly_once');
done_testing();
