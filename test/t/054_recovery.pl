
# Recovery to a point in time, from a base backup and the archive: the relay of
# the recovered server goes on from what was delivered at that moment. What was
# pending then is sent (again, if the lost server had sent it meanwhile), what
# was delivered is not, and what is published from now on follows in order.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $broker = OutboxTest::MockBroker->new(topics => { t => 1, held => 1 }, timeout => 300);

sub payloads
{
	my ($topic) = @_;
	return map { $_->{payload} } OutboxTest::Kcat::consume($broker->bootstrap, $topic);
}

sub publish_numbers
{
	my ($node, $topic, $from, $to) = @_;
	$node->safe_psql('a', "SELECT outbox.publish('$topic', i::text, key => 'k') FROM generate_series($from, $to) AS i");
	return;
}

my $node = new_node('original', kafka => $broker, init => { has_archiving => 1, allows_streaming => 1 });
new_database($node, 'a');
publish_numbers($node, 't', 1, 50);
publish_numbers($node, 'held', 1, 5);
wait_delivered($node, 'a');
$node->backup('base');

# At the point in time: one topic held, and messages of the other pending.
$node->safe_psql('a', "SELECT outbox.pause('held')");
wait_until('the topic is held', sub { $node->safe_psql('a', 'SELECT count(*) FROM outbox.held_lanes') == 1 });
publish_numbers($node, 'held', 6, 10);
publish_numbers($node, 't', 51, 60);
is($node->safe_psql('a', q{
		SELECT outbox.wait_published(event_id, '20 s') FROM outbox.message_status WHERE topic = 't' ORDER BY id DESC LIMIT 1}),
	't', 'the other topic goes on');
$node->safe_psql('a', 'SELECT outbox.pause()');
wait_state($node, 'a', 'paused');
publish_numbers($node, 't', 61, 70);
$node->safe_psql('a', "SELECT pg_create_restore_point('here')");

# What came after it: sent by the original, unknown to the recovered server.
$node->safe_psql('a', 'SELECT outbox.resume()');
$node->safe_psql('a', "SELECT outbox.resume('held')");
publish_numbers($node, 't', 71, 80);
wait_delivered($node, 'a');
my $sent = scalar(payloads('t'));
is($sent, 80, 'the original has sent all');
my $file = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_current_wal_lsn())');
$node->safe_psql('postgres', 'SELECT pg_switch_wal()');
wait_until('the WAL is archived', sub {
		$node->safe_psql('postgres', "SELECT last_archived_wal >= '$file' FROM pg_stat_archiver") eq 't';
	});
$node->stop('immediate');

my $recovered = PostgreSQL::Test::Cluster->new('recovered');
$recovered->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
$recovered->append_conf('postgresql.conf', q{
	recovery_target_name = 'here'
	recovery_target_action = 'promote'
	archive_mode = off});
$recovered->start;
wait_until('the server is promoted', sub { $recovered->safe_psql('postgres', 'SELECT pg_is_in_recovery()') eq 'f' });

wait_state($recovered, 'a', 'paused');
is($recovered->safe_psql('a', q{
		SELECT string_agg(status || ' ' || count, ', ' ORDER BY topic, status)
		FROM (SELECT topic, status, count(*) FROM outbox.message_status GROUP BY 1, 2) AS s}),
	'pending 5, published 5, pending 10, published 60', 'it knows what was delivered, by each cursor');
is($recovered->safe_psql('a', 'SELECT topic, reason FROM outbox.held_lanes'), 'held|paused', 'and what was held');
is(scalar(payloads('t')), $sent, 'paused, it sends nothing');

$recovered->safe_psql('a', 'SELECT outbox.resume()');
$recovered->safe_psql('a', "SELECT outbox.resume('held')");
$recovered->safe_psql('a', "SELECT outbox.publish('t', 'new', key => 'k')");
wait_delivered($recovered, 'a');
is_deeply([ payloads('t') ], [ 1 .. 80, 61 .. 70, 'new' ], 'what was pending is sent, then what is new; nothing else');
is_deeply([ payloads('held') ], [ 1 .. 10, 6 .. 10 ], 'the same for the held topic');
wait_state($recovered, 'a', 'idle');

done_testing();
