
# Messages of a held lane that are given up with exactly_once: at its head while
# it is held, and in the middle of what it catches up with. The others are sent
# once, in order.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 2) for qw(held free);
my $node = new_node('discard', kafka => $kafka, conf => { 'outbox_kafka.delivery' => 'exactly_once' });
new_database($node, 'd');

my @ids;

# What became of the messages, in order.
sub wait_statuses
{
	my ($expected, $name) = @_;
	my $statuses = '';
	wait_until($name, sub {
		$statuses = join ',', map { $node->safe_psql('d', "SELECT outbox.status('$_')") } @ids;
		return $statuses eq $expected; }, 60,
		sub { "$statuses\n" . $node->safe_psql('d', 'TABLE outbox.held_lanes') });
	pass($name);
	return;
}

publish($node, 'd', q{'held', 'first'::text, 'key'});
wait_delivered($node, 'd');
$node->safe_psql('d', q{SELECT outbox.pause('held')});
@ids = map { publish($node, 'd', "'held', 'message $_'::text, 'key'") } 1 .. 6;
publish($node, 'd', q{'free', 'another'::text, 'key'});
wait_until('the topic is held', sub {
	$node->safe_psql('d', q{SELECT coalesce(sum(messages_waiting), 0) FROM outbox.held_lanes}) eq '6' }, 60,
	sub { $node->safe_psql('d', 'TABLE outbox.held_lanes') });

$node->safe_psql('d', "SELECT outbox.discard('$_')") for @ids[ 0, 1 ];
wait_statuses('discarded,discarded,pending,pending,pending,pending', 'the first two are given up while the topic is held');

$node->safe_psql('d', "SELECT outbox.discard('$ids[3]')");
$node->safe_psql('d', q{SELECT outbox.resume('held')});
wait_statuses('discarded,discarded,published,discarded,published,published', 'the fourth on the way');
is(join(', ', map { $_->{payload} } $kafka->consume('held')), 'first, message 3, message 5, message 6',
	'the others are sent once, in order');
is(join(', ', map { $_->{payload} } $kafka->consume('free')), 'another', 'the other topic did not wait');
done_testing();
