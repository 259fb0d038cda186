
# The relay's memory is bounded by its window, whatever waits: a transaction of
# 200,000 messages, payloads of nearly a megabyte with the window full, and a
# backlog that grew while the broker was away and is drained then. Memory is
# what the process has of its own (RssAnon), sampled all the time.
#
# OUTBOX_RESOURCES_ROWS sets the size of the backlog (300,000). With 10,000,000
# it is the measurement of doc/testing.md: the rate of each tenth of the drain
# is printed, and the last must reach 0.9 of the first from a million rows on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use List::Util qw(max min);
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $rows = $ENV{OUTBOX_RESOURCES_ROWS} // 300_000;
my $at_once = $rows >= 1_000_000 ? 1_000_000 : 200_000;
my $mb = 1024;
my $tenths = 10;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 6) for qw(many large backlog);
my $node = new_node(
	'main',
	kafka => $kafka,
	conf => {
		'shared_buffers' => '128MB',
		'max_wal_size' => '4GB',
		'outbox_kafka.retention' => '0'
	});
new_database($node, 'a');
wait_published($node, 'a', publish($node, 'a', qq{'$_', 'first'::text, 'k'}))
  for qw(many large backlog);
my $pid = relay_pid($node, 'a');

# Kilobytes of the relay that are its own, not shared with the server.
sub memory
{
	open(my $file, '<', "/proc/$pid/status") or die "the relay has ended: $!";
	my ($kb) = map { /^RssAnon:\s+(\d+)/ ? $1 : () } <$file>;
	return $kb;
}

sub published
{
	return relay_status($node, 'a')->{published};
}

# Samples of [time, published, highest memory since the last sample] until so
# many are published since there were $start.
sub watch
{
	my ($start, $count) = @_;
	my $deadline = time + 60 + $count / 2000;
	my @samples;
	while (1)
	{
		my $high = 0;
		for (1 .. 10)
		{
			$high = max($high, memory());
			sleep 0.01;
		}
		my $done = published() - $start;
		push @samples, [ time, $done, $high ];
		last if $done >= $count;
		die "$done of $count are published" if time > $deadline;
	}
	return @samples;
}

sub highest
{
	return max(map { $_->[2] } @_);
}

my $idle = memory();
note("idle: $idle kB");

# One transaction of many messages.
my $before = published();
$node->safe_psql('a',
	qq{SELECT count(outbox.publish('many', repeat('x', 200), 'key-' || i % 1000))
	   FROM generate_series(1, $at_once) AS i});
my $many = highest(watch($before, $at_once));
diag(sprintf 'one transaction of %d messages: %d kB, idle %d kB',
	$at_once, $many, $idle);
cmp_ok($many, '<', 64 * $mb, 'a large transaction: memory is bounded');
is($kafka->message_count('many'), $at_once + 1, 'all of it arrived');

# 200 payloads of 950 kB: six times the window's 32 MB.
$before = published();
$node->safe_psql('a',
	q{SELECT count(outbox.publish('large', convert_to(repeat(md5(i::text), 29687), 'UTF8'), 'key-' || i))
	  FROM generate_series(1, 200) AS i});
my $large = highest(watch($before, 200));
diag("payloads of 950 kB: $large kB");
cmp_ok($large, '<', 96 * $mb, 'large payloads: memory is bounded');
is($kafka->message_count('large'), 201, 'all of them arrived');

# A backlog while the broker is away.
$before = published();
$kafka->stop_node(1);
my $away = 0;
for (my $left = $rows; $left > 0; $left -= 100_000)
{
	my $count = min($left, 100_000);
	$node->safe_psql('a',
		qq{SELECT count(outbox.publish('backlog', repeat('x', 200), 'key-' || i % 1000))
		   FROM generate_series(1, $count) AS i});
	$away = max($away, memory());
}
for (1 .. 100)
{
	$away = max($away, memory());
	sleep 0.02;
}
cmp_ok(relay_status($node, 'a')->{in_flight}, '<=', 50_000,
	'the window is what is read of it');
cmp_ok($away, '<', 64 * $mb, 'the broker away: memory is bounded');

$kafka->start_node(1);
my @drain = watch($before, $rows);
is($pid, relay_pid($node, 'a'), 'it is the same relay all the time');
is($kafka->message_count('backlog'), $rows + 1, 'all of it arrived, once');
diag(sprintf 'a backlog of %d: %d kB while the broker is away, %d kB while it is drained',
	$rows, $away, highest(@drain));
cmp_ok(highest(@drain), '<', 64 * $mb, 'the drain: memory is bounded');

# Flat: once the window is full no more is needed. It is full before half of
# the backlog has left. A sample says how high it was since the one before, so
# the one that passes the middle says something of both halves.
my @halves = ([], []);
my $middle_passed = 0;
for my $sample (@drain)
{
	push @{ $halves[0] }, $sample if !$middle_passed;
	$middle_passed = 1 if $sample->[1] > $rows / 2;
	push @{ $halves[1] }, $sample if $middle_passed;
}
note('kB in the halves of the drain: ',
	join ' | ', map { join ' ', map { $_->[2] } @$_ } @halves);
cmp_ok(highest(@{ $halves[1] }), '<=', highest(@{ $halves[0] }) + 8 * $mb,
	'the drain: memory is flat');

# The rate of each tenth, from where it was first seen to be crossed.
my @crossed;
for my $sample (@drain)
{
	my $tenth = int($sample->[1] * $tenths / $rows);
	push @crossed, $sample while @crossed <= min($tenth, $tenths);
}
my @rates = map {
	my ($from, $to) = @crossed[ $_ - 1, $_ ];
	$to->[0] > $from->[0] ? ($to->[1] - $from->[1]) / ($to->[0] - $from->[0]) : ()
} 2 .. $#crossed;
diag('messages a second in each tenth after the first: ',
	join ' ', map { sprintf '%.0f', $_ } @rates);
cmp_ok($rates[-1], '>=', 0.9 * $rates[0], 'the drain: the rate is flat')
  if $rows >= 1_000_000;

$node->stop;
done_testing();
