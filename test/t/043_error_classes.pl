
# Every class of error that a broker can answer with, injected into a mock
# broker, and what the relay makes of it: retried without a word, the producer
# made anew, the message alone parked, the topic held. Whatever it is, nothing
# is lost, first arrivals are in order, and the relay's process is the same.
#
# The mock broker does not look at sequence numbers: it takes a second request
# when it has refused the first, which no real broker does, and librdkafka then
# believes that the first had arrived. So there is one message in flight when an
# error is injected, and more follow. Refused batches of many: t/050_parked.pl,
# with a real Kafka.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $broker = OutboxTest::MockBroker->new(topics => { orders => 1, others => 1 });
my $node = new_node('classes', kafka => $broker);
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

my %published = (orders => 0, others => 0);

sub publish_next
{
	my ($topic, $count) = @_;
	$count //= 1;
	my $from = $published{$topic} + 1;
	$published{$topic} += $count;
	sql("SELECT outbox.publish('$topic', i::text, 'k') FROM generate_series($from, $published{$topic}) AS i");
	return;
}

# First arrivals, as one string.
sub arrived
{
	my ($topic) = @_;
	my %seen;
	return join ' ', grep { !$seen{$_}++ } map { $_->{payload} } OutboxTest::Kcat::consume($broker->bootstrap, $topic);
}

sub check_all_arrived
{
	my ($name) = @_;
	wait_delivered($node, 'a', 120);
	publish_next('orders', 4);
	wait_delivered($node, 'a', 120);
	for my $topic (sort keys %published)
	{
		is(arrived($topic), join(' ', 1 .. $published{$topic}), "$name: all of $topic is there, in order");
	}
	is(sql('SELECT count(*) FROM outbox.parked'), 0, '... nothing is parked');
	wait_until('nothing is held', sub { sql('SELECT count(*) FROM outbox.held_lanes') eq '0' });
	return;
}

sub log_size { return -s $node->logfile }

publish_next('orders', 3);
publish_next('others', 3);
check_all_arrived('without errors');
my $pid = relay_pid($node, 'a');

# ---------------------------------------------------------------------------
# What passes: librdkafka tries again, nobody is told
# ---------------------------------------------------------------------------

for my $code (qw(REQUEST_TIMED_OUT NOT_LEADER_FOR_PARTITION LEADER_NOT_AVAILABLE NOT_ENOUGH_REPLICAS
	NOT_ENOUGH_REPLICAS_AFTER_APPEND KAFKA_STORAGE_ERROR COORDINATOR_NOT_AVAILABLE UNKNOWN_TOPIC_OR_PART _TRANSPORT))
{
	my $begin = log_size();
	$broker->command("error produce $code 2");
	publish_next('orders');
	check_all_arrived($code);
	ok(!$node->log_contains(qr/WARNING|ERROR/, $begin), '... without a word');
}

# ---------------------------------------------------------------------------
# What ends a producer: it is made anew, no message is blamed
# ---------------------------------------------------------------------------

for my $code (qw(OUT_OF_ORDER_SEQUENCE_NUMBER INVALID_PRODUCER_EPOCH UNKNOWN_PRODUCER_ID CLUSTER_AUTHORIZATION_FAILED
	INVALID_PRODUCER_ID_MAPPING UNSUPPORTED_VERSION))
{
	$broker->command("error produce $code 1");
	publish_next('orders');
	publish_next('others');
	check_all_arrived($code);
}
for my $code (qw(CLUSTER_AUTHORIZATION_FAILED COORDINATOR_LOAD_IN_PROGRESS))
{
	# a fatal error makes a new producer, which then meets this one
	$broker->command("error init-producer-id $code 2");
	$broker->command('error produce INVALID_PRODUCER_EPOCH 1');
	publish_next('orders');
	check_all_arrived("$code at the start of a producer");
}

# ---------------------------------------------------------------------------
# What refuses a batch: all good, if each message alone is taken
# ---------------------------------------------------------------------------

for my $code (qw(MSG_SIZE_TOO_LARGE INVALID_RECORD INVALID_TIMESTAMP INVALID_REQUIRED_ACKS POLICY_VIOLATION 4711))
{
	$broker->command("error produce $code 1");
	publish_next('orders');
	publish_next('others');
	check_all_arrived($code);
}

# And the one that is refused alone is parked, with those of its key behind it.
$broker->command('error produce INVALID_RECORD 1000');
publish_next('orders', 3);
wait_until('the messages are parked', sub { sql("SELECT count(*) FROM outbox.parked WHERE topic = 'orders'") eq '3' });
is(sql("SELECT string_agg(reason, ',' ORDER BY id) FROM outbox.parked"), 'refused,behind,behind',
	'a message that is refused alone is parked, those of its key wait behind it');
$broker->command('clear produce');
publish_next('others');
wait_delivered($node, 'a');
sql("SELECT outbox.retry('orders')");
wait_until('nothing is parked', sub { sql('SELECT count(*) FROM outbox.parked') eq '0' });
check_all_arrived('tried again');

# ---------------------------------------------------------------------------
# What is the topic's: it is held, others go on
# ---------------------------------------------------------------------------

for my $code (qw(TOPIC_AUTHORIZATION_FAILED TOPIC_EXCEPTION))
{
	$broker->command("error produce $code 1");
	publish_next('orders');
	check_all_arrived($code);
}
for my $code (qw(UNKNOWN_TOPIC_OR_PART TOPIC_AUTHORIZATION_FAILED))
{
	# A producer that has just failed asks for the topic anew.
	$broker->command("topic-error orders $code");
	$broker->command('error produce INVALID_PRODUCER_EPOCH 1');
	publish_next('orders');
	wait_until("orders is held for $code", sub { sql("SELECT count(*) FROM outbox.held_lanes WHERE topic = 'orders'") eq '1' });
	publish_next('others', 2);
	my $last = sql("SELECT event_id FROM outbox.message WHERE topic = 'others' ORDER BY id DESC LIMIT 1");
	is(sql("SELECT outbox.wait_published('$last', '30 s')"), 't', "$code after a failure: another topic goes on");
	is(sql("SELECT reason FROM outbox.held_lanes"), 'refused', '... and the view says why it does not');
	$broker->command('topic-error orders NO_ERROR');
	check_all_arrived("$code is over");
}

# ---------------------------------------------------------------------------
# A broker that is slow, or goes and comes
# ---------------------------------------------------------------------------

# Slower than what a lane is given before it is held, too.
for my $ms (1000, 3000)
{
	$broker->command("rtt all $ms");
	publish_next('orders', 50);
	publish_next('others', 50);
	wait_delivered($node, 'a', 120);
	$broker->command('rtt all 0');
	check_all_arrived("answers that take $ms ms");
}
for (1 .. 5)
{
	$broker->command('down all');
	publish_next('orders', 10);
	$broker->command('up all');
	publish_next('others', 10);
}
check_all_arrived('connections dropped, five times');

is(relay_pid($node, 'a'), $pid, 'it was one and the same relay');
$node->stop;
done_testing();
