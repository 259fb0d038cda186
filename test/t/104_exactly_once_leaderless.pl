
# P4 with exactly_once: one of three brokers is away for OUTBOX_AWAY_SECONDS, and
# with it the only replica of some partitions. These wait. The others go on after
# one aborted transaction, also when the relay ends meanwhile; when the broker is
# back, all is there, in order, and once where there was a leader all the time.
# What a partition without a leader gets is up to Kafka (see "What is not
# promised" in the README): it may have forgotten to end the aborted transaction
# there, which the next one that ends there then commits.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $away = $ENV{OUTBOX_AWAY_SECONDS} // 20;

# The others may stand still for so long: until Kafka knows that the broker is
# away (a transaction that it has part in cannot end before), two seconds until
# its partitions count as silent, and what it takes to begin again, twice if
# nobody could answer before.
my $session = 3;
my $patience = $session + 9;

my $kafka = OutboxTest::Kafka->new(
	nodes => 3,
	conf => {
		'broker.session.timeout.ms' => 1000 * $session,
		'broker.heartbeat.interval.ms' => 500
	});
$kafka->start;
my $partitions = 6;
$kafka->create_topic('wide', $partitions, { 'min.insync.replicas' => 1 }, 1);
$kafka->create_topic('safe', 3);
my $node = new_node(
	'leaderless',
	kafka => $kafka,
	conf => {
		'restart_after_crash' => 'on',
		'outbox_kafka.delivery' => 'exactly_once'
	});
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

my %leader = map { $_->{number} => $_->{leader} } $kafka->partitions('wide');
my $victim = $leader{0};
my @dead = sort { $a <=> $b } grep { $leader{$_} == $victim } keys %leader;
my (@dead_keys, @live_keys);
for my $i (1 .. 200)
{
	my $dead = $leader{ murmur2_partition("w$i", $partitions) } == $victim;
	push @{ $dead ? \@dead_keys : \@live_keys }, "w$i";
}
splice @dead_keys, 10;
splice @live_keys, 20;

my %count;

sub publish_round
{
	my (@keys) = @_;
	my $values = join ',', map { "('$_', " . ++$count{$_} . ')' } @keys;
	return sql("SELECT max(e::text) FROM (SELECT outbox.publish(CASE WHEN k LIKE 's%' THEN 'safe' ELSE 'wide' END,
				n::text, key => k) AS e FROM (VALUES $values) AS v(k, n)) AS p");
}

# How long those that can be sent to take to be sent to.
sub time_of_others
{
	my $begin = time;
	my $event = publish_round(@live_keys, 's1', 's2', 's3');
	wait_until('the others go on', sub { sql("SELECT outbox.status('$event')") eq 'published' },
		$away + 60, sub { join ' ', %{ relay_status($node, 'a') } });
	return time - $begin;
}

sub check
{
	my ($name) = @_;
	my %seen;
	push @{ $seen{ $_->{key} } }, $_->{payload}
	  for map { $kafka->consume($_, properties => { 'isolation.level' => 'read_committed' }) } qw(wide safe);
	my %may_repeat = map { $_ => 1 } @dead_keys;
	my @wrong;
	my $repeated = 0;
	for my $key (sort keys %count)
	{
		my %before;
		my @first = grep { !$before{$_}++ } @{ $seen{$key} // [] };
		my $repeats = @{ $seen{$key} // [] } - @first;
		$repeated += $repeats;
		push @wrong, $key
		  if "@first" ne join(' ', 1 .. $count{$key}) || ($repeats > 0 && !$may_repeat{$key});
	}
	is("@wrong", '', "$name: all in order, and each once where there was a leader");
	diag("$repeated repeated where there was none") if $repeated > 0;
	return;
}

# under load, so that the transaction under way has messages of all partitions
publish_round(@dead_keys, @live_keys, 's1', 's2', 's3') for 1 .. 3;
wait_delivered($node, 'a');
sql(q{CREATE PROCEDURE load(first int, last int, keys text[]) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN first .. last LOOP
			FOR j IN 1 .. cardinality(keys) LOOP
				PERFORM outbox.publish(CASE WHEN keys[j] LIKE 's%' THEN 'safe' ELSE 'wide' END, i::text, key => keys[j]);
			END LOOP;
			COMMIT;
			PERFORM pg_sleep(0.002);
		END LOOP;
	END $$});
my $load = $node->background_psql('a');
my $keys = join ',', map { "'$_'" } sort keys %count;
$load->query_until(qr/started/, "\\echo started\nCALL load(4, 1003, ARRAY[$keys]);\n");
$count{$_} = 1003 for keys %count;
wait_until('the load is sent', sub { $kafka->message_count('safe') > 100 });
$kafka->kill9($victim);
my $killed = time;
$load->query_safe('SELECT 1');
$load->quit;
my $took = time_of_others();
diag(sprintf 'the others stood still for %.1f s', $took);
cmp_ok($took, '<', $patience, 'the others go on');
wait_until('the silent partitions are held', sub {
	publish_round(@dead_keys);
	sql(q{SELECT coalesce(string_agg(partition::text, ',' ORDER BY partition), '') FROM outbox.held_lanes WHERE topic = 'wide'})
	  eq join ',', @dead }, 60, sub { sql('TABLE outbox.held_lanes') });
cmp_ok(time_of_others(), '<', 3, 'and without a delay when these are held');

# another relay starts
my $pid = relay_pid($node, 'a');
kill 'TERM', $pid;
wait_until('another relay', sub { my $new = relay_pid($node, 'a'); $new && $new != $pid });
cmp_ok(time_of_others(), '<', $patience, 'with another relay, too');
kill_worker($node, 'KILL', relay_pid($node, 'a'));
cmp_ok(time_of_others(), '<', $patience, 'and when that was killed');
while (time < $killed + $away)
{
	publish_round(@dead_keys);
	$took = time_of_others();
	cmp_ok($took, '<', $patience, 'the others go on') if $took >= $patience;
	sleep 0.5;
}

$kafka->start_node($victim);
wait_until('nothing is held', sub { sql('SELECT count(*) FROM outbox.held_lanes') == 0 }, 120,
	sub { sql('TABLE outbox.held_lanes') });
wait_delivered($node, 'a', 120);

# readers of a partition whose transaction was not ended wait for this one
publish_round(@dead_keys, @live_keys, 's1', 's2', 's3');
wait_delivered($node, 'a', 120);
check('the broker is back');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/messages may be sent a second time/,
	'the position was always known');

$node->stop;
done_testing();
