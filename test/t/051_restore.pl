
# A copy of a database never publishes by surprise: what a dump or a template
# brings along is parked until outbox.adopt() releases it, once and in order;
# what is published in the copy meanwhile is sent, or queues behind by key.

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
my $node = new_node('origin', kafka => $kafka);
new_database($node, 'a');

sub events
{
	my ($topic) = @_;
	return map { "$_->{key} $_->{payload} " . $_->{header}{ce_id} }
	  $kafka->consume($topic);
}

# Delivered long ago, and pending; burn some xids, so that the copy's are lower.
$kafka->create_topic('before', 1);
$kafka->create_topic('events', 1);
$node->safe_psql('a', q{
	SELECT outbox.grant_publish('pg_write_all_data', '{events*}');
	SELECT outbox.publish('before', i::text, 'k') FROM generate_series(1, 10) AS i});
wait_delivered($node, 'a');
$node->safe_psql('a', q{
	DO $$ BEGIN FOR i IN 1 .. 2000 LOOP
		PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$});
$node->safe_psql('a', 'SELECT outbox.pause()');
$node->safe_psql('a', q{
	SELECT outbox.publish('events', i::text, 'k' || i % 3) FROM generate_series(1, 300) AS i});
my @pending = split /\n/, $node->safe_psql('a',
	"SELECT convert_from(key, 'UTF8') || ' ' || convert_from(payload, 'UTF8') || ' ' || event_id
	 FROM outbox.message WHERE topic = 'events' ORDER BY id");
is(scalar @pending, 300, 'messages are pending in the original');

# ---------------------------------------------------------------------------
# Dump and restore into another cluster with lower xids
# ---------------------------------------------------------------------------

my $copy = new_node('copy', kafka => $kafka);
my $dump = $node->basedir . '/a.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('a') ], 'pg_dump');
$copy->safe_psql('postgres', 'CREATE DATABASE a');
$copy->command_ok([ 'pg_restore', '--exit-on-error', '-d', $copy->connstr('a'), $dump ],
	'pg_restore');
cmp_ok($copy->safe_psql('a', 'SELECT pg_current_xact_id()::text::bigint'),
	'<', $node->safe_psql('a', 'SELECT pg_current_xact_id()::text::bigint'),
	'the copy has lower xids');
is($copy->safe_psql('a', "SELECT count(*), min(reason) FROM outbox.parked"),
	'300|restored', 'what was pending is parked, what was delivered is not there');

$copy->safe_psql('a', 'SELECT outbox.resume()');
wait_state($copy, 'a', 'idle');
is($kafka->message_count('events'), 0, 'nothing is sent by itself');

# New ones: of a key that has restored ones behind those, of another key at once.
$copy->safe_psql('a', "SELECT outbox.publish('events', 'new', 'k1')");
$copy->safe_psql('a', "SELECT outbox.publish('events', 'new', 'other')");
wait_delivered($copy, 'a');
is_deeply([ map { /^(\S+ \S+)/ } events('events') ], ['other new'],
	'a new message of another key is sent, that of a restored key waits');

is($copy->safe_psql('a', 'SELECT outbox.adopt()'), 300, 'adopt() counts');
wait_until('nothing is parked',
	sub { $copy->safe_psql('a', 'SELECT count(*) FROM outbox.parked') == 0 });
my @arrived = events('events');
is_deeply([ @arrived[ 1 .. 300 ] ], \@pending,
	'the restored ones were sent, once, in order, with their event ids');
like($arrived[301], qr/^k1 new /, 'then the one behind them');
is(scalar @arrived, 302, 'and nothing else');
is($copy->safe_psql('a', "SELECT count(*) FROM outbox.publish_grant"),
	1, 'grants came along');
is($copy->safe_psql('a', "SELECT count(*) FROM outbox.message WHERE id <= 310"),
	0, 'no restored row stands among the messages');

# ---------------------------------------------------------------------------
# CREATE DATABASE ... TEMPLATE
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE c TEMPLATE a');
wait_until('the copy has parked what was pending',
	sub { $node->safe_psql('c', "SELECT count(*) FROM outbox.parked WHERE reason = 'restored'") == 300 });
$node->safe_psql('c', 'SELECT outbox.resume()');
$kafka->create_topic('copied', 1);
$node->safe_psql('c', "SELECT outbox.publish('copied', 'of the copy', 'k')");
wait_delivered($node, 'c');
is($kafka->message_count('events'), 302, 'template: nothing old is sent by itself');
is($kafka->message_count('copied'), 1, 'template: what is published in the copy is sent');

$node->safe_psql('a', 'SELECT outbox.resume()');
wait_delivered($node, 'a');
is($kafka->message_count('events'), 602, 'template: the original sends its own');
is($node->safe_psql('a', 'SELECT count(*) FROM outbox.parked'),
	0, 'template: the original has nothing parked');

$node->safe_psql('c', 'SELECT outbox.adopt()');
wait_until('nothing is parked in the copy',
	sub { $node->safe_psql('c', 'SELECT count(*) FROM outbox.parked') == 0 });
@arrived = events('events');
is_deeply([ @arrived[ 602 .. 901 ] ], \@pending,
	'template: adopt() sends the parked ones in order');

done_testing();
