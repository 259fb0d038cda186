
# What cannot be sent to must not stop what can: a topic that is paused, one
# that the broker does not know, a partition whose broker is away. Its messages
# wait, in order, and come out in order; the others go on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new(
	nodes => 3,
	conf => { 'auto.create.topics.enable' => 'false' });
$kafka->start;
$kafka->create_topic('good', 3);
$kafka->create_topic('other', 3);

my $node = new_node('held', kafka => $kafka);
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

# Messages $from to $to of a topic, over 20 keys; the payload is the number.
sub publish_numbers
{
	my ($topic, $from, $to) = @_;
	sql("SELECT outbox.publish('$topic', i::text, key => 'k' || i % 20)
		 FROM generate_series($from, $to) AS i");
	return;
}

# The numbers in a topic, by key, in the order of arrival.
sub numbers_by_key
{
	my ($topic) = @_;
	my %numbers;
	push @{ $numbers{ $_->{key} } }, $_->{payload} for $kafka->consume($topic);
	return \%numbers;
}

# Every number once, in order within each key.
sub check_complete
{
	my ($topic, $count, $name, %options) = @_;
	my $numbers = numbers_by_key($topic);
	my (%times, $misordered);
	for my $list (values %$numbers)
	{
		my $last = 0;
		for my $number (@$list)
		{
			next if $times{$number}++;
			$misordered++ if $number < $last;
			$last = $number;
		}
	}
	is(scalar(grep { $times{$_} } 1 .. $count), $count, "$name: none is lost");
	is($misordered // 0, 0, "$name: in order");
	my $repeated = grep { $_ > 1 } values %times;
	if ($options{may_repeat})
	{
		note "$name: $repeated arrived more than once";
	}
	else
	{
		is($repeated, 0, "$name: each arrived once");
	}
	return;
}

sub wait_held
{
	my ($lanes, $seconds) = @_;
	wait_until("held: $lanes", sub {
			return sql(q{SELECT coalesce(string_agg(topic || coalesce('/' || partition, ''), ',' ORDER BY topic, partition), '')
				FROM outbox.held_lanes}) eq $lanes;
		}, $seconds // 30, sub { sql('SELECT * FROM outbox.held_lanes') . relay_status($node, 'a')->{last_error} });
	return;
}

# ---------------------------------------------------------------------------
# A paused topic
# ---------------------------------------------------------------------------

publish_numbers('good', 1, 100);
wait_delivered($node, 'a');
sql("SELECT outbox.pause('good')");
wait_held('good');
publish_numbers('good', 101, 200);
publish_numbers('other', 1, 100);
my $event = sql("SELECT outbox.publish('good', '201', key => 'k1')");
my $last = sql("SELECT outbox.publish('other', '101', key => 'k1')");
is(sql("SELECT outbox.wait_published('$last', '20 s')"), 't', 'another topic goes on while one is paused');
is(sql("SELECT outbox.wait_published('$event', '0.2 s')"), 'f', 'a message of the paused topic is not published');
is(sql("SELECT outbox.status('$event')"), 'pending', 'and shows as pending');
is(sql("SELECT outbox.status('$last')"), 'published', 'the other one as published');
is(sql("SELECT count(*) FROM outbox.pending WHERE topic = 'good'"), 101, 'outbox.pending has those that wait');
is(sql("SELECT count(*) FROM outbox.pending WHERE topic = 'other'"), 0, 'and no other');
is(sql("SELECT reason FROM outbox.held_lanes"), 'paused', 'the view says why');
wait_until('the number of those that wait', sub { sql('SELECT messages_waiting FROM outbox.held_lanes') == 101 }, 20);
is($kafka->message_count('good'), 100, 'nothing of it was sent');

# the same after a restart
$node->restart;
publish_numbers('other', 102, 120);
publish_numbers('good', 202, 250);
$last = sql("SELECT outbox.publish('other', '121', key => 'k1')");
is(sql("SELECT outbox.wait_published('$last', '20 s')"), 't', 'another topic goes on after a restart');
is($kafka->message_count('good'), 100, 'the paused one is still held');

sql("SELECT outbox.resume('good')");
is(sql("SELECT outbox.wait_published('$event', '20 s')"), 't', 'resumed, it is published');
wait_held('');
publish_numbers('good', 251, 300);
wait_delivered($node, 'a');
check_complete('good', 300, 'paused topic');
check_complete('other', 121, 'the other topic');
is(sql("SELECT count(*) FROM outbox.relay_state"), 1, 'its cursor is gone');

# ---------------------------------------------------------------------------
# A topic that the broker does not know, and gets later
# ---------------------------------------------------------------------------

my $begin = time;
sql(q{
	DO $$ BEGIN
		FOR i IN 1 .. 500 LOOP
			PERFORM outbox.publish('later', i::text, key => 'k' || i % 20);
			PERFORM outbox.publish('good', (300 + i)::text, key => 'k' || i % 20);
			COMMIT;
		END LOOP;
	END $$});
$last = sql("SELECT outbox.publish('good', '801', key => 'k1')");
is(sql("SELECT outbox.wait_published('$last', '20 s')"), 't', 'an unknown topic does not stop another one');
cmp_ok(time - $begin, '<', 10, 'nor for long');
wait_held('later');
like(sql('SELECT error FROM outbox.held_lanes'), qr/unknown topic/i, 'the view says what the broker said');
is(sql("SELECT count(*) FROM outbox.pending WHERE topic = 'later'"), 500, 'all of its messages wait');
wait_until('a warning in the log',
	sub { $node->log_contains(qr/outbox_kafka holds topic "later": .*nknown topic/) }, 30);
$kafka->create_topic('later', 3);
wait_held('', 60);
wait_delivered($node, 'a');
check_complete('later', 500, 'topic that came later');
check_complete('good', 801, 'the known topic');

done_testing();
