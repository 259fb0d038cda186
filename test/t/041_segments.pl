
# Emptying what was delivered, while everybody else works: the ring of segments
# turns and delivered segments become empty files, a reader or an old writer on
# one of them only keeps that one, no publisher ever queues behind a lock, and
# logical decoding sees no TRUNCATE. Then DROP EXTENSION while messages flow.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 3) for qw(bulk pace flow);
my $node = new_node(
	'segments',
	kafka => $kafka,
	init => { allows_streaming => 'logical' },
	conf => {
		'max_connections' => 30,
		'shared_buffers' => '32MB',
		'outbox_kafka.retention' => '0',
		'outbox_kafka.segment_size' => '1MB'
	});
new_database($node, 'a');
$node->safe_psql('a',
	q{SELECT pg_create_logical_replication_slot('slot', 'test_decoding')});

# One transaction of about 500 kB.
sub publish_bulk
{
	$node->safe_psql(
		'a', q{
		SELECT count(outbox.publish('bulk', repeat(md5(i::text), 16), i::text))
		FROM generate_series(1, 1000) AS i});
	return 1000;
}

sub current_segment
{
	return $node->safe_psql('a', 'SELECT outbox.current_segment()');
}

sub segment_bytes
{
	my ($segment) = @_;
	return $node->safe_psql('a',
		"SELECT pg_relation_size('outbox.message_$segment')");
}

# Publish until the ring has turned that many times; how many messages.
sub turn
{
	my ($times) = @_;
	my $sent = 0;
	for (1 .. $times)
	{
		my $from = current_segment();
		wait_until(
			"publishing moves on from segment $from",
			sub {
				return 1 if current_segment() ne $from;
				$sent += publish_bulk();
				wait_delivered($node, 'a');
				return current_segment() ne $from;
			},
			60);
	}
	return $sent;
}

sub wait_empty
{
	my ($segment) = @_;
	wait_until(
		"segment $segment is empty",
		sub { segment_bytes($segment) == 0 },
		30,
		sub {
			$node->safe_psql('a',
				'SELECT * FROM outbox.segment ORDER BY segment');
		});
	return;
}

# ---------------------------------------------------------------------------
# The ring turns, all of it
# ---------------------------------------------------------------------------

my $sent = 0;
my $files = q{SELECT array_agg(pg_relation_filenode('outbox.message_' || i)
							   ORDER BY i) FROM generate_series(0, 7) AS i};
my $before = $node->safe_psql('a', $files);
my %visited;
for (1 .. 10)
{
	my $left = current_segment();
	$visited{$left}++;
	$sent += turn(1);
	wait_empty($left);
}
is(scalar keys %visited, 8, 'the ring turned through all segments');
my @old = $before =~ /\d+/g;
my @new = $node->safe_psql('a', $files) =~ /\d+/g;
is_deeply([ grep { $old[$_] == $new[$_] } 0 .. 7 ],
	[], 'each was emptied: a new file each');
is($kafka->message_count('bulk'), $sent, 'every message went out once');
my $total = $node->safe_psql('a',
	q{SELECT sum(pg_total_relation_size('outbox.message_' || i))
	  FROM generate_series(0, 7) AS i});
cmp_ok($total, '<', 6 * 1024 * 1024, "disk space is given back: $total bytes");

# ---------------------------------------------------------------------------
# A reader (like pg_dump) and an old writer each keep a segment
# ---------------------------------------------------------------------------

my $kept = current_segment();
$sent += publish_bulk();
wait_delivered($node, 'a');
my $reader = $node->background_psql('a');
$reader->query_safe(
	"BEGIN; LOCK TABLE outbox.message_$kept IN ACCESS SHARE MODE");

# Watch all locks, as closely as a session can.
my $watcher = $node->background_psql('a');
$watcher->query_safe('CREATE TABLE watch (looks bigint, exclusive bigint,
	waiting bigint, example text)');
$watcher->query_safe('CREATE TABLE watch_end (at timestamptz)');
$watcher->query_until(
	qr/watching/, q{\echo watching
	DO $$
	DECLARE
		looks bigint := 0; exclusive bigint := 0; waiting bigint := 0;
		granted bigint; ungranted bigint; one text; example text;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM watch_end) LOOP
			SELECT count(*) FILTER (WHERE l.granted),
				   count(*) FILTER (WHERE NOT l.granted),
				   min(l.relation::regclass::text) FILTER (WHERE NOT l.granted)
				INTO granted, ungranted, one
				FROM pg_locks AS l
				WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
				  AND l.database = (SELECT oid FROM pg_database
									WHERE datname = current_database());
			looks := looks + 1;
			exclusive := exclusive + (granted > 0)::int;
			waiting := waiting + (ungranted > 0)::int;
			example := coalesce(example, one);
			PERFORM pg_sleep(0.002);
		END LOOP;
		INSERT INTO watch VALUES (looks, exclusive, waiting, example);
	END $$;
	});

# A writer that has written into the current segment and stays open.
my $writer = $node->background_psql('a');
my $wrote = current_segment();
$writer->query_safe('BEGIN');
$writer->query_safe("SELECT outbox.publish('bulk', 'open'::text, 'open')");

# Others publish at a steady pace meanwhile.
my $flag = "$PostgreSQL::Test::Utils::tmp_check/041_end";
unlink $flag, "$flag.ready";
my ($output, $error) = ('', '');
my $pace = IPC::Run::start(
	[
		'/usr/bin/python3', "$FindBin::RealBin/../ledger/latency.py",
		'--conninfo', $node->connstr('a'),
		'--brokers', $kafka->bootstrap,
		'--topic', 'pace',
		'--interval', '0.02',
		'--ready', "$flag.ready",
		'--until', $flag
	],
	'<', \undef,
	'>', \$output,
	'2>', \$error);
wait_until('the pace begins', sub { -e "$flag.ready" });

# More turns than there are segments: the ring meets the kept ones again.
for (1 .. 12)
{
	my $left = current_segment();
	$sent += publish_bulk() + publish_bulk() + publish_bulk();
	wait_delivered($node, 'a');
	next if current_segment() eq $left;
	wait_empty($left) if $left ne $kept && $left ne $wrote;
}
cmp_ok(segment_bytes($kept), '>', 0, 'the segment that is read is kept');
is($kafka->message_count('bulk'), $sent, 'every message went out once');

$node->safe_psql('a', 'INSERT INTO watch_end VALUES (now())');
$watcher->query_safe('SELECT 1');
my ($looks, $exclusive, $waiting, $example) =
  split /\|/, $watcher->query_safe('SELECT * FROM watch');
$watcher->quit;
cmp_ok($looks, '>', 200, "locks were looked at $looks times");
is($waiting, 0, 'nobody ever waited for ACCESS EXCLUSIVE')
  or diag("on $example");
diag("locks: $looks looks, $exclusive found one held, $waiting one waited for");

open(my $file, '>', $flag) or die "could not write $flag: $!";
close $file;
my $ok = $pace->finish;
diag("pace: $output$error");
my $seen = decode_json($output);
ok($ok, 'what was published meanwhile arrived');
cmp_ok($seen->{slowest_publish}, '<', 5, 'no publisher had to wait');
cmp_ok($seen->{delay_max}, '<', 10, 'nor any message');

# The reader goes, the segment is given back.
$reader->query_safe('COMMIT');
$reader->quit;
if ($kept ne $wrote)
{
	turn(1) if current_segment() eq $kept;
	wait_empty($kept);
	pass('the segment that was read is emptied when the reader has gone');
}

# The writer commits into its old segment: its message arrives, and then that
# segment is empty.
my $count = $kafka->message_count('bulk');
$writer->query_safe('COMMIT');
$writer->quit;
$kafka->wait_messages('bulk', $count + 1, 20);
is((grep { $_->{payload} eq 'open' } $kafka->consume('bulk')),
	1, 'the message of the old writer arrived');
turn(1) if current_segment() eq $wrote;
wait_empty($wrote);
pass('its segment is emptied then');

# ---------------------------------------------------------------------------
# Retention counts from delivery
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', "outbox_kafka.retention = '1h'");
$node->reload;
$kept = current_segment();
my $id = publish($node, 'a', q{'bulk', 'kept'::text, 'kept'});
turn(2);
is($node->safe_psql('a', "SELECT outbox.status('$id')"),
	'published', 'with retention, a delivered message stays readable');
cmp_ok(segment_bytes($kept), '>', 0, 'its segment is not emptied');
$node->append_conf('postgresql.conf', "outbox_kafka.retention = '0'");
$node->reload;
wait_empty($kept);
is($node->safe_psql('a', "SELECT outbox.status('$id') IS NULL"),
	't', 'without, it is gone');

# ---------------------------------------------------------------------------
# Logical decoding
# ---------------------------------------------------------------------------

my ($changes, $inserts, $truncates) = split /\|/, $node->safe_psql(
	'a', q{
	SELECT count(*), count(*) FILTER (WHERE data ~ '^table outbox.*INSERT:'),
		   count(*) FILTER (WHERE data ~ 'TRUNCATE')
	FROM pg_logical_slot_get_changes('slot', NULL, NULL)});
diag("logical decoding: $changes changes, $inserts inserts, $truncates truncates");
cmp_ok($inserts, '>', 1000, 'logical decoding saw the messages');
is($truncates, 0, 'and no TRUNCATE');
$node->safe_psql('a', q{SELECT pg_drop_replication_slot('slot')});

# ---------------------------------------------------------------------------
# DROP EXTENSION while messages flow
# ---------------------------------------------------------------------------

my @flow;
for (1 .. 2)
{
	my %flow = (output => '', error => '');
	$flow{run} = IPC::Run::start(
		[
			'psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
			'-d', $node->connstr('a'), '-c',
			q{DO $$ BEGIN
				LOOP
					PERFORM outbox.publish('flow', 'x'::text, 'k');
					COMMIT;
				END LOOP;
			END $$}
		],
		'<', \undef,
		'>', \$flow{output},
		'2>', \$flow{error});
	push @flow, \%flow;
}
$kafka->wait_messages('flow', 2000, 60);
my $relay = relay_pid($node, 'a');
ok(kill(0, $relay), 'the relay runs');
my $began = time;
$node->safe_psql('a', 'DROP EXTENSION outbox_kafka CASCADE');
my $took = time - $began;
cmp_ok($took, '<', 5, sprintf 'DROP EXTENSION took %.2f s', $took);
for my $flow (@flow)
{
	$flow->{run}->finish;
	like($flow->{error}, qr/ERROR:.*(?:does not exist|was dropped)/,
		'the publisher got a plain error');
}
wait_until('the relay has ended', sub { !kill(0, $relay) }, 10);
pass('the relay has ended');
is($node->safe_psql('postgres',
		q{SELECT count(*) FROM pg_stat_activity
		  WHERE backend_type LIKE 'outbox_kafka relay%'}),
	'0', 'no relay runs');

# And everything anew.
$node->safe_psql('a', 'CREATE EXTENSION outbox_kafka');
wait_published($node, 'a', publish($node, 'a', q{'flow', 'again'::text, 'k'}));
pass('made again, it publishes again');

ok(!$node->log_contains(qr/PANIC|TRAP|was terminated by signal/),
	'no process of the server died');
$node->stop;
done_testing();
