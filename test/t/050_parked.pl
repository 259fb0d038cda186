
# Messages that the broker refuses: only what it refuses alone is put aside,
# and what queues behind it by topic and key; nothing else stops, is lost or
# changes its order. Then what a user decides about them: retry and discard.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;

# batches smaller than the limit of the topic below
my $node = new_node(
	'parked',
	kafka => $kafka,
	conf => { 'outbox_kafka.producer_config' => 'batch.size=15000' });
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

sub count_parked
{
	my ($where) = @_;
	return sql("SELECT count(*) FROM outbox.parked WHERE $where");
}

# The first arrival of each payload, by key; payloads are numbers and a filler.
sub arrivals_by_key
{
	my ($topic) = @_;
	my (%seen, %numbers);
	for my $record ($kafka->consume($topic))
	{
		my ($number) = split /:/, $record->{payload};
		push @{ $numbers{ $record->{key} // '' } }, $number
		  unless $seen{$number}++;
	}
	return \%numbers;
}

sub out_of_order
{
	my ($numbers) = @_;
	my $wrong = 0;
	for my $key (keys %$numbers)
	{
		my @list = @{ $numbers->{$key} };
		$wrong += grep { $list[$_] < $list[ $_ - 1 ] } 1 .. $#list;
	}
	return $wrong;
}

# ---------------------------------------------------------------------------
# 100 messages too large for their topic, spread among good ones of the same
# partition and batch; each is followed by two small ones of its key.
# ---------------------------------------------------------------------------

$kafka->create_topic('small', 1, { 'max.message.bytes' => 20000 });
sql(q{
	SELECT outbox.publish('small',
		CASE WHEN i % 30 = 7 THEN i || ':' || repeat('x', 30000) ELSE i || ':' END,
		key => CASE WHEN i % 30 IN (7, 8, 20) THEN 'bad-' || i / 30 ELSE 'good-' || i % 11 END)
	FROM generate_series(1, 3000) AS i});
wait_delivered($node, 'a');
is(count_parked("reason = 'refused'"), 100, 'the refused ones are parked');
is(count_parked("reason = 'behind'"), 200, 'and those behind them');
is(count_parked("error LIKE '%too large%' AND reason = 'refused'"),
	100, 'with the words of the broker');

my $numbers = arrivals_by_key('small');
my $arrived = 0;
$arrived += @$_ for values %$numbers;
is($arrived, 2700, 'all others arrived');
is(out_of_order($numbers), 0, 'in the order of each key');
is((grep { /^bad/ } keys %$numbers), 0, 'none of a parked key');

my $victim = sql("SELECT event_id FROM outbox.parked WHERE reason = 'refused' ORDER BY id LIMIT 1");
is(sql("SELECT outbox.status('$victim')"), 'parked', 'status() says so');
is(sql("SELECT outbox.wait_published('$victim', '100 ms')"),
	'f', 'wait_published() does not take it for published');

# A new message of a parked key, by another relay, queues behind as well.
my $pid = relay_pid($node, 'a');
sql("SELECT pg_terminate_backend($pid)");
wait_until('another relay runs',
	sub { (relay_pid($node, 'a') // $pid) != $pid });
sql("SELECT outbox.publish('small', '3001:', 'bad-5')");
sql("SELECT outbox.publish('small', '3002:', 'good-1')");
wait_delivered($node, 'a');
is(count_parked("reason = 'behind'"), 201, 'a later message queues behind');

# Given up, it lets those behind it go.
sql("SELECT outbox.discard('$victim')");
wait_until('those behind it have left',
	sub { count_parked("reason = 'behind'") == 199 });
is(count_parked("reason = 'refused'"), 99, 'the discarded one is gone');

# Tried again while nothing has changed, they come back.
is(sql("SELECT outbox.retry('small')"), 298, 'retry() counts');
wait_until('each was refused again',
	sub { count_parked("reason = 'refused' AND attempts >= 2") == 99 });
is(count_parked("reason = 'behind'"), 199, 'those behind them waited');

# With the limit raised, all leave in order.
$kafka->configure_topic('small', { 'max.message.bytes' => 1000000 });
sql("SELECT outbox.retry('small')");
wait_until('nothing is parked', sub { count_parked('true') == 0 });
$numbers = arrivals_by_key('small');
$arrived = 0;
$arrived += @$_ for values %$numbers;
is($arrived, 3001, 'all but the discarded one arrived');
is(out_of_order($numbers), 0, 'in the order of each key');
sql("SELECT outbox.publish('small', '3003:', 'bad-5')");
wait_delivered($node, 'a');
is(count_parked('true'), 0, 'the key is free again');

# ---------------------------------------------------------------------------
# A record without a key for a compacted topic: only itself.
# ---------------------------------------------------------------------------

$kafka->create_topic('compacted', 1, { 'cleanup.policy' => 'compact' });
sql(q{
	SELECT outbox.publish('compacted', i || ':', key => CASE WHEN i <> 50 THEN 'k' || i % 3 END)
	FROM generate_series(1, 100) AS i});
wait_delivered($node, 'a');
is(count_parked("topic = 'compacted'"), 1, 'compacted topic: one is parked');
$numbers = arrivals_by_key('compacted');
$arrived = 0;
$arrived += @$_ for values %$numbers;
is($arrived, 99, 'compacted topic: the others arrived');
is(out_of_order($numbers), 0, 'compacted topic: in order');
sql("SELECT outbox.discard(event_id) FROM outbox.parked");

# ---------------------------------------------------------------------------
# A record whose time the topic refuses is sent with the time of now.
# ---------------------------------------------------------------------------

$kafka->create_topic('fresh', 1, { 'message.timestamp.before.max.ms' => 1000 });
sql('SELECT outbox.pause()');
sql(q{SELECT outbox.publish('fresh', i || ':', key => 'k') FROM generate_series(1, 5) AS i});
my $published = time;
wait_until('they are too old', sub { time - $published > 1.5 });
sql('SELECT outbox.resume()');
wait_delivered($node, 'a');
is(count_parked('true'), 0, 'old record: nothing is parked');
my @records = $kafka->consume('fresh');
is_deeply([ map { $_->{payload} } @records ],
	[ map { "$_:" } 1 .. 5 ], 'old record: all arrived in order');

# ---------------------------------------------------------------------------
# A partition that the topic does not have.
# ---------------------------------------------------------------------------

$kafka->create_topic('two', 2);
sql(q{SELECT outbox.publish('two', i || ':', key => 'k' || i, partition => CASE WHEN i = 2 THEN 7 END)
	FROM generate_series(1, 3) AS i});
wait_delivered($node, 'a');
is(sql('SELECT error FROM outbox.parked'),
	'partition 7 does not exist, the topic has 2', 'missing partition: parked');
is($kafka->message_count('two'), 2, 'missing partition: the others arrived');

is(wait_state($node, 'a', 'idle')->{state}, 'idle', 'the relay is idle in the end');
done_testing();
