
# One of three brokers is dead, and with it the partitions of which it had the
# only replica. All other partitions of the same topic, and those of another
# topic, are to keep at least 0.9 of their rate. See test/bench/trouble.sh.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../../lib";

use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;
use OutboxTest::Trouble;

my $kafka = OutboxTest::Kafka->new(nodes => 3, timeout => 600, conf => { 'min.insync.replicas' => 1 });
$kafka->start;

# What is calm has replicas: its partitions have another leader at once.
my %live;
$kafka->create_topic('troubled_wide', 6, {}, 1);
$kafka->create_topic("$_\_other", 6, {}, 3) for @OutboxTest::Trouble::databases;
$kafka->create_topic('calm_wide', 6, {}, 3);
my %leader = map { $_->{number} => $_->{leader} } $kafka->partitions('troubled_wide');
my $victim = $leader{0};
$live{troubled} = [ grep { $leader{$_} != $victim } sort keys %leader ];
$live{calm} = [ 0 .. 5 ];
cmp_ok(scalar @{ $live{troubled} }, '>', 0, 'partitions on other brokers');
diag(6 - @{ $live{troubled} } . ' of 6 partitions are on the broker that dies');

my $trouble = OutboxTest::Trouble->new($kafka, topics => [qw(wide other)]);
my $node = $trouble->{node};

# Ends of the partitions that live, asked for one by one: the topic as a whole
# cannot be asked while one has no leader.
sub ends
{
	my ($database) = @_;
	my $query = join ' ', map { "-t ${database}_wide:$_:-1" } @{ $live{$database} };
	my $sum = 0;
	my $bootstrap = join ',', map { '127.0.0.1:' . $kafka->port($_) } grep { $_ != $victim } 1 .. 3;
	for (`kcat -Q -b $bootstrap $query 2>/dev/null`)
	{
		$sum += $1 if /offset (\d+)/;
	}
	return $sum;
}
my %count = (
	'partitions of the same topic' => \&ends,
	'another topic' => sub { return $trouble->published($_[0], 'other'); });

my $seconds = 60 * OutboxTest::Trouble::minutes() / 2 / 2;
$trouble->start;
my %before = map { $_ => $trouble->measure($seconds, $count{$_}) } sort keys %count;

my $killed = time;
$kafka->kill9($victim);
my $first = $trouble->measure(5, $count{'another topic'});
$trouble->report('the first 5 s', $before{'another topic'}, $first);
wait_until('the lanes are held', sub {
		$node->safe_psql('troubled', 'SELECT count(*) FROM outbox.held_lanes') == 6 - @{ $live{troubled} };
	}, 60, sub { $node->safe_psql('troubled', 'SELECT * FROM outbox.held_lanes') });
diag(sprintf 'held after %.1f s', time - $killed);
for my $what (sort keys %count)
{
	$trouble->report($what, $before{$what}, $trouble->measure($seconds, $count{$what}));
}
diag('waiting in held lanes: ' . $node->safe_psql('troubled', 'SELECT sum(messages_waiting) FROM outbox.held_lanes'));
diag('memory of the relay: ' . (grep { /RssAnon/ } `cat /proc/@{[ relay_pid($node, 'troubled') ]}/status`)[0]);

$kafka->start_node($victim);
my $back = time;
wait_until('no lane is held', sub { $node->safe_psql('troubled', 'SELECT count(*) FROM outbox.held_lanes') == 0 },
	600, sub { $node->safe_psql('troubled', 'SELECT * FROM outbox.held_lanes') });
diag(sprintf 'the broker back, all lanes caught up after %.1f s, under load', time - $back);
$trouble->finish;
done_testing();
