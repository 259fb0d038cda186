
# The life of side workers: the relay of their database has them started and
# stopped, and whatever holds for relays (see 030_launcher.pl) holds for them.
# Needs no Kafka but for one handler that never ends.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

use OutboxTest;
use OutboxTest::MockBroker;

# Commands that have to wait for connections to end give up after 5 s.
my $AT_ONCE = 4.5;

my $INBOX = "backend_type = 'outbox_kafka inbox'";
my $DECIDER = "backend_type = 'outbox_kafka decider'";
my $RELAY = "backend_type = 'outbox_kafka relay'";
my $LAUNCHER = "backend_type = 'outbox_kafka launcher'";
my $SIDE = "($INBOX OR $DECIDER)";

my @conf = (
	'max_worker_processes' => 20,
	'outbox_kafka.bootstrap_servers' => '',
	'autovacuum' => 'off');

my $node = new_node('main', conf => { @conf, 'restart_after_crash' => 'on' },
	init => { allows_streaming => 1 });

# Pids of what matches in a database, comma separated, in order of their start.
# One that only looks whether it has anything to do there does not count: it has
# no state yet.
sub pids
{
	my ($where, $database, $kind) = @_;
	return $where->safe_psql('postgres',
		"SELECT coalesce(string_agg(pid::text, ',' ORDER BY backend_start), '')
		 FROM pg_stat_activity WHERE $kind AND state IS NOT NULL AND datname = '$database'");
}

sub wait_count
{
	my ($where, $database, $kind, $count) = @_;
	my $pids;
	wait_until("$database has $count of $kind",
		sub {
			$pids = pids($where, $database, $kind);
			return split(/,/, $pids) == $count;
		},
		undef, sub { "pids: $pids" });
	return $pids;
}

# Until none of those with these pids is left, and as many others have come.
sub wait_others
{
	my ($where, $database, $kind, $old) = @_;
	my %old = map { $_ => 1 } split /,/, $old;
	my $pids;
	wait_until("$database has other workers than $old",
		sub {
			$pids = pids($where, $database, $kind);
			my @now = split /,/, $pids;
			return @now == keys %old && !grep { $old{$_} } @now;
		},
		undef, sub { "pids: $pids" });
	return $pids;
}

# A relay that was told of something has told the launcher once a worker that
# was declared later runs: both work through it in order.
my $barriers = 0;

sub barrier
{
	my ($where, $database) = @_;
	my $name = 'barrier_' . ++$barriers;
	my $before = split /,/, pids($where, $database, $INBOX);

	subscribe($where, $database, $name);
	my $id = $where->safe_psql($database, "SELECT id FROM inbox.subscription WHERE name = '$name'");
	wait_until("worker of $name runs",
		sub {
			return $where->safe_psql($database,
				"SELECT count(*) FROM inbox.workers WHERE name = '$name' AND pid IS NOT NULL") > 0;
		});
	$where->safe_psql($database, "SELECT inbox.unsubscribe('$name')");
	wait_until("worker of $name has gone",
		sub {
			return $where->safe_psql('postgres',
				"SELECT count(*) FROM pg_stat_activity WHERE $INBOX AND datname = '$database'") <= $before;
		});
	return;
}

sub prepare_database
{
	my ($where, $database) = @_;
	new_database($where, $database);
	$where->safe_psql($database,
		'CREATE FUNCTION handle(inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$');
	return;
}

sub subscribe
{
	my ($where, $database, $name, $workers) = @_;
	$workers //= 1;
	$where->safe_psql($database,
		"SELECT inbox.subscribe('$name', '{t}', 'handle', workers => $workers)");
	return;
}

sub timed_psql
{
	my ($where, $database, $sql) = @_;
	my $start = time;
	my ($rc, $out, $err) = $where->psql($database, $sql);
	return ($rc, time - $start, $err);
}

sub count_log
{
	my ($where, $pattern, $offset) = @_;
	my $count = () = substr(slurp_file($where->logfile), $offset // 0) =~ /$pattern/g;
	return $count;
}

# ---------------------------------------------------------------------------
# Subscriptions
# ---------------------------------------------------------------------------

prepare_database($node, 'a');
my $relay = wait_count($node, 'a', $RELAY, 1);
$node->safe_psql('a', q{BEGIN; SELECT inbox.subscribe('s', '{t}', 'handle'); ROLLBACK});
subscribe($node, 'a', 's', 3);
my $three = wait_count($node, 'a', $INBOX, 3);
pass('inbox.subscribe(): as many workers as it asks for, without a restart');
is(pids($node, 'a', $RELAY), $relay, 'by the same relay');
is($node->safe_psql('a', q{SELECT string_agg(worker::text, ' ' ORDER BY worker) FROM inbox.workers WHERE name = 's'}),
	'0 1 2', 'numbered');
is($node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE $INBOX AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)"),
	0, 'they hold no snapshot');

subscribe($node, 'a', 's2');
wait_count($node, 'a', $INBOX, 4);
$node->safe_psql('a', q{SELECT inbox.alter_subscription('s', workers => 1)});
wait_count($node, 'a', $INBOX, 2);
my ($first) = $three =~ /^(\d+)/;
$node->safe_psql('a', q{BEGIN; SELECT inbox.unsubscribe('s2'); ROLLBACK});
barrier($node, 'a');
my $two = wait_count($node, 'a', $INBOX, 2);
$node->safe_psql('a', q{SELECT inbox.unsubscribe('s')});
my $one = wait_count($node, 'a', $INBOX, 1);
like($two, qr/\b$one\b/, 'inbox.unsubscribe() stops the workers of its subscription, and no others');

$node->safe_psql('a', q{BEGIN; SELECT inbox.subscribe('s3', '{t}', 'handle'); PREPARE TRANSACTION 'subscribe'});
barrier($node, 'a');
is(pids($node, 'a', $INBOX), $one, 'inbox.subscribe() prepared: no worker yet');
$node->safe_psql('a', q{COMMIT PREPARED 'subscribe'});
$two = wait_count($node, 'a', $INBOX, 2);
like($two, qr/\b$one\b/, 'COMMIT PREPARED: a worker');

# ---------------------------------------------------------------------------
# The decider: there is one when there is something to decide
# ---------------------------------------------------------------------------

is(pids($node, 'a', $DECIDER), '', 'no decider without need');
$node->safe_psql('a', q{SELECT outbox.expect_confirmation(outbox.publish('t', 'x'::text), '1 h')});
my $decider = wait_count($node, 'a', $DECIDER, 1);
pass('outbox.expect_confirmation(): a decider');
$node->safe_psql('a', q{SELECT outbox.expect_confirmation(outbox.publish('t', 'x'::text), '1 h')});
barrier($node, 'a');
is(pids($node, 'a', $DECIDER), $decider, 'one is enough');
$node->safe_psql('a', 'DELETE FROM outbox.confirmation; SELECT outbox.wake_decider()');
wait_count($node, 'a', $DECIDER, 0);
pass('it leaves when nothing is left');

# It has left, and is needed again before the launcher has noticed.
my $expect = q{SELECT outbox.expect_confirmation(outbox.publish('t', 'x'::text), '1 h')};
$node->safe_psql('a', $expect);
wait_count($node, 'a', $DECIDER, 1);
my $stopped = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE $LAUNCHER");
kill 'STOP', $stopped;
$node->safe_psql('a', 'DELETE FROM outbox.confirmation; SELECT outbox.wake_decider()');
wait_count($node, 'a', $DECIDER, 0);
$node->safe_psql('a', $expect);
kill 'CONT', $stopped;
wait_count($node, 'a', $DECIDER, 1);
pass('it comes back when it is needed before the launcher knows that it left');

# It may be leaving at the very moment.
my $missed = 0;
for my $round (1 .. 5)
{
	$node->safe_psql('a', q{SELECT outbox.expect_confirmation(outbox.publish('t', 'x'::text), '1 h')});
	wait_count($node, 'a', $DECIDER, 1);
	$node->safe_psql('a', 'DELETE FROM outbox.confirmation; SELECT outbox.wake_decider()');
	usleep($round * 2000);
	my $deadline = time + 20;
	$node->safe_psql('a', q{SELECT outbox.expect_confirmation(outbox.publish('t', 'x'::text), '1 h')});
	my $seen = 0;

	# one that was on its way out may be counted: it has to be there to stay
	while ($seen < 3 && time < $deadline)
	{
		$seen = pids($node, 'a', $DECIDER) ? $seen + 1 : 0;
		usleep(100_000);
	}
	$missed++ if $seen < 3;
}
is($missed, 0, 'it comes back when it is needed while it leaves');

# ---------------------------------------------------------------------------
# Idle
# ---------------------------------------------------------------------------

# How often the processes gave up the processor so far.
sub switches
{
	my $count = 0;
	$count += (slurp_file("/proc/$_/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m)[0] for @_;
	return $count;
}

SKIP:
{
	skip 'wake-ups are counted in /proc', 1 unless -e '/proc/self/status';
	my @idle = split /,/, wait_count($node, 'a', $SIDE, 3);
	my $awake;
	for my $try (1 .. 5)
	{
		my $before = switches(@idle);
		usleep(5_000_000);
		$awake = switches(@idle) - $before;
		last if $awake <= 3;
	}
	cmp_ok($awake, '<=', 3, 'two inbox workers and a decider with nothing to do: at most one wake-up each in five seconds');
}

# ---------------------------------------------------------------------------
# Commands that need a database without connections
# ---------------------------------------------------------------------------

my ($rc, $took, $err);
my $all = wait_count($node, 'a', $SIDE, 3);

($rc, $took, $err) = timed_psql($node, 'postgres', 'CREATE DATABASE copy TEMPLATE a');
is($rc, 0, 'CREATE DATABASE TEMPLATE succeeds while side workers run');
cmp_ok($took, '<', $AT_ONCE, 'at once');
$all = wait_others($node, 'a', $SIDE, $all);
pass('those of the template come back');
wait_count($node, 'copy', $INBOX, 2);
pass('the copy has its own');

($rc, $took) = timed_psql($node, 'postgres', 'ALTER DATABASE copy RENAME TO renamed');
is($rc, 0, 'ALTER DATABASE RENAME succeeds while side workers run');
cmp_ok($took, '<', $AT_ONCE, 'at once');
wait_count($node, 'renamed', $INBOX, 2);
pass('they come back under the new name');

my $tablespace = PostgreSQL::Test::Utils::tempdir();
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$tablespace'");
($rc, $took) = timed_psql($node, 'postgres', 'ALTER DATABASE renamed SET TABLESPACE elsewhere');
is($rc, 0, 'ALTER DATABASE SET TABLESPACE succeeds while side workers run');
cmp_ok($took, '<', $AT_ONCE, 'at once');
wait_count($node, 'renamed', $INBOX, 2);
($rc, $took) = timed_psql($node, 'postgres', 'DROP DATABASE renamed');
is($rc, 0, 'DROP DATABASE succeeds while side workers run');
cmp_ok($took, '<', $AT_ONCE, 'at once');
$node->safe_psql('postgres', 'DROP TABLESPACE elsewhere');

my $slowest = 0;
my $failed = 0;
for my $i (1 .. 10)
{
	$node->safe_psql('postgres', 'CREATE DATABASE brief TEMPLATE a');
	wait_until('a side worker of brief starts', sub {
		$node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE $SIDE AND datname = 'brief'") > 0 });
	usleep($i * 5000);
	($rc, $took) = timed_psql($node, 'postgres', $i % 2 ? 'DROP DATABASE brief' : 'DROP DATABASE brief WITH (FORCE)');
	$failed++ if $rc != 0;
	$slowest = $took if $took > $slowest;
}
is($failed, 0, 'DROP DATABASE while side workers start, plain and FORCE, ten times');
cmp_ok($slowest, '<', $AT_ONCE, 'each at once');

$all = wait_count($node, 'a', $SIDE, 3);
$node->safe_psql('postgres', 'CREATE ROLE stranger LOGIN CREATEDB');
for my $sql ('DROP DATABASE a', 'DROP DATABASE a WITH (FORCE)',
	'ALTER DATABASE a RENAME TO taken', 'CREATE DATABASE taken TEMPLATE a')
{
	(undef, undef, $err) = $node->psql('postgres', "SET ROLE stranger; $sql");
	like($err, qr/must be owner of database|permission denied/, "refused: $sql");
}
is(pids($node, 'a', $SIDE), $all, 'refused commands do not touch side workers');

is($node->safe_psql('postgres',
		"BEGIN; ALTER DATABASE a RENAME TO renamed;
		 SELECT count(*) FROM pg_stat_activity WHERE $SIDE AND datname = 'a';
		 SELECT pg_sleep(1);
		 SELECT count(*) FROM pg_stat_activity WHERE $SIDE AND datname = 'a';
		 ROLLBACK"),
	"0\n\n0", 'ALTER DATABASE RENAME keeps side workers away for its transaction');
$all = wait_others($node, 'a', $SIDE, $all);
pass('rolled back, they are there again');

$node->safe_psql('postgres', 'ALTER DATABASE a IS_TEMPLATE true');
wait_count($node, 'a', $SIDE, 0);
pass('a template has none');
$node->safe_psql('postgres', 'ALTER DATABASE a IS_TEMPLATE false');
$all = wait_count($node, 'a', $SIDE, 3);
pass('a template no more, it has');

# ---------------------------------------------------------------------------
# Settings and the extension
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', "BEGIN; ALTER DATABASE a SET outbox_kafka.retention = '2h'; ROLLBACK");
barrier($node, 'a');
is(pids($node, 'a', $SIDE), $all, 'ALTER DATABASE SET rolled back does nothing');
$node->safe_psql('postgres', "ALTER DATABASE a SET outbox_kafka.source = '/shop'");
$all = wait_others($node, 'a', $SIDE, $all);
pass('ALTER DATABASE SET restarts side workers');
$node->safe_psql('postgres', 'ALTER ROLE ALL RESET ALL');
$all = wait_others($node, 'a', $SIDE, $all);
pass('ALTER ROLE ALL concerns them, too');

prepare_database($node, 'b');
subscribe($node, 'b', 's', 2);
my $of_b = wait_count($node, 'b', $INBOX, 2);
$node->safe_psql('b', 'BEGIN; DROP EXTENSION outbox_kafka CASCADE; ROLLBACK');
barrier($node, 'b');
is(pids($node, 'b', $INBOX), $of_b, 'DROP EXTENSION rolled back: side workers run on');
$node->safe_psql('b', 'DROP EXTENSION outbox_kafka CASCADE');
wait_count($node, 'b', $SIDE, 0);
pass('DROP EXTENSION stops them');
$node->safe_psql('b', 'CREATE EXTENSION outbox_kafka');
$node->safe_psql('b', 'CREATE FUNCTION handle(inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$');
wait_count($node, 'b', $RELAY, 1);
barrier($node, 'b');
is(pids($node, 'b', $SIDE), '', 'made anew, it has none');
is(pids($node, 'a', $SIDE), $all, 'those of another database are left alone');
$node->safe_psql('postgres', 'DROP DATABASE b');

# ---------------------------------------------------------------------------
# Ends and failures
# ---------------------------------------------------------------------------

my ($pid) = split /,/, pids($node, 'a', $INBOX);
my $others = join ',', grep { $_ != $pid } split /,/, $all;
my $before = time;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$all = wait_until('another worker takes its place', sub {
	my $now = pids($node, 'a', $SIDE);
	return split(/,/, $now) == 3 && $now !~ /\b$pid\b/ ? $now : undef });
cmp_ok(time - $before, '<', $AT_ONCE, 'a terminated side worker is started again soon');
like($all, qr/\b$_\b/, 'the others run on') for split /,/, $others;

$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE $SIDE");
barrier($node, 'a');
is(pids($node, 'a', $SIDE), $all, 'pg_cancel_backend() leaves them alone');

$relay = wait_count($node, 'a', $RELAY, 1);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($relay)");
wait_others($node, 'a', $RELAY, $relay);
barrier($node, 'a');
is(pids($node, 'a', $SIDE), $all, 'a relay that ends does not end side workers');

my $launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE $LAUNCHER");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 AND bool_and(pid <> $launcher) FROM pg_stat_activity WHERE $LAUNCHER");
barrier($node, 'a');
is(pids($node, 'a', $SIDE), $all, 'a launcher that comes back takes them over');
($pid) = split /,/, $all;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$all = wait_until('it starts them again', sub {
	my $now = pids($node, 'a', $SIDE);
	return split(/,/, $now) == 3 && $now !~ /\b$pid\b/ ? $now : undef });
pass('and starts them again when they end');

($pid) = split /,/, $all;
kill_worker($node, 'KILL', $pid);
pass('the server restarts after a side worker was killed');
$all = wait_others($node, 'a', $SIDE, $all);
pass('and so do side workers');

$before = time;
$node->stop('fast');
cmp_ok(time - $before, '<', 5, 'pg_ctl stop -m fast with side workers');
$node->start;
wait_count($node, 'a', $SIDE, 3);
pass('after a start they are there');

# A relay that cannot begin, and it is no fault of theirs.
$node->safe_psql('a', 'ALTER SEQUENCE outbox.message_id CACHE 10');
$node->restart;
$node->wait_for_log(qr/sequence outbox\.message_id was altered/);
wait_count($node, 'a', $SIDE, 3);
pass('they are there where the relay fails before it sends anything');
$node->safe_psql('a', 'ALTER SEQUENCE outbox.message_id CACHE 1');
barrier($node, 'a');
pass('and the relay once it can');

# As pg_upgrade starts a server.
$node->stop;
PostgreSQL::Test::Utils::system_or_bail('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-o', '-b', 'start');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox_kafka%'"),
	0, 'no worker in binary upgrade mode');
PostgreSQL::Test::Utils::system_or_bail('pg_ctl', '-w', '-D', $node->data_dir, 'stop');
$node->start;

# ---------------------------------------------------------------------------
# Standby
# ---------------------------------------------------------------------------

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox_kafka%'"),
	0, 'nothing runs on a standby');
$node->stop;
$standby->promote;
wait_count($standby, 'a', $SIDE, 3);
pass('side workers start at promotion');
$standby->stop;
is(count_log($node, qr/(?:PANIC|TRAP|terminated by signal (?!9))/), 0, 'no crash but the one that was asked for');

# ---------------------------------------------------------------------------
# Not enough workers: the launcher, a relay and one more.
# ---------------------------------------------------------------------------

my $few = new_node('few', conf => { @conf, 'max_worker_processes' => 3,
	'max_logical_replication_workers' => 0, 'log_min_messages' => 'debug1' });
prepare_database($few, 'a');
wait_count($few, 'a', $RELAY, 1);
subscribe($few, 'a', 's', 2);
wait_count($few, 'a', $INBOX, 1);
$few->wait_for_log(qr/LOG: .*out of background worker slots: cannot start an inbox worker in database "a"/);
$few->wait_for_log(qr/(?:still out of background worker slots.*){2}/s);
is(count_log($few, qr/LOG: .*out of background worker slots/), 1, 'no background worker left: one line in the log');
is(count_log($few, qr/HINT: .*increase max_worker_processes/), 1, 'with a hint');
is($few->safe_psql('a', q{SELECT count(*) FROM inbox.workers WHERE name = 's' AND state = 'no worker slot'}),
	1, 'and it is said in the view');
new_database($few, 'b');
$few->safe_psql('a', q{SELECT inbox.unsubscribe('s')});
wait_count($few, 'b', $RELAY, 1);
pass('a relay as soon as there is a worker');
$few->safe_psql('postgres', 'DROP DATABASE b');
subscribe($few, 'a', 's', 1);
wait_count($few, 'a', $INBOX, 1);
pass('and then a side worker');
$few->stop;

# ---------------------------------------------------------------------------
# max_inbox_workers
# ---------------------------------------------------------------------------

my $limited = new_node('limited', conf => { @conf, 'outbox_kafka.max_inbox_workers' => 2 });
prepare_database($limited, 'a');
prepare_database($limited, 'b');
subscribe($limited, 'a', 's', 2);
wait_count($limited, 'a', $INBOX, 2);
my $offset = -s $limited->logfile;
subscribe($limited, 'b', 's', 2);
$limited->wait_for_log(qr/LOG: .*out of slots for inbox workers: 2 of database "b" cannot be started/, $offset);
$limited->safe_psql('b', q{SELECT outbox.expect_confirmation(outbox.publish('t', 'x'::text), '1 h')});
wait_count($limited, 'b', $DECIDER, 1);
pass('a decider has a place of its own');
is(count_log($limited, qr/HINT: .*increase outbox_kafka.max_inbox_workers/), 1, 'max_inbox_workers taken: one line with a hint');
$limited->safe_psql('a', q{SELECT inbox.unsubscribe('s')});
wait_count($limited, 'b', $INBOX, 2);
pass('places are passed on to another database');
subscribe($limited, 'a', 's', 1);
$limited->safe_psql('postgres', 'DROP DATABASE b');
wait_count($limited, 'a', $INBOX, 1);
pass('also by DROP DATABASE');
$limited->stop;

# ---------------------------------------------------------------------------
# A handler that never ends is interrupted
# ---------------------------------------------------------------------------

my $broker = OutboxTest::MockBroker->new(topics => { t => 1 });
my $busy = new_node('busy', kafka => $broker, conf => { 'outbox_kafka.handler_timeout' => '1h' });

sub busy_database
{
	my ($database) = @_;
	new_database($busy, $database);
	$busy->safe_psql($database,
		'CREATE FUNCTION handle(inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3600); END $$');
	subscribe($busy, $database, 's');
	wait_busy($database);
	return;
}

sub wait_busy
{
	my ($database) = @_;
	wait_until("the handler of $database runs", sub {
		$busy->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity
			WHERE $INBOX AND datname = '$database' AND wait_event = 'PgSleep'") == 1 });
	return;
}

prepare_database($busy, 'source');
publish($busy, 'source', q{'t', 'x'::text});
wait_delivered($busy, 'source');

busy_database('c');
($rc, $took) = timed_psql($busy, 'postgres', 'DROP DATABASE c');
is($rc, 0, 'DROP DATABASE interrupts a handler');
cmp_ok($took, '<', $AT_ONCE, 'at once');

busy_database('d');
my $old_pid = $busy->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE $INBOX AND datname = 'd'");
$before = time;
$busy->safe_psql('postgres', "ALTER DATABASE d SET outbox_kafka.source = '/d'");
wait_until('it is gone', sub { !kill 0, $old_pid });
cmp_ok(time - $before, '<', $AT_ONCE, 'so does ALTER DATABASE SET');
wait_busy('d');
my $busy_pid = $busy->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE $INBOX AND datname = 'd'");
$busy->safe_psql('postgres', "SELECT pg_terminate_backend($busy_pid)");
wait_until('another one', sub {
	$busy->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity
		WHERE $INBOX AND datname = 'd' AND wait_event = 'PgSleep' AND pid <> $busy_pid") == 1 });
pass('and pg_terminate_backend()');

$before = time;
$busy->stop('fast');
cmp_ok(time - $before, '<', 5, 'and pg_ctl stop -m fast');
is(count_log($busy, qr/(?:PANIC|TRAP|terminated by signal)/), 0, 'no crash');

done_testing();
