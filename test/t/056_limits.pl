
# What a topic's max.message.bytes means to publishing and to sending: a message
# that cannot fit is an error in the publisher's transaction, by function and by
# INSERT, as soon as the broker has told the relay of the limit; what the broker
# would take is never refused for long; and messages that fit alone never make a
# batch that the broker refuses, while topics with larger limits keep their large
# batches. (What a broker does that tells nothing: 070 and 040.)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_node('limits', kafka => $kafka, conf => { 'outbox_kafka.headers' => 'none' });
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

sub limit_of
{
	my ($topic) = @_;
	return sql("SELECT max_message_bytes FROM outbox.topic_status WHERE topic = '$topic'");
}

sub wait_limit
{
	my ($topic, $limit) = @_;
	wait_until("the limit of $topic is known", sub { limit_of($topic) eq $limit }, 30,
		sub { sql('SELECT * FROM outbox.topic_limit') });
	return;
}

# One message with a payload of so many bytes; '' or the error.
sub try_publish
{
	my ($topic, $bytes, %options) = @_;
	my $key = $options{key} // 'NULL';
	my $headers = $options{headers} // 'NULL';
	my (undef, undef, $stderr) = $node->psql('a',
		$options{insert}
		? "INSERT INTO outbox.message (topic, payload, key, headers) VALUES ('$topic', convert_to(repeat('x', $bytes), 'UTF8'), $key, $headers)"
		: "SELECT outbox.publish('$topic', repeat('x', $bytes), $key, $headers)");
	return $stderr;
}

# What the relay did that it would not have to: messages sent again, lanes held.
sub trouble
{
	my $log = slurp_file($node->logfile);
	return join ' ', relay_status($node, 'a')->{repeated},
	  scalar(() = $log =~ /outbox_kafka holds/g),
	  sql('SELECT count(*) FROM outbox.held_lanes'), sql('SELECT count(*) FROM outbox.parked');
}

sub is_in_order
{
	my ($topic, $count, $name) = @_;
	my @numbers = map { (split /:/, $_->{payload})[0] }
	  $kafka->consume($topic, properties => { 'isolation.level' => 'read_committed' });
	is_deeply(\@numbers, [ 1 .. $count ], "$name: all once, in order");
	return;
}

# ---------------------------------------------------------------------------
# Loads of good messages whose batches would exceed the limit
# ---------------------------------------------------------------------------

# Above 16 kB batches are made smaller; below, less is under way at a time. The
# third one has Kafka's own limit.
my %load = (middle => 3000, tiny => 200, large => 3000);
$kafka->create_topic('middle', 1, { 'max.message.bytes' => 100_000 });
$kafka->create_topic('tiny', 1, { 'max.message.bytes' => 2000 });
$kafka->create_topic('large', 1);
sub publish_all
{
	my ($from, $to, @topics) = @_;
	sql('SELECT outbox.pause()');
	sql(join ';', map {
			"SELECT outbox.publish('$_', i || ':' || repeat(md5(i::text), 8), 'k') FROM generate_series($from, $to) AS i"
		} @topics);
	sql('SELECT outbox.resume()');
	wait_delivered($node, 'a');
	return;
}

for my $topic ('middle', 'tiny', 'large')
{
	publish_all(1, $load{$topic}, $topic);
	is(trouble(), '0 0 0 0', "load of topic $topic: no batch was refused");
	is_in_order($topic, $load{$topic}, "load of topic $topic");
}
sql(q{SELECT outbox.pause()});
sql(q{BEGIN; SELECT outbox.publish(topic, i || ':' || repeat(md5(i::text), 8), 'k')
	FROM generate_series(3001, 6000) AS i, unnest('{middle,large}'::text[]) AS topic; SELECT outbox.publish('tiny', i || ':' || repeat(md5(i::text), 8), 'k')
	FROM generate_series(201, 400) AS i; COMMIT});
sql(q{SELECT outbox.resume()});
wait_delivered($node, 'a');
is(trouble(), '0 0 0 0', 'mixed load: no batch was refused');
is_in_order('middle', 6000, 'mixed load, middle');
is_in_order('large', 6000, 'mixed load, large');
is_in_order('tiny', 400, 'mixed load, tiny');

# A relay that starts with what is on disk.
my $pid = relay_pid($node, 'a');
sql("SELECT pg_terminate_backend($pid)");
wait_until('another relay runs', sub { (relay_pid($node, 'a') // $pid) != $pid });
publish_all(1, 100, 'tiny');
publish_all(1, 3000, 'middle');
is(trouble(), '0 0 0 0', 'another relay: no batch was refused');

is(limit_of('middle'), 100_000, 'topic_status shows the limit');
is(limit_of('large'), 1_048_588, 'also when it is the default');

# ---------------------------------------------------------------------------
# What cannot fit
# ---------------------------------------------------------------------------

# 70 bytes is what a batch of one such record needs beside the payload: 61 for
# itself, and in the record a byte each for attributes, time, offset, the absent
# key and the number of headers, and two each for its length and the payload's.
my $count = $kafka->message_count('tiny');
is(try_publish('tiny', 1930), '', 'a batch of exactly the limit is let in');
wait_delivered($node, 'a');
is($kafka->message_count('tiny'), $count + 1, 'and the broker takes it');
is(trouble(), '0 0 0 0', 'without a refusal');
for my $insert (0, 1)
{
	my $name = $insert ? 'INSERT' : 'publish()';
	my $error = try_publish('tiny', 1931, insert => $insert);
	like($error, qr/ERROR:  message is too large for topic "tiny"/, "$name: one byte more is not");
	like($error, qr/DETAIL:  The record takes at least 2001 bytes, the topic's max.message.bytes is 2000\./,
		"$name: the error says how much");
	like(try_publish('tiny', 1500, insert => $insert, key => $insert ? q{repeat('k', 500)::bytea} : q{repeat('k', 500)}),
		qr/too large for topic/, "$name: the key counts");
	like(try_publish('tiny', 1500, insert => $insert, headers => q{jsonb_build_object('h', repeat('v', 500))}),
		qr/too large for topic/, "$name: the headers count");
	is(try_publish('large', 5000, insert => $insert), '', "$name: another topic takes more");
}
is($node->psql('a', q{SELECT outbox.publish('tiny', repeat('x', 1931))}, on_error_stop => 0) // 0, 0, 'psql goes on');
my ($state) = $node->psql('a', q{
	DO $$ BEGIN PERFORM outbox.publish('tiny', repeat('x', 5000));
	EXCEPTION WHEN program_limit_exceeded THEN RAISE NOTICE 'refused as such'; END $$});
is($state, 0, 'SQLSTATE is program_limit_exceeded');

# What the broker says of such a record: the rule refuses nothing that fits.
# (Let in as if nothing was known.)
sql('DELETE FROM outbox.topic_limit');
is(try_publish('tiny', 1931), '', 'not known: it is let in');
wait_until('the broker has refused it', sub { sql('SELECT count(*) FROM outbox.parked') == 1 });
like(sql('SELECT error FROM outbox.parked'), qr/too large/i, 'and the broker refuses it');
sql('SELECT outbox.discard(event_id) FROM outbox.parked');
wait_until('nothing is held', sub { sql('SELECT count(*) FROM outbox.held_lanes') == 0 }, 30);

# ---------------------------------------------------------------------------
# Limits that change
# ---------------------------------------------------------------------------

# Raised: the refused publisher makes the relay ask, at once or when it has not
# done so for two seconds.
$kafka->create_topic('changing', 1, { 'max.message.bytes' => 5000 });
is(try_publish('changing', 10), '', 'the first message of a topic');
wait_limit('changing', 5000);
like(try_publish('changing', 10_000), qr/too large for topic/, 'refused before the limit is raised');
$kafka->configure_topic('changing', { 'max.message.bytes' => 20_000 });
wait_until('a message is let in', sub { try_publish('changing', 10_000) eq '' }, 20);
wait_delivered($node, 'a');
is($kafka->message_count('changing'), 2, 'raised limit: and sent');
is(limit_of('changing'), 20_000, 'raised limit: known');

# A session that is open sees it as well, within its transaction.
my $session = $node->background_psql('a', on_error_stop => 0);
$session->query_safe('BEGIN');
$session->query_safe(q{SELECT outbox.publish('changing', repeat('x', 10000))});
# Lowered: the broker refuses, the relay asks at once, and the next one is told.
$kafka->configure_topic('changing', { 'max.message.bytes' => 4000 });
is(try_publish('changing', 10_000), '', 'lowered limit: the first one is let in');
wait_limit('changing', 4000);
is(sql(q{SELECT count(*) FROM outbox.parked WHERE topic = 'changing'}), 1, 'lowered limit: it is parked');
like(try_publish('changing', 10_000), qr/too large for topic/, 'lowered limit: the next one is refused');
$session->query_safe('SAVEPOINT s');
my $answer = $session->query(q{SELECT outbox.publish('changing', repeat('x', 10000))});
unlike($answer, qr/-/, 'lowered limit: also in a session that was open');
$session->query('ROLLBACK');
$session->quit;
sql('SELECT outbox.discard(event_id) FROM outbox.parked');

# Deleted: forgotten.
$kafka->delete_topic('changing');
try_publish('changing', 10_000);
wait_until('the limit of a deleted topic is forgotten',
	sub { sql(q{SELECT count(*) FROM outbox.topic_limit WHERE topic = 'changing'}) == 0 }, 30);

# ---------------------------------------------------------------------------
# A relay that compresses: what counts is the compressed batch
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', q{outbox_kafka.producer_config = 'compression.type=gzip'});
$node->reload;
wait_until('a message is let in that fits when compressed', sub { try_publish('tiny', 20_000) eq '' }, 20);
wait_delivered($node, 'a');
is(sql('SELECT count(*) FROM outbox.parked'), 0, 'compressed: sent');
is(limit_of('tiny'), 2000, 'compressed: the limit is shown all the same');
$node->append_conf('postgresql.conf', q{outbox_kafka.producer_config = ''});
$node->reload;
wait_until('it is refused again', sub { try_publish('tiny', 20_000) =~ /too large for topic/ }, 20);

# ---------------------------------------------------------------------------
# What is on the way while the broker does not answer: of a topic whose limit
# batches are made for, as much as of any; of a small one, what fits in a batch.
# ---------------------------------------------------------------------------

publish_all(1, 1, 'middle', 'tiny');
wait_state($node, 'a', 'idle');
for my $topic ('middle', 'tiny')
{
	my $before = $kafka->message_count($topic);
	$kafka->pause(1);
	sql("SELECT outbox.publish('$topic', i || ':' || repeat(md5(i::text), 8), 'k') FROM generate_series(1, 3000 / (CASE '$topic' WHEN 'tiny' THEN 100 ELSE 1 END)) AS i");
	if ($topic eq 'middle')
	{
		wait_until('all of it is on the way', sub { relay_status($node, 'a')->{in_flight} == 3000 }, 8);
		pass('limit that batches are made for: all is on the way at once');
	}
	else
	{
		wait_until('some of it is on the way', sub { relay_status($node, 'a')->{in_flight} > 0 }, 8);
		cmp_ok(relay_status($node, 'a')->{in_flight}, '<=', 7, 'small limit: as much as one batch may hold');
	}
	$kafka->cont(1);
	wait_delivered($node, 'a');
	is($kafka->message_count($topic), $before + ($topic eq 'tiny' ? 30 : 3000), "$topic: all of it has arrived");
}

# ---------------------------------------------------------------------------
# Exactly once: transactions keep to the limits as well, and wait for them
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', q{outbox_kafka.delivery = 'exactly_once'});
$node->reload;
%load = (exact_middle => 3000, exact_tiny => 200);
$kafka->create_topic('exact_middle', 1, { 'max.message.bytes' => 100_000 });
$kafka->create_topic('exact_tiny', 1, { 'max.message.bytes' => 2000 });
wait_until('what the frozen broker held is over', sub { sql('SELECT count(*) FROM outbox.held_lanes') eq '0' });
my $before_exact = trouble();
for my $topic (sort keys %load)
{
	publish_all(1, $load{$topic}, $topic);
	is(trouble(), $before_exact, "exactly once, load of topic $topic: no batch was refused");
	is_in_order($topic, $load{$topic}, "exactly once, load of topic $topic");
}
publish_all(201, 400, 'exact_tiny', 'middle');
is(trouble(), $before_exact, 'exactly once, mixed load: no batch was refused');
is_in_order('exact_tiny', 400, 'exactly once, mixed load');

wait_state($node, 'a', 'idle');
$kafka->pause(1);
sql(q{SELECT outbox.publish('exact_tiny', i || ':' || repeat(md5(i::text), 8), 'k') FROM generate_series(401, 430) AS i});
wait_until('exactly once: some of it is on the way', sub { relay_status($node, 'a')->{in_flight} > 0 }, 8);
cmp_ok(relay_status($node, 'a')->{in_flight}, '<=', 7, 'exactly once, small limit: as much as one batch may hold');
$kafka->cont(1);
wait_delivered($node, 'a');
is_in_order('exact_tiny', 430, 'exactly once, after the broker was silent');

# Lowered: the transaction is lost, and the message parked.
$kafka->configure_topic('exact_tiny', { 'max.message.bytes' => 1000 });
is(try_publish('exact_tiny', 1500), '', 'exactly once, lowered limit: the first one is let in');
wait_limit('exact_tiny', 1000);
wait_until('exactly once, lowered limit: it is parked',
	sub { sql(q{SELECT count(*) FROM outbox.parked WHERE topic = 'exact_tiny'}) == 1 });
like(try_publish('exact_tiny', 1500), qr/too large for topic/, 'exactly once, lowered limit: the next one is refused');
sql('SELECT outbox.discard(event_id) FROM outbox.parked');

# ---------------------------------------------------------------------------
# Written when something changes, not dumped, nobody's to write
# ---------------------------------------------------------------------------

is(sql(q{SELECT count(*) FROM pg_extension, unnest(extconfig) AS c WHERE extname = 'outbox_kafka' AND c = 'outbox.topic_limit'::regclass}),
	0, 'a dump leaves the limits out');
my $dump = `pg_dump --data-only -d '@{[ $node->connstr('a') ]}'`;
unlike($dump, qr/topic_limit/, 'so it does');

# Without the library preloaded nobody asks, and publishing knows what is there.
my $known = sql('SELECT count(*) FROM outbox.topic_limit');
cmp_ok($known, '>=', 3, 'limits are known');
$node->append_conf('postgresql.conf', q{shared_preload_libraries = ''});
$node->restart;
like(try_publish('tiny', 3000), qr/too large for topic/, 'not preloaded: refused as well');
is(try_publish('tiny', 300), '', 'not preloaded: a small one is stored');
$node->stop;
done_testing();
