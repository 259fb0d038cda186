
# The first messages for a hundred topics at once, again after a restart, and
# in a backlog: the relay asks for topics together, before it comes to them, and
# what it then sends is complete and in order. One of them is not known at first:
# it waits, and no other.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $topics = 100;
my @topics = map { "topic_$_" } 1 .. $topics;
my $broker = OutboxTest::MockBroker->new;    # makes topics when it is asked for them
my $node = new_node('many', kafka => $broker);
new_database($node, 'a');

sub sql { return $node->safe_psql('a', $_[0]); }

# Round after round to all topics, each with two keys.
my $round = 0;

sub publish_rounds
{
	my ($rounds) = @_;
	my ($first, $last) = ($round + 1, $round + $rounds);
	sql(qq{SELECT count(outbox.publish('topic_' || t, i::text, 'k' || k))
		FROM generate_series($first, $last) AS i, generate_series(1, $topics) AS t, generate_series(1, 2) AS k});
	$round = $last;
	return;
}

publish_rounds(3);
wait_delivered($node, 'a', 60);
pass('first messages');

$node->restart;
publish_rounds(3);
wait_delivered($node, 'a', 60);

# librdkafka 2.1 to 2.9 crash when a topic's metadata has an error and partitions.
if ($node->log_contains(qr/Use librdkafka 2\.0, or 2\.10/))
{
	diag('no topic is unknown: this librdkafka would crash');
}
else
{
	$broker->command('topic-error topic_77 UNKNOWN_TOPIC_OR_PART');
	$node->restart;
	publish_rounds(2);
	wait_until('only the unknown topic waits', sub {
			sql(q{SELECT string_agg(DISTINCT topic, ' ') FROM outbox.pending}) eq 'topic_77'
			  && sql('SELECT string_agg(topic, \' \') FROM outbox.held_lanes') eq 'topic_77' }, 60);
	pass('only the unknown topic waits');
	$broker->command('topic-error topic_77 0');
	wait_delivered($node, 'a', 60);
}

# A backlog, for which another kind of producer is made.
sql('SELECT outbox.pause()');
publish_rounds(600);
sql('SELECT outbox.resume()');
wait_delivered($node, 'a', 120);
my $expected = join ' ', 1 .. $round;
my @wrong;
for my $topic (@topics)
{
	my %payloads = (k1 => [], k2 => []);
	my %seen;
	for my $record (OutboxTest::Kcat::consume($broker->bootstrap, $topic))
	{
		push @{ $payloads{ $record->{key} } }, $record->{payload}
		  unless $seen{"$record->{key} $record->{payload}"}++;
	}
	push @wrong, map { "$topic $_: @{$payloads{$_}}" } grep { "@{$payloads{$_}}" ne $expected } sort keys %payloads;
}
is(join("\n", @wrong), '', 'each topic has all its messages in order');
is(sql('SELECT count(*) FROM outbox.parked'), 0, 'nothing is parked');

$node->stop;
$broker->stop;
done_testing();
