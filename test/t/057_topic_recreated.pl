
# A topic that is deleted and made again. What Kafka had acknowledged is gone
# with the topic; everything else reaches the new one, in order. Other topics
# do not notice, and the relay goes on by itself.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use IPC::Run qw(start);

use OutboxTest;
use OutboxTest::Kafka;

my $KEYS = 20;

my $kafka = OutboxTest::Kafka->new(conf => { 'auto.create.topics.enable' => 'false' });
$kafka->start;
$kafka->create_topic('changing', 3);
$kafka->create_topic('steady', 3);

my $node = new_node('recreated', kafka => $kafka);
new_database($node, 'a');
my $pid = wait_until('there is a relay', sub { relay_pid($node, 'a') });

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

sub publish_numbers
{
	my ($from, $to) = @_;
	sql("SELECT outbox.publish(topic, i::text, key => 'k' || i % $KEYS)
		 FROM generate_series($from, $to) AS i, unnest('{changing,steady}'::text[]) AS topic");
	return;
}

# First arrivals of each number, by key.
sub numbers_by_key
{
	my ($topic) = @_;
	my (%numbers, %seen);
	for my $record ($kafka->consume($topic))
	{
		push @{ $numbers{ $record->{key} } }, $record->{payload} unless $seen{ $record->{payload} }++;
	}
	return \%numbers;
}

# For each key all its numbers up to $last, from some number on that is at most
# $surely: what is missing is what the topic's predecessor had.
sub check_rest
{
	my ($topic, $surely, $last, $name) = @_;
	my $numbers = numbers_by_key($topic);
	my @wrong;
	for my $k (0 .. $KEYS - 1)
	{
		my @arrived = @{ $numbers->{"k$k"} // [] };
		my $first = $arrived[0] // $last + 1;
		my @expected = grep { $_ % $KEYS == $k } $first .. $last;
		push @wrong, "k$k from $first, $surely sure" unless "@arrived" eq "@expected" && $first < $surely + $KEYS;
	}
	is(join(', ', @wrong), '', $name);
	return;
}

# ---------------------------------------------------------------------------
# Away for a while, and then with other partitions
# ---------------------------------------------------------------------------

publish_numbers(1, 500);
wait_delivered($node, 'a');
is($kafka->message_count('changing'), 500, 'all is in the topic');

$kafka->delete_topic('changing');
publish_numbers(501, 1000);
wait_until('the topic is held', sub { sql("SELECT reason FROM outbox.held_lanes WHERE topic = 'changing'") eq 'refused' });
$kafka->wait_messages('steady', 1000);
pass('another topic goes on');
publish_numbers(1001, 1500);

$kafka->create_topic('changing', 5);
wait_delivered($node, 'a', 60);
check_rest('changing', 501, 1500, 'all that was published since is in the new topic, in order');
is($kafka->message_count('changing'), 1000, 'once, and nothing that the old one had');
wait_until('the topic is not held any more', sub { sql('SELECT count(*) FROM outbox.held_lanes') eq '0' });
publish_numbers(1501, 1600);
wait_delivered($node, 'a', 60);
is($kafka->message_count('changing'), 1100, 'and goes on');

# ---------------------------------------------------------------------------
# Under load, made again at once
# ---------------------------------------------------------------------------

my $number = 1600;
for my $round (1 .. 3)
{
	my ($out, $err) = ('', '');
	my $statement = "DO \$\$ BEGIN FOR i IN 1 .. 400 LOOP
			PERFORM outbox.publish(topic, ($number + (i - 1) * 10 + j)::text, key => 'k' || ($number + (i - 1) * 10 + j) % $KEYS)
				FROM generate_series(1, 10) AS j, unnest('{changing,steady}'::text[]) AS topic;
			COMMIT;
		END LOOP; END \$\$;";
	my $load = start([ 'psql', '-XAtq', '-d', $node->connstr('a'), '-c', $statement ], '<', '/dev/null', '>', \$out, '2>', \$err);
	my $before = $kafka->message_count('steady');
	$kafka->wait_messages('steady', $before + 1000);
	$kafka->delete_topic('changing');
	$kafka->create_topic('changing', 3);
	my $surely = sql("SELECT coalesce(max(convert_from(payload, 'UTF8')::int), 0) FROM outbox.message WHERE topic = 'changing'") + 1;
	$load->finish or BAIL_OUT("psql: $err");
	$number += 4000;
	publish_numbers($number + 1, $number + 100);
	$number += 100;
	wait_delivered($node, 'a', 60);
	check_rest('changing', $surely, $number, "round $round: from the first that arrived, all of each key in order");
}
my $steady = numbers_by_key('steady');
is(scalar(map { @$_ } values %$steady), $number, 'another topic has lost nothing');
check_rest('steady', 1, $number, 'and is in order');

is(relay_pid($node, 'a'), $pid, 'it was the same relay all the time');
is(sql('SELECT count(*) FROM outbox.parked'), 0, 'nothing is parked');

$node->stop;
$kafka->stop;
done_testing();
