
# The relay's progress on disk: it survives whatever vacuum does to its tables
# while messages flow, a crash in the middle of a batch, and a transaction that
# stays prepared across it; and it is not followed where it does not belong,
# after a logical copy and in a copied database.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $broker = OutboxTest::MockBroker->new(
	topics => { map { $_ => 1 } qw(flow batch copy) },
	timeout => 300);
my $node = new_node(
	'progress',
	kafka => $broker,
	conf => { 'outbox_kafka.max_in_flight' => 1000 });
new_database($node, 'a');
$node->safe_psql('a', 'CREATE EXTENSION cursor_test');

sub payloads
{
	my ($topic) = @_;
	return map { $_->{payload} }
	  OutboxTest::Kcat::consume($broker->bootstrap, $topic);
}

# What a relay that starts now would find.
sub progress_in
{
	my ($database) = @_;
	return $node->safe_psql($database, 'SELECT cursor_test.progress()');
}

# ---------------------------------------------------------------------------
# Vacuum, while messages flow
# ---------------------------------------------------------------------------

wait_published($node, 'a', publish($node, 'a', "'flow', '0'::text, 'k'"));
my $pid = relay_pid($node, 'a');
$node->safe_psql('a', 'CREATE TABLE stop ()');
my $log_start = -s $node->logfile;
my $flow_out = '';
my $flow = IPC::Run::start(
	[
		'psql', '-XAtq', '-d', $node->connstr('a'),
		'-v', 'ON_ERROR_STOP=1', '-c', q{
		DO $$
		BEGIN
			FOR i IN 1 .. 1000000 LOOP
				PERFORM outbox.publish('flow', i::text, 'k');
				COMMIT;
				PERFORM pg_sleep(0.002);
				IF to_regclass('public.stop') IS NULL THEN
					RAISE NOTICE 'last: %', i;
					EXIT;
				END IF;
			END LOOP;
		END $$}
	],
	'<', \undef,
	'>&', \$flow_out);

my %rewritten;
for my $round (1 .. 10)
{
	for my $table (qw(relay_state relay_position))
	{
		$node->safe_psql('a', $_)
		  for "VACUUM (FREEZE) outbox.$table",
		  "VACUUM FULL outbox.$table",
		  "CLUSTER outbox.$table USING ${table}_pkey",
		  "REINDEX TABLE CONCURRENTLY outbox.$table",
		  "VACUUM (FREEZE, FULL) outbox.$table";
		$rewritten{ $node->safe_psql('a',
				"SELECT pg_relation_filenode('outbox.$table')") }++;
		my $seen = $node->safe_psql('a', "SELECT xmin FROM outbox.$table");

		# progress goes on being stored in the new file
		wait_until(
			"progress is stored in outbox.$table again",
			sub {
				$node->safe_psql('a',
					"SELECT xmin FROM outbox.$table") ne $seen;
			});
		is(progress_in('a'), 'ok', "$table, round $round: it is the relay's own");
	}
}
is(scalar keys %rewritten, 20, 'the tables were rewritten each time');
$node->safe_psql('a', 'DROP TABLE stop');
ok($flow->finish, 'messages were published all the time') or diag($flow_out);
my ($last) = $flow_out =~ /last: (\d+)/;
wait_delivered($node, 'a');
is(relay_pid($node, 'a'), $pid, 'the same relay all the time');
my @flow = payloads('flow');
is(scalar @flow, $last + 1, 'every message arrived once');
is_deeply(\@flow, [ 0 .. $last ], 'in order');
my $log = slurp_file($node->logfile, $log_start);
unlike($log, qr/(?:ERROR|FATAL|WARNING):/, 'nobody had an error');

# a relay that starts anew trusts what it finds
$node->restart;
wait_published($node, 'a', publish($node, 'a', "'flow', 'restarted'::text, 'k'"));
is(progress_in('a'), 'ok', 'and so it is after a restart');
@flow = payloads('flow');
is(scalar @flow, $last + 2, 'nothing was sent again');

# ---------------------------------------------------------------------------
# A crash in the middle of a batch, and a prepared transaction
# ---------------------------------------------------------------------------

$node->safe_psql('a', 'ALTER SYSTEM SET max_prepared_transactions = 10');
$node->restart;
$node->safe_psql(
	'a', q{
	BEGIN;
	SELECT outbox.publish('batch', 'prepared'::text, 'k');
	PREPARE TRANSACTION 'p'});

# Slow enough to be watched: 1,000 in flight, acknowledged after 100 ms.
my $size = 20_000;
$broker->command('rtt all 100');
$node->safe_psql('a',
	qq{SELECT count(outbox.publish('batch', i::text, 'k'))
	   FROM generate_series(1, $size) AS i});
wait_until(
	'a part of the batch is delivered',
	sub {
		$node->safe_psql(
			'a', qq{
			SELECT s.batch IS NOT NULL AND p.position > 0
			FROM outbox.relay_state AS s, outbox.relay_position AS p}) eq 't';
	});
publish($node, 'a', q{'batch', 'after the bound'::text, 'k'});
my $in_batch = $node->safe_psql('a',
	q{SELECT pg_visible_in_snapshot(m.xid, s.batch)
	  FROM outbox.message AS m, outbox.relay_state AS s
	  WHERE m.payload = 'after the bound'});
$node->stop('immediate');
is($in_batch, 'f', 'a message that the batch under way does not contain');

$broker->command('rtt all 0');
$node->start;
my $started = time;
wait_delivered($node, 'a');
cmp_ok(time - $started, '<', 30,
	'what was committed after the bound is not forgotten at the restart');
$node->safe_psql('a', q{COMMIT PREPARED 'p'});
wait_delivered($node, 'a');

my (%arrivals, @first);
for my $payload (payloads('batch'))
{
	push @first, $payload if !$arrivals{$payload}++;
}
is_deeply(
	\@first,
	[ 1 .. $size, 'after the bound', 'prepared' ],
	'all arrived, the first arrivals in order');
my $repeated = 0;
$repeated += $_ - 1 for values %arrivals;
diag("$repeated messages were sent again");
cmp_ok($repeated, '<=', 2000, 'not more again than is promised');

# ---------------------------------------------------------------------------
# Copies
# ---------------------------------------------------------------------------

# a database copied as files: what was pending in the original is parked, what
# is published in the copy is its own
wait_state($node, 'a', 'idle');
$node->safe_psql('a', 'SELECT outbox.pause()');
publish($node, 'a', q{'copy', 'pending'::text, 'k'});
$node->safe_psql('postgres', 'CREATE DATABASE files TEMPLATE a');
$node->safe_psql('a', 'SELECT outbox.resume()');
wait_until('the copy has its own progress',
	sub { progress_in('files') eq 'ok' });
is($node->safe_psql('files', 'SELECT reason, topic FROM outbox.parked'),
	'restored|copy', 'a copied database: what was pending is parked');
wait_delivered($node, 'a');
is_deeply([ payloads('copy') ], ['pending'],
	'the original sent it, the copy did not');
$node->safe_psql('files', 'SELECT outbox.resume()');
wait_published($node, 'files',
	publish($node, 'files', q{'copy', 'in the copy'::text, 'other'}));
wait_published($node, 'a',
	publish($node, 'a', q{'copy', 'in the original'::text, 'k'}));
is($node->safe_psql('files', 'SELECT outbox.adopt()'), '1', 'adopted');
wait_until('it is sent by the copy as well',
	sub { (grep { $_ eq 'pending' } payloads('copy')) == 2 });

# a row written by somebody else, as a logical copy does
$node->stop;
$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = ''");
$node->start;
$node->safe_psql(
	'a', q{
	BEGIN;
	CREATE TEMP TABLE copied AS SELECT * FROM outbox.relay_state;
	DELETE FROM outbox.relay_state;
	INSERT INTO outbox.relay_state SELECT * FROM copied;
	COMMIT});
is(progress_in('a'), 'foreign', 'a copied row: not the relay\'s own');
publish($node, 'a', q{'copy', 'after the copy'::text, 'k'});
$node->restart;
wait_until('the relay made it its own', sub { progress_in('a') eq 'ok' });
is($node->safe_psql('a', 'SELECT reason, topic FROM outbox.parked'),
	'restored|copy', 'a copied row: what was pending is parked');

# the relay writes its row as its own: what the check rests on
$node->safe_psql('a',
	q{UPDATE outbox.relay_state SET writer_xid = xmin});
is(progress_in('a'), 'foreign', 'the xmin of the row before does not do');
$node->safe_psql('a',
	q{UPDATE outbox.relay_state SET writer_xid = pg_current_xact_id()::xid});
is(progress_in('a'), 'ok', 'the xid that wrote it does');

$node->stop;
$broker->stop;
done_testing();
