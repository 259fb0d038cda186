
# A topic that is deleted and made again. What Kafka had acknowledged is gone
# with the topic; everything else reaches the new one, in order but for what
# README says. Other topics do not notice, and the relay goes on by itself.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use IPC::Run qw(start);
use PostgreSQL::Test::Utils qw(slurp_file);

use OutboxTest;
use OutboxTest::Kafka;

my $KEYS = 20;

# Whatever librdkafka makes of it: that several messages were refused, or what
# became of them is not known.
my $refused_aloud = qr/WARNING: .*(?:has not said that it has written it|topic "changing" when it was refused|cannot send: .*\bchanging\b)/;

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

# First, or last, arrivals of each number, by key.
sub numbers_by_key
{
	my ($topic, $last) = @_;
	my (%numbers, %seen);
	my @records = $kafka->consume($topic);
	for my $record ($last ? reverse @records : @records)
	{
		push @{ $numbers{ $record->{key} } }, $record->{payload} unless $seen{ $record->{payload} }++;
	}
	return $last ? { map { ($_ => [ reverse @{ $numbers{$_} } ]) } keys %numbers } : \%numbers;
}

# For each key all its numbers up to $last, from some number on that is at most
# $surely: what is missing is what the topic's predecessor had. Returns what is
# wrong.
sub wrong_keys
{
	my ($numbers, $surely, $last) = @_;
	my @wrong;
	for my $k (0 .. $KEYS - 1)
	{
		my @arrived = @{ $numbers->{"k$k"} // [] };
		my $first = $arrived[0] // $last + 1;
		my @expected = grep { $_ % $KEYS == $k } $first .. $last;
		push @wrong, "k$k from $first, $surely sure" unless "@arrived" eq "@expected" && $first < $surely + $KEYS;
	}
	return join ', ', @wrong;
}

sub check_rest
{
	my ($topic, $surely, $last, $name) = @_;
	is(wrong_keys(numbers_by_key($topic), $surely, $last), '', $name);
	return;
}

# A topic that is made anew may take a batch behind one that was refused before.
# Not without a sound then, and all that was overtaken is sent again, in order.
sub check_rest_or_warning
{
	my ($topic, $surely, $last, $log_start, $name) = @_;
	my $wrong = wrong_keys(numbers_by_key($topic), $surely, $last);
	if ($wrong eq '')
	{
		pass($name);
		return;
	}
	note("overtaken: $wrong");
	my $log = substr(slurp_file($node->logfile), $log_start);
	my $again = wrong_keys(numbers_by_key($topic, 'last'), $surely, $last);
	is($again . ($log =~ $refused_aloud ? '' : ' without a warning'), '', $name);
	return;
}

# The same where keys may have moved to other partitions on the way, as they do
# when a topic gets another number of them: what had been sent to a partition
# that the new topic has, too, stays there. Nothing of a key is missing.
sub check_rest_moved
{
	my ($topic, $surely, $last, $name) = @_;
	my $numbers = numbers_by_key($topic);
	$_ = [ sort { $a <=> $b } @$_ ] for values %$numbers;
	is(wrong_keys($numbers, $surely, $last), '', $name);
	return;
}

# ---------------------------------------------------------------------------
# Away for a while, and then with other partitions
# ---------------------------------------------------------------------------

publish_numbers(1, 500);
wait_delivered($node, 'a');
is($kafka->message_count('changing'), 500, 'all is in the topic');

my $deleted_at = -s $node->logfile;
$kafka->delete_topic('changing');
publish_numbers(501, 1000);
wait_until('the topic is held', sub { sql("SELECT reason FROM outbox.held_lanes WHERE topic = 'changing'") eq 'refused' });
$kafka->wait_messages('steady', 1000);
pass('another topic goes on');
like(substr(slurp_file($node->logfile), $deleted_at), $refused_aloud,
	'that messages were refused is said aloud');
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

sub publish_while_made_anew
{
	my ($partitions) = @_;
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
	$kafka->create_topic('changing', $partitions);
	my $surely = sql("SELECT coalesce(max(convert_from(payload, 'UTF8')::int), 0) FROM outbox.message WHERE topic = 'changing'") + 1;
	$load->finish or BAIL_OUT("psql: $err");
	$number += 4000;
	publish_numbers($number + 1, $number + 100);
	$number += 100;
	wait_delivered($node, 'a', 60);
	return $surely;
}

for my $round (1 .. 2)
{
	my $log_start = -s $node->logfile;
	my $surely = publish_while_made_anew(5);
	check_rest_or_warning('changing', $surely, $number, $log_start, "several batches on their way, round $round: in order, or sent again with a warning");
}

my $fewer = publish_while_made_anew(3);
check_rest_moved('changing', $fewer, $number, 'fewer partitions: from the first that arrived, all of each key');

$node->append_conf('postgresql.conf', q{outbox_kafka.producer_config = 'max.in.flight=1'});
$node->reload;
for my $round (1 .. 2)
{
	my $surely = publish_while_made_anew(3);
	check_rest('changing', $surely, $number, "one batch on its way, round $round: from the first that arrived, all of each key in order");
}
my $steady = numbers_by_key('steady');
is(scalar(map { @$_ } values %$steady), $number, 'another topic has lost nothing');
check_rest('steady', 1, $number, 'and is in order');

is(relay_pid($node, 'a'), $pid, 'it was the same relay all the time');
is(sql('SELECT count(*) FROM outbox.parked'), 0, 'nothing is parked');

$node->stop;
$kafka->stop;
done_testing();
