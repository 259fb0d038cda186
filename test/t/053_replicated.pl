
# A publication FOR ALL TABLES takes the outbox's own tables along. Between two
# databases that both have the extension it must neither fill nor empty the
# subscriber's outbox, nor move the progress of its relay; the application's
# tables are replicated, and both publish.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $broker = OutboxTest::MockBroker->new(
	topics => { origin => 1, copy => 1 },
	timeout => 300);
my %conf = (
	'outbox_kafka.segment_size' => '1MB',
	'outbox_kafka.retention' => '0');
my $origin = new_node('origin', kafka => $broker, conf => \%conf, init => { allows_streaming => 'logical' });
my $copy = new_node('copy', kafka => $broker, conf => \%conf);

sub payloads
{
	my ($topic) = @_;
	return map { $_->{payload} } OutboxTest::Kcat::consume($broker->bootstrap, $topic);
}

# What an outbox holds that a replication could have changed.
sub state_of
{
	my ($node) = @_;
	return $node->safe_psql('a', q{
		SELECT (SELECT count(*) FROM outbox.message),
			   (SELECT count(*) FROM outbox.parked_message),
			   (SELECT count(*) FROM outbox.publish_grant),
			   (SELECT count(*) FROM outbox.relay_control),
			   (SELECT count(*) FROM outbox.held_lane),
			   (SELECT string_agg(done::text || coalesce(batch::text, ''), ',') FROM outbox.relay_state),
			   (SELECT identity FROM outbox.database_identity)});
}

sub bytes_on_disk
{
	my ($node) = @_;
	return $node->safe_psql('a', q{
		SELECT sum(pg_relation_size('outbox.message_' || i)) FROM generate_series(0, 7) AS i});
}

for my $node ($origin, $copy)
{
	new_database($node, 'a');
	$node->safe_psql('a', 'CREATE TABLE orders (id int PRIMARY KEY, note text)');
}

# There is something to copy at first: messages, delivered and not, a grant.
$origin->safe_psql('a', q{
	CREATE ROLE app;
	SELECT outbox.grant_publish('app', '{origin}');
	SELECT outbox.publish('origin', 'early ' || i, key => 'k') FROM generate_series(1, 50) AS i});
wait_delivered($origin, 'a');
$origin->safe_psql('a', "SELECT outbox.pause('origin')");
$origin->safe_psql('a', q{
	INSERT INTO orders VALUES (1, 'early');
	SELECT outbox.publish('origin', 'held ' || i, key => 'k') FROM generate_series(1, 20) AS i});
wait_until('the topic is held', sub { $origin->safe_psql('a', 'SELECT count(*) FROM outbox.held_lanes') == 1 });

# The subscriber has messages of its own that must stay: its relay is paused.
$copy->safe_psql('a', 'SELECT outbox.pause()');
wait_state($copy, 'a', 'paused');
$copy->safe_psql('a', q{
	SELECT outbox.publish('copy', 'own ' || i, key => 'k') FROM generate_series(1, 100) AS i});
my $before = state_of($copy);

$origin->safe_psql('a', 'CREATE PUBLICATION everything FOR ALL TABLES');
(my $connection = $origin->connstr('a')) =~ s{'}{''}g;
$copy->safe_psql('a', "CREATE SUBSCRIPTION everything CONNECTION '$connection' PUBLICATION everything");
$copy->wait_for_subscription_sync($origin, 'everything', 'a');
is($copy->safe_psql('a', 'SELECT note FROM orders'), 'early', "the application's rows are copied");
is(state_of($copy), $before, 'of the outbox nothing is, nor is it changed');

# Now a stream of changes: messages, progress, pauses, and segments emptied.
$origin->safe_psql('a', "SELECT outbox.resume('origin')");
# (A mock broker keeps no more than 5 MB of a partition.)
for my $round (1 .. 6)
{
	$origin->safe_psql('a', qq{
		INSERT INTO orders VALUES (1 + $round, 'round $round');
		SELECT outbox.publish('origin', 'bulk ' || repeat('x', 300), key => 'k')
		FROM generate_series(1, 1500) AS i});
}
wait_delivered($origin, 'a');
wait_until('segments of the origin are emptied', sub { bytes_on_disk($origin) < 3 * 1024 * 1024 });
$origin->safe_psql('a', "INSERT INTO orders VALUES (100, 'last')");
$origin->wait_for_catchup('everything');
is($copy->safe_psql('a', 'SELECT count(*) FROM orders'), 8, "the application's changes are replicated");
is(state_of($copy), $before, "the subscriber's outbox has not been touched");

# Both go on publishing, each its own messages, once.
$copy->safe_psql('a', 'SELECT outbox.resume()');
$copy->safe_psql('a', "SELECT outbox.publish('copy', 'own 101', key => 'k')");
wait_delivered($copy, 'a');
is_deeply([ payloads('copy') ], [ map { "own $_" } 1 .. 101 ], "the subscriber's own messages arrived, in order, once");
is(scalar(payloads('origin')), 50 + 20 + 6 * 1500, "and the origin's, once");
is($copy->safe_psql('a', 'SELECT count(*) FROM pg_stat_subscription WHERE pid IS NULL'), 0, 'the subscription runs');
ok(!$copy->log_contains(qr/ERROR:.*outbox/), 'the apply worker has met no error');

done_testing();
