
# Messages that somebody gives up: those that wait for a topic that was a
# mistake, of a topic that is paused, single ones among others, parked ones.
# What is given up is never sent and shows as discarded; all others arrive, in
# order; a topic that nothing waits for any more is not held. Also when the
# server crashes in the middle of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new(conf => { 'auto.create.topics.enable' => 'false' });
$kafka->start;
$kafka->create_topic($_, 2) for qw(good steady witness);

my $node = new_node('discard', kafka => $kafka,
	conf => { 'outbox_kafka.retention' => '1h', 'autovacuum' => 'off' });
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

# Messages $from to $to of a topic, over 5 keys; the payload is the number.
sub publish_numbers
{
	my ($topic, $from, $to) = @_;
	sql("SELECT outbox.publish('$topic', i::text, key => 'k' || i % 5)
		 FROM generate_series($from, $to) AS i");
	return;
}

sub wait_held
{
	my ($lanes) = @_;
	wait_until("held: $lanes", sub {
			return sql(q{SELECT coalesce(string_agg(topic, ',' ORDER BY topic), '') FROM outbox.held_lanes}) eq $lanes;
		}, 30, sub { sql('SELECT * FROM outbox.held_lanes') });
	return;
}

# How many messages of a topic have each status, as "pending 2, published 3".
sub statuses
{
	my ($topic) = @_;
	return sql("SELECT coalesce(string_agg(status || ' ' || n, ', ' ORDER BY status), '')
		FROM (SELECT status, count(*) AS n FROM outbox.message_status WHERE topic = '$topic' GROUP BY 1) AS s");
}

sub wait_statuses
{
	my ($topic, $expected, $name) = @_;
	wait_until("$name: $expected", sub { statuses($topic) eq $expected }, 30,
		sub { statuses($topic) . "\n" . sql('SELECT * FROM outbox.held_lane') . sql('SELECT * FROM outbox.discard_request') });
	is(statuses($topic), $expected, $name);
	return;
}

# The numbers that arrived, each key in the order of numbers.
sub arrived
{
	my ($topic, $name) = @_;
	my (%last, @numbers);
	my $misordered = 0;
	for my $record ($kafka->consume($topic))
	{
		$misordered++ if $record->{payload} < ($last{ $record->{key} } // 0);
		$last{ $record->{key} } = $record->{payload};
		push @numbers, $record->{payload};
	}
	is($misordered, 0, "$name: in order");
	return [ sort { $a <=> $b } @numbers ];
}

sub nothing_is_left
{
	my ($name) = @_;
	wait_until("$name: requests are removed", sub { sql('SELECT count(*) FROM outbox.discard_request') == 0 }, 20);
	is(sql('SELECT count(*) FROM outbox.relay_state'), 1, "$name: no cursor is left");
	return;
}

publish_numbers('steady', 1, 10);
wait_delivered($node, 'a');

# ---------------------------------------------------------------------------
# A topic that was a mistake
# ---------------------------------------------------------------------------

publish_numbers('mistake', 1, 300);
wait_held('mistake');
my $event = sql(q{SELECT event_id FROM outbox.message WHERE topic = 'mistake' ORDER BY id DESC LIMIT 1});
my $uncommitted = $node->background_psql('a');
$uncommitted->query_safe('BEGIN');
$uncommitted->query_safe(q{SELECT outbox.publish('mistake', '301', key => 'k1')});

my ($code, $out, $err) = $node->psql('a', q{SELECT outbox.discard_topic('good')});
isnt($code, 0, 'a topic that is not held cannot be discarded');
like($err, qr/topic "good" is not held/, 'the error says so');

is(sql(q{BEGIN; SELECT outbox.discard_topic('mistake'); ROLLBACK}), 300, 'how many there are');
is(statuses('mistake'), 'pending 300', 'rolled back, nothing is discarded');
is(sql(q{SELECT outbox.discard_topic('mistake')}), 300, 'a topic is discarded: how many there were');
wait_statuses('mistake', 'discarded 300', 'an unknown topic');
wait_held('');
nothing_is_left('an unknown topic');
is(sql("SELECT outbox.status('$event')"), 'discarded', 'a discarded message shows as such');
is(sql("SELECT outbox.wait_published('$event', '60 s')"), 'f', 'nobody waits for it');
is(sql(q{SELECT count(*) FROM outbox.pending}), 0, 'it is not pending');
is(sql(q{SELECT DISTINCT discarded_by FROM outbox.discarded_message}),
	sql('SELECT session_user'), 'the record says who asked for it');
wait_until('the log says so', sub { $node->log_contains(qr/outbox_kafka discarded 300 messages of topic "mistake"/) }, 10);

$uncommitted->query_safe('COMMIT');
$uncommitted->quit;
wait_held('mistake');
is(statuses('mistake'), 'discarded 300, pending 1', 'what committed later is not meant');
$kafka->create_topic('mistake', 2);
wait_held('');
publish_numbers('mistake', 302, 310);
wait_delivered($node, 'a');
is_deeply(arrived('mistake', 'the topic made after all'), [ 301 .. 310 ], 'and arrives, nothing else does');
is(statuses('mistake'), 'discarded 300, published 10', 'the statuses stay as they are');

# Published after it was asked for, and before the relay heard of it.
publish_numbers('again', 1, 10);
wait_held('again');
my $asking = $node->background_psql('a');
$asking->query_safe('BEGIN');
is($asking->query_safe(q{SELECT outbox.discard_topic('again')}), 10, 'those that the statement saw');
publish_numbers('again', 11, 12);
$asking->query_safe('COMMIT');
$asking->quit;
wait_statuses('again', 'discarded 10, pending 2', 'no others are discarded');
$kafka->create_topic('again', 2);
wait_held('');
wait_delivered($node, 'a');
is_deeply(arrived('again', 'published meanwhile'), [ 11, 12 ], 'they arrive');
nothing_is_left('published meanwhile');

# ---------------------------------------------------------------------------
# Single messages of a topic that is paused
# ---------------------------------------------------------------------------

sql(q{SELECT outbox.pause('good')});
wait_held('good');
publish_numbers('good', 1, 50);
is(sql(q{SELECT sum(outbox.discard(event_id)) FROM outbox.message
	WHERE topic = 'good' AND convert_from(payload, 'UTF8') IN ('1', '2', '20', '50')}), 4, 'single messages are discarded');
wait_statuses('good', 'discarded 2, pending 48', 'as far as they are the first');
sql(q{SELECT outbox.resume('good')});
wait_held('');
wait_delivered($node, 'a');
is(statuses('good'), 'discarded 4, published 46', 'the others when it is their turn');
is_deeply(arrived('good', 'a paused topic'), [ grep { $_ != 1 && $_ != 2 && $_ != 20 && $_ != 50 } 1 .. 50 ],
	'the rest arrives');
nothing_is_left('single messages');

# A paused topic is discarded and stays paused.
sql(q{SELECT outbox.pause('good')});
is(sql(q{SELECT outbox.discard_topic('good')}), 0, 'nothing waits');
publish_numbers('good', 51, 60);
wait_held('good');
nothing_was_discarded('good', 'discarded 4, pending 10, published 46');
is(sql(q{SELECT outbox.discard_topic('good')}), 10, 'all of a paused topic');
wait_statuses('good', 'discarded 14, published 46', 'a paused topic');
wait_held('good');
publish_numbers('good', 61, 65);
sql(q{SELECT outbox.resume('good')});
wait_held('');
wait_delivered($node, 'a');
is(statuses('good'), 'discarded 14, published 51', 'what was published afterwards is not meant');
is_deeply(arrived('good', 'paused again'), [ grep { $_ != 1 && $_ != 2 && $_ != 20 && $_ != 50 } 1 .. 50, 61 .. 65 ],
	'and arrives');
nothing_is_left('a paused topic');

# The relay has seen the request when another message went through, and one after
# that: it looks for requests before each look for messages. The request itself
# may stay: the lane cannot be read past what waits, and more that is meant might
# be behind it.
sub nothing_was_discarded
{
	my ($topic, $expected) = @_;
	wait_published($node, 'a', publish($node, 'a', q{'witness', 'x'::text})) for 1 .. 2;
	is(statuses($topic), $expected, 'what was published after the request waits');
	return;
}

is(sql(q{SELECT sum(outbox.discard(event_id)) FROM outbox.message WHERE topic = 'good'}), 0,
	'a message that is published cannot be discarded');

# ---------------------------------------------------------------------------
# While the broker is away, and with crashes in between
# ---------------------------------------------------------------------------

publish_numbers('wrong', 1, 20000);
wait_held('wrong');
publish_numbers('steady', 11, 20);
wait_delivered_of('steady', 20);
is(sql(q{SELECT outbox.discard_topic('wrong')}), 20000, 'many are discarded');
my $before = 0;
for (1 .. 3)
{
	wait_until('some more are discarded', sub {
			return sql(q{SELECT count(*) > least($before, 19999) FROM outbox.discarded_message WHERE topic = 'wrong'} =~ s/\$before/$before/r) eq 't';
		}, 30);
	$node->stop('immediate');
	$node->start;
	my $statuses = statuses('wrong');
	my ($discarded, $pending) = map { $statuses =~ /$_ (\d+)/ ? $1 : 0 } qw(discarded pending);
	$before = $discarded;
	note "after a crash: $discarded discarded, $pending pending";
	is($discarded + $pending, 20000, 'after a crash each is one or the other');
	is(sql(q{SELECT count(*) FROM outbox.discarded_message AS d WHERE topic = 'wrong' AND EXISTS (SELECT FROM outbox.pending AS p WHERE p.id = d.id)}),
		0, 'none is both');
}
publish_numbers('steady', 21, 30);
wait_delivered_of('steady', 30);
wait_statuses('wrong', 'discarded 20000', 'with crashes');
wait_held('');
nothing_is_left('with crashes');
$kafka->create_topic('wrong', 2);
is($kafka->message_count('wrong'), 0, 'none was sent');
is_deeply(arrived('steady', 'the other topic'), [ 1 .. 30 ], 'the other topic has all of its messages');

sub wait_delivered_of
{
	my ($topic, $count) = @_;
	wait_until("$count of $topic", sub { statuses($topic) eq "published $count" }, 30, sub { statuses($topic) });
	return;
}

publish_numbers('nowhere', 1, 100);
wait_held('nowhere');
$kafka->stop_node(1);
wait_state($node, 'a', 'connecting');
is(sql(q{SELECT outbox.discard_topic('nowhere')}), 100, 'discarded without a broker');
wait_statuses('nowhere', 'discarded 100', 'without a broker');
$kafka->start_node(1);
wait_held('');
nothing_is_left('without a broker');

# ---------------------------------------------------------------------------
# Parked messages; records go with the messages
# ---------------------------------------------------------------------------

$kafka->create_topic('narrow', 1, { 'max.message.bytes' => 1000 });
my $large = sql(q{SELECT outbox.publish('narrow', string_agg(md5(i::text), ''), key => 'k1') FROM generate_series(1, 200) AS i});
my $behind = sql(q{SELECT outbox.publish('narrow', '1', key => 'k1')});
wait_until('one is parked', sub { sql(q{SELECT count(*) FROM outbox.parked WHERE topic = 'narrow' AND reason = 'refused'}) == 1 }, 60);
is(sql("SELECT outbox.discard('$large')"), 1, 'a parked message is discarded');
is(sql("SELECT outbox.status('$large')"), 'discarded', 'and shows as such');
is(sql("SELECT outbox.wait_published('$large', '60 s')"), 'f', 'nobody waits for it');
is(sql("SELECT outbox.wait_published('$behind', '60 s')"), 't', 'the one behind it goes out');
is(sql("SELECT outbox.status('$behind')"), 'published', 'and shows as published');

cmp_ok(sql('SELECT count(*) FROM outbox.discarded_message'), '>', 20000, 'records are kept with the messages');
$node->append_conf('postgresql.conf', "outbox_kafka.retention = 0\noutbox_kafka.segment_size = '1MB'");
$node->reload;
wait_until('records go when their messages are gone', sub {
		publish_numbers('steady', 31, 31 + 2000);
		return sql('SELECT count(*) FROM outbox.discarded_message') == 0;
	}, 120, sub { sql('SELECT count(*), min(id), max(id) FROM outbox.discarded_message') . sql('SELECT segment, count(*) FROM outbox.message GROUP BY 1') });
is(sql("SELECT coalesce(outbox.status('$large'), 'not retained')"), 'not retained', 'as with other messages');

# ---------------------------------------------------------------------------
# Nobody may do so by default
# ---------------------------------------------------------------------------

sql(q{CREATE ROLE operator; SELECT outbox.grant_publish('operator'); GRANT pg_monitor TO operator});
for my $call (q{outbox.discard_topic('good')}, "outbox.discard('$event')")
{
	($code, $out, $err) = $node->psql('a', "SET ROLE operator; SELECT $call");
	like($err, qr/permission denied for function/, "$call needs a grant");
}
sql(q{GRANT EXECUTE ON FUNCTION outbox.discard(uuid), outbox.discard_topic(text) TO operator});
publish_numbers('gone', 1, 3);
wait_held('gone');
is(sql(q{SET ROLE operator; SELECT outbox.discard_topic('gone')}), 3, 'with a grant it is allowed');
wait_held('');

$node->stop;
done_testing();
