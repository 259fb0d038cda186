
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
	my ($lanes, $seconds, $meanwhile) = @_;
	wait_until("held: $lanes", sub {
			$meanwhile->() if $meanwhile;
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

# ---------------------------------------------------------------------------
# One of three brokers away, a topic without replicas: its partitions wait
# ---------------------------------------------------------------------------

my $partitions = 6;
$kafka->create_topic('wide', $partitions, {}, 1);
my %leader = map { $_->{number} => $_->{leader} } $kafka->partitions('wide');
my $victim = $leader{0};
my @dead = sort { $a <=> $b } grep { $leader{$_} == $victim } keys %leader;
cmp_ok(scalar @dead, '<', $partitions, 'there are partitions on other brokers');

# keys that go to partitions of either kind
my (@dead_keys, @live_keys);
for my $i (1 .. 200)
{
	my $partition = murmur2_partition("w$i", $partitions);
	push @{ $leader{$partition} == $victim ? \@dead_keys : \@live_keys }, "w$i";
}
splice @dead_keys, 20;
splice @live_keys, 40;

# Payloads count up in each key, so that order and gaps show.
my %count;

sub publish_round
{
	my (@keys) = @_;
	my $values = join ',', map { "('$_', " . ++$count{$_} . ')' } @keys;
	return sql("SELECT max(e::text) FROM (SELECT outbox.publish('wide', n::text, key => k) AS e
				FROM (VALUES $values) AS v(k, n)) AS p");
}

sub check_rounds
{
	my ($name) = @_;
	my $numbers = numbers_by_key('wide');
	my ($lost, $misordered, $repeated) = (0, 0, 0);
	for my $key (keys %count)
	{
		my ($last, %times) = (0);
		for my $number (@{ $numbers->{$key} // [] })
		{
			$repeated++, next if $times{$number}++;
			$misordered++ if $number < $last;
			$last = $number;
		}
		$lost += grep { !$times{$_} } 1 .. $count{$key};
	}
	is($lost, 0, "$name: none is lost");
	is($misordered, 0, "$name: in order");
	note "$name: $repeated arrived more than once";
	return;
}

# A writer that took its id before, and commits while the lane is held.
my $late = $node->background_psql('a');
publish_round(@dead_keys, @live_keys) for 1 .. 3;
wait_delivered($node, 'a');
$late->query_safe("BEGIN");
$late->query_safe("SELECT outbox.publish('wide', '" . ++$count{'late-' . $_} . "', key => 'late-$_')") for 1 .. 20;

$kafka->kill9($victim);
publish_round(@dead_keys, @live_keys) for 1 .. 3;
wait_held(join(',', map { "wide/$_" } @dead), 60, sub { publish_round(@live_keys) });
is(sql("SELECT DISTINCT reason FROM outbox.held_lanes"), 'no answer', 'the view says why');
$begin = time;
$event = publish_round(@live_keys);
is(sql("SELECT outbox.wait_published('$event', '20 s')"), 't', 'partitions of other brokers go on');
cmp_ok(time - $begin, '<', 3, 'and at once');
$late->query_safe('COMMIT');
$late->quit;
publish_round(@dead_keys, @live_keys) for 1 .. 20;
$event = publish_round(@live_keys);
is(sql("SELECT outbox.wait_published('$event', '20 s')"), 't', 'also when others wait');

# another relay starts with what this one had held
my $pid = relay_pid($node, 'a');
kill 'TERM', $pid;
wait_until('another relay', sub { my $new = relay_pid($node, 'a'); $new && $new != $pid });
$event = publish_round(@live_keys);
is(sql("SELECT outbox.wait_published('$event', '30 s')"), 't', 'also after a restart of the relay');
is(sql("SELECT count(*) FROM outbox.held_lanes WHERE topic = 'wide'"), scalar @dead, 'the lanes are still held');
publish_round(@dead_keys, @live_keys) for 1 .. 3;

$kafka->start_node($victim);
wait_held('', 120);
wait_delivered($node, 'a');
check_rounds('a broker away');
is(sql("SELECT count(*) FROM outbox.relay_state"), 1, 'no cursor is left');

# ---------------------------------------------------------------------------
# The same under load, with the broker killed and started in the middle of it
# ---------------------------------------------------------------------------

sql(q{CREATE PROCEDURE load(first int, last int, keys text[]) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN first .. last LOOP
			FOR j IN 1 .. cardinality(keys) LOOP
				PERFORM outbox.publish('wide', i::text, key => keys[j]);
			END LOOP;
			COMMIT;
		END LOOP;
	END $$});
my $keys = join ',', map { "'$_'" } sort keys %count;
delete $count{$_} for grep { /^late/ } keys %count;
my $load = $node->background_psql('a');
my $first = 1 + (sort { $b <=> $a } values %count)[0];
$count{$_} = $first - 1 for keys %count;
$keys = join ',', map { "'$_'" } sort keys %count;
$load->query_until(qr/started/, "\\echo started\nCALL load($first, " . ($first + 1499) . ", ARRAY[$keys]);\n");
$kafka->wait_messages('wide', 20000, 60);
$kafka->kill9($victim);
wait_until('a lane is held', sub { sql('SELECT count(*) FROM outbox.held_lanes') > 0 }, 60);
$kafka->start_node($victim);
$load->query_safe('SELECT 1');
$load->quit;
wait_held('', 120);
wait_delivered($node, 'a');
{
	my $numbers = numbers_by_key('wide');
	my ($lost, $misordered, $repeated) = (0, 0, 0);
	for my $key (keys %count)
	{
		my ($last, %times) = (0);
		for my $number (@{ $numbers->{$key} })
		{
			$repeated++, next if $times{$number}++;
			$misordered++ if $number < $last;
			$last = $number;
		}
		$lost += grep { !$times{$_} } $first .. $first + 1499;
	}
	is($lost, 0, 'under load: none is lost');
	is($misordered, 0, 'under load: in order');
	note "under load: $repeated arrived more than once";
}

# ---------------------------------------------------------------------------
# Copies while a topic is held: a copied database parks what it has not sent,
# a dump takes along just that
# ---------------------------------------------------------------------------

sql("SELECT outbox.pause('good')");
wait_held('good');
publish_numbers('good', 2001, 2030);
$last = sql("SELECT outbox.publish('other', '1000', key => 'k1')");
is(sql("SELECT outbox.wait_published('$last', '20 s')"), 't', 'another topic goes on');
my $dump = $node->basedir . '/held.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('a') ], 'a dump is taken');
$node->safe_psql('postgres', 'CREATE DATABASE copied TEMPLATE a');
wait_until('the copy has parked them', sub {
		$node->safe_psql('copied', q{SELECT count(*) FROM outbox.parked WHERE topic = 'good' AND reason = 'restored'}) == 30;
	}, 60);
is($node->safe_psql('copied', 'SELECT count(*) FROM outbox.parked'), 30, 'and nothing else');
is($node->safe_psql('copied', "SELECT count(*) FROM outbox.pending"), 0, 'nothing is pending in the copy');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('restored'), $dump ], 'the dump is restored');
is($node->safe_psql('restored', q{SELECT count(*), count(*) FILTER (WHERE topic = 'good') FROM outbox.parked}),
	'30|30', 'the dump had just those that wait');
my $before = $kafka->message_count('good');
sql("SELECT outbox.resume('good')");
wait_held('');
wait_delivered($node, 'a');
is($kafka->message_count('good'), $before + 30, 'the original has sent them, once');
$node->safe_psql('postgres', "DROP DATABASE $_") for qw(copied restored);

done_testing();
