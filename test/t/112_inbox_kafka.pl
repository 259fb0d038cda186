
# Consuming: what Kafka does to its topics. Retention, topics that are deleted,
# made anew, grown, that appear and match a pattern; another cluster; reading
# from somewhere else; what lag tools see.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IPC::Run;
use Test::More;

use OutboxTest;
use OutboxTest::Inbox;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_node(
	'inbox',
	kafka => $kafka,
	conf => {
		'outbox_kafka.metadata_refresh' => '1s',
		'max_worker_processes' => 40,
	});
new_database($node, 'd');

sub sql { return $node->safe_psql('d', @_) }

# In order, what was handled of a topic.
sub got
{
	my ($topic) = @_;
	return sql(qq{SELECT coalesce(string_agg(v, ' ' ORDER BY n), '') FROM got WHERE topic = '$topic'});
}

sub numbers
{
	my ($topic, $from, $to) = @_;
	sql("SELECT count(outbox.publish('$topic', i::text, 'k', partition => 0)) FROM generate_series($from, $to) AS i");
	wait_delivered($node, 'd');
	return;
}

sql(q{
	CREATE TABLE got (n bigserial, topic text, partition int, "offset" bigint, v text);
	CREATE FUNCTION handle(m inbox.message) RETURNS void LANGUAGE sql AS $$
		INSERT INTO got (topic, partition, "offset", v) VALUES ((m).topic, (m).partition, (m)."offset", inbox.payload_text(m)) $$;
});

# ---- a topic that is not there yet; a partition that is added

sql(q{SELECT inbox.subscribe('later', '{later}', 'handle')});
wait_until('the missing topic is shown', sub {
	sql(q{SELECT count(*) FROM inbox.subscription_status WHERE name = 'later' AND state = 'waiting' AND last_error LIKE 'topic "later" is missing:%'}) eq '1' },
	undef, sub { inbox_describe($node, 'd') });
$kafka->create_topic('later', 1);
numbers('later', 1, 3);
wait_handled($node, 'd', q{got WHERE topic = 'later'}, 3);
is(got('later'), '1 2 3', 'a topic that is made later is read from its beginning');
wait_until('the problem is over',
	sub { sql(q{SELECT count(*) FROM inbox.subscription_status WHERE name = 'later' AND topic IS NULL}) eq '0' },
	undef, sub { inbox_describe($node, 'd') });
$kafka->grow_topic('later', 2);
$kafka->produce('later', 1, value => '4');
wait_handled($node, 'd', q{got WHERE topic = 'later'}, 4);
is(sql(q{SELECT partition FROM got WHERE v = '4'}), 1, 'and a new partition');

# ---- a pattern

sql(q{SELECT inbox.subscribe('pattern', ARRAY['^orders\..*', 'extra'], 'handle')});
$kafka->create_topic($_) for qw(orders.a ordersx extra);
$kafka->produce($_, 0, value => $_) for qw(orders.a ordersx extra);
wait_handled($node, 'd', 'got', 6);
$kafka->create_topic('orders.b');
$kafka->produce('orders.b', 0, value => 'orders.b');
wait_handled($node, 'd', 'got', 7);
is(sql(q{SELECT string_agg(topic, ' ' ORDER BY topic) FROM inbox.subscription_status WHERE name = 'pattern'}),
	'extra orders.a orders.b', 'a pattern, and what matches it later');

# ---- seek

$kafka->create_topic('seek', 2);
numbers('seek', 1, 3);
sql('SELECT pg_sleep(0.05)');
my $time = sql('SELECT clock_timestamp()');
sql('SELECT pg_sleep(0.05)');
numbers('seek', 4, 6);
sql(q{SELECT inbox.subscribe('seek', '{seek}', 'handle')});
wait_handled($node, 'd', q{got WHERE topic = 'seek'}, 6);

sub seek_to
{
	my ($arguments, $expected) = @_;
	my @expected = split / /, $expected;
	sql(qq{BEGIN; SELECT inbox.seek('seek', $arguments); DELETE FROM got WHERE topic = 'seek'; COMMIT});
	wait_handled($node, 'd', q{got WHERE topic = 'seek'}, scalar(@expected));
	wait_until('the decision was followed', sub { sql('SELECT count(*) FROM inbox.request') eq '0' });
	wait_caught_up($node, 'd', 'seek');
	is(got('seek'), $expected, "seek to $arguments");
	return;
}
seek_to(q{'earliest'}, '1 2 3 4 5 6');
seek_to(qq{'$time'}, '4 5 6');
seek_to(qq{'$time'::timestamptz, 'seek', 0}, '4 5 6');
seek_to(q{2, 'seek', 0}, '3 4 5 6');
seek_to(q{'latest', 'seek'}, '');
sql(q{BEGIN; SELECT inbox.seek('seek', 'earliest'); DELETE FROM got WHERE topic = 'seek'; ROLLBACK});
numbers('seek', 7, 7);
wait_handled($node, 'd', q{got WHERE topic = 'seek'}, 1);
is(got('seek'), '7', 'a seek that is rolled back is none');

# nothing is handled between seek() and the end of its transaction
wait_caught_up($node, 'd', 'later');
my $deciding = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('d'), '-c',
	q{BEGIN; SELECT inbox.seek('later', 'latest'); SELECT pg_sleep(5); ROLLBACK} ], '>', \my $out, '2>', \my $err);
wait_until('somebody decides', sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(5)%' AND wait_event = 'PgSleep'}) eq '1' });
$kafka->produce('later', 0, value => '5');
wait_until('the worker waits', sub { sql(q{SELECT state FROM inbox.workers WHERE name = 'later'}) eq 'deciding' },
	undef, sub { inbox_describe($node, 'd') });
is(sql(q{SELECT count(*) FROM got WHERE topic = 'later'}), 4, 'nothing is handled while somebody decides');
$deciding->finish;
wait_handled($node, 'd', q{got WHERE topic = 'later'}, 5);

# ---- lag tools: the group of the subscription

my $group = 'seek.' . sql('SELECT outbox.identity()');
wait_until('positions are mirrored', sub { $kafka->committed($group, 'seek', 0) == 7 });
is($kafka->committed($group, 'seek', 0), 7, 'the position is in the group of the subscription');

# ---- retention took what was not read

$kafka->create_topic('short');
numbers('short', 1, 4);
sql(q{SELECT inbox.subscribe('short', '{short}', 'handle')});
wait_handled($node, 'd', q{got WHERE topic = 'short'}, 4);
wait_caught_up($node, 'd', 'short');
sql(q{SELECT inbox.pause('short')});
numbers('short', 5, 10);
$kafka->remove_records('short', 0, 8);
sql(q{SELECT inbox.resume('short')});
wait_handled($node, 'd', q{got WHERE topic = 'short'}, 6);
wait_caught_up($node, 'd', 'short');
is(got('short'), '1 2 3 4 9 10', 'what is left is read');
like(inbox_status($node, 'd', 'short', 'short', 0, 'lost, last_error'),
	qr/\A4\|offset out of range: offsets 4 to 7 were removed by Kafka before they were read/, 'what is lost is told');

# all of it was read, then removed: nothing is lost
$kafka->remove_records('short', 0, 10);
sql(q{SELECT inbox.pause('short'); SELECT inbox.resume('short')});
numbers('short', 11, 11);
wait_handled($node, 'd', q{got WHERE topic = 'short'}, 7);
is(inbox_status($node, 'd', 'short', 'short', 0, 'lost'), 4, 'what was read before it was removed is not lost');

# ---- a compacted topic, with gaps

$kafka->create_topic('compacted', 1, { 'cleanup.policy' => 'compact', 'segment.ms' => 100, 'min.cleanable.dirty.ratio' => '0.01', 'delete.retention.ms' => 100, 'max.compaction.lag.ms' => 100 });
sql(q{SELECT count(outbox.publish('compacted', i::text, (i % 3)::text)) FROM generate_series(1, 30) AS i});
wait_delivered($node, 'd');
sql(q{SELECT inbox.subscribe('compacted', '{compacted}', 'handle')});
wait_caught_up($node, 'd', 'compacted');
is(sql(q{SELECT count(DISTINCT v) FROM got WHERE topic = 'compacted' AND v::int > 27}), 3, 'a compacted topic');

# ---- deleted; made anew

$kafka->create_topic('anew');
numbers('anew', 1, 3);
sql(q{SELECT inbox.subscribe('anew', '{anew}', 'handle')});
wait_handled($node, 'd', q{got WHERE topic = 'anew'}, 3);
wait_caught_up($node, 'd', 'anew');
$kafka->delete_topic('anew');
wait_partition($node, 'd', 'anew', 'anew', 0, q{state = 'missing'});
pass('a deleted topic is shown as missing');
sql(q{SELECT inbox.pause('anew')});
$kafka->create_topic('anew');
$kafka->produce('anew', 0, value => "new $_") for 1 .. 5;
sql(q{SELECT inbox.resume('anew')});
wait_partition($node, 'd', 'anew', 'anew', 0, q{state = 'recreated'});
is(got('anew'), '1 2 3', 'a topic that was made anew is not read');
like(inbox_status($node, 'd', 'anew', 'anew', 0, 'last_error'),
	qr/another message at the offset of the last one that was handled; it was read up to offset 3, inbox.seek\(\) decides/, 'and says why');
sql(q{SELECT inbox.seek('anew', 'earliest', 'anew')});
wait_handled($node, 'd', q{got WHERE topic = 'anew'}, 8);
is(got('anew'), '1 2 3 new 1 new 2 new 3 new 4 new 5', 'until seek() decides');

# with fewer messages than were read
$kafka->delete_topic('anew');
wait_partition($node, 'd', 'anew', 'anew', 0, q{state = 'missing'});
$kafka->create_topic('anew');
$kafka->produce('anew', 0, value => 'newer');
wait_partition($node, 'd', 'anew', 'anew', 0, q{state = 'recreated'});
like(inbox_status($node, 'd', 'anew', 'anew', 0, 'last_error'), qr/it ends/, 'also when it is shorter');

# ---- another cluster, with topics of the same names

wait_caught_up($node, 'd', 'seek');
my $other = OutboxTest::Kafka->new(name => 'other');
$other->start;
$other->create_topic('seek', 2);
$other->produce('seek', 0, value => "other $_") for 1 .. 9;
$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $other->bootstrap . "'");
$node->reload;
wait_partition($node, 'd', 'seek', 'seek', 0, q{state = 'another cluster'});
my $before = got('seek');
unlike($before, qr/other/, 'another cluster is not read');
sql(q{SELECT inbox.seek('seek', 'latest')});
wait_caught_up($node, 'd', 'seek');
$other->produce('seek', 0, value => 'other 10');
wait_handled($node, 'd', q{got WHERE v = 'other 10'}, 1);
is(got('seek'), "$before other 10", 'until seek() decides');

# ---- a broker that is away, and no setting at all

$other->stop;
wait_until('Kafka is missed', sub {
	sql(q{SELECT count(*) FROM inbox.subscription_status WHERE name = 'seek' AND last_error LIKE 'no answer from Kafka%'}) eq '1' },
	undef, sub { inbox_describe($node, 'd') });
$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = ''");
$node->reload;
wait_until('workers are unconfigured', sub { sql(q{SELECT bool_and(state = 'unconfigured') FROM inbox.workers}) eq 't' });
$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $kafka->bootstrap . "'");
$node->reload;
numbers('orders.a', 1, 1);
wait_handled($node, 'd', q{got WHERE topic = 'orders.a'}, 2);
pass('and go on with the first one');

# ---- a partition that has stopped: what comes behind it is counted

$kafka->create_topic('stopped', 1);
sql(q{
	CREATE FUNCTION refuse(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
	SELECT inbox.subscribe('stopped', '{stopped}', 'refuse', max_attempts => 1, on_failure => 'stop_partition')});
numbers('stopped', 1, 2);
wait_partition($node, 'd', 'stopped', 'stopped', 0, q{state = 'stopped' AND lag = 2});
numbers('stopped', 3, 5);
wait_partition($node, 'd', 'stopped', 'stopped', 0, q{state = 'stopped' AND lag = 5});
pass('the lag of a stopped partition grows');
sql(q{SELECT inbox.unsubscribe('stopped')});

# ---- a dump takes subscriptions and positions along

my $dump = $node->basedir . '/dump';
sql(q{SELECT inbox.pause('pattern')});
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('d') ], 'pg_dump');
sql(q{SELECT inbox.resume('pattern')});
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('copy') ], 'restore');
is($node->safe_psql('copy', q{SELECT count(*) FROM (TABLE inbox.subscription) AS s WHERE name IN ('later', 'pattern', 'anew')}), 3, 'subscriptions are restored');
$kafka->produce('later', 0, value => 'after the dump');
wait_until('the copy reads on', sub { $node->safe_psql('copy', q{SELECT count(*) FROM got WHERE v = 'after the dump'}) eq '1' },
	undef, sub { inbox_describe($node, 'copy') });
is($node->safe_psql('copy', q{SELECT count(*) = count(DISTINCT (topic, partition, "offset")) FROM got WHERE topic = 'later'}), 't',
	'a restored database reads on from its own positions');

$node->stop;
done_testing();
