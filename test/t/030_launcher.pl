
# The life of relays: who starts them, who stops them, and who never has to
# wait for them. Needs no Kafka: outbox_kafka.bootstrap_servers stays unset.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest qw(kill_worker);

# Commands that have to wait for connections to end give up after 5 s; with a
# relay in the database they take a fraction of a second, on a machine that runs
# other things besides a few.
my $AT_ONCE = 4.5;

my $RELAY = "backend_type = 'outbox_kafka relay'";
my $LAUNCHER = "backend_type = 'outbox_kafka launcher'";

sub new_node
{
	my ($name, @conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(allows_streaming => 1);
	$node->append_conf('postgresql.conf', join("\n",
		"shared_preload_libraries = 'outbox_kafka'",
		'max_prepared_transactions = 5',
		'autovacuum = off',
		@conf,
		''));
	return $node;
}

# The pids of the relays of a database, comma separated; '' when there is none.
sub relays
{
	my ($node, $database) = @_;

	return $node->safe_psql('postgres',
		"SELECT coalesce(string_agg(pid::text, ','), '') FROM pg_stat_activity
		 WHERE $RELAY AND datname = '$database'");
}

# Wait until there is exactly one relay in a database, other than the one with
# the pid given, and return its pid. One that only looks whether it has
# anything to do there does not count: it has no state yet.
sub wait_relay
{
	my ($node, $database, $not_pid) = @_;
	$not_pid ||= 0;

	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 AND bool_and(pid <> $not_pid) AND bool_and(state IS NOT NULL)
		 FROM pg_stat_activity WHERE $RELAY AND datname = '$database'") or return undef;
	return relays($node, $database);
}

sub wait_no_relay
{
	my ($node, $database) = @_;

	return $node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE $RELAY AND datname = '$database'");
}

# Everything the launcher was told of before is dealt with once a relay runs
# in a database that was told of after: it works through them one by one.
my $barriers = 0;

sub launcher_barrier
{
	my ($node) = @_;
	my $database = 'barrier_' . ++$barriers;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION outbox_kafka');
	wait_relay($node, $database) or die 'no relay at the barrier';
	$node->safe_psql('postgres', "DROP DATABASE $database");
	return;
}

sub timed_psql
{
	my ($node, $database, $sql) = @_;
	my $start = time;
	my ($rc, $out, $err) = $node->psql($database, $sql);

	return ($rc, time - $start, $err);
}

# How often a line of the log matches.
sub count_log
{
	my ($node, $pattern, $offset) = @_;
	my $log = substr(slurp_file($node->logfile), $offset || 0);
	my $count = () = $log =~ /$pattern/g;

	return $count;
}

my $node = new_node('main', 'restart_after_crash = on');
$node->start;
my $pid;

# ---------------------------------------------------------------------------
# CREATE and DROP EXTENSION
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE a');
$node->safe_psql('postgres', 'CREATE DATABASE plain');
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE $LAUNCHER"),
	'the launcher runs');

$node->safe_psql('a', 'BEGIN; CREATE EXTENSION outbox_kafka; ROLLBACK');
launcher_barrier($node);
is(relays($node, 'a'), '', 'CREATE EXTENSION rolled back: no relay');
is(relays($node, 'plain'), '', 'no relay without the extension');

$node->safe_psql('a', 'CREATE EXTENSION outbox_kafka');
$pid = wait_relay($node, 'a');
ok($pid, 'CREATE EXTENSION: a relay without a restart');

is( $node->safe_psql('postgres',
		"SELECT backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity WHERE $LAUNCHER"),
	't', 'the idle launcher holds no snapshot');

$node->safe_psql('a', 'BEGIN; DROP EXTENSION outbox_kafka; ROLLBACK');
launcher_barrier($node);
is(relays($node, 'a'), $pid, 'DROP EXTENSION rolled back: the relay runs on');

$node->safe_psql('a', 'BEGIN; SAVEPOINT s; DROP EXTENSION outbox_kafka; ROLLBACK TO s; COMMIT');
launcher_barrier($node);
$pid = wait_relay($node, 'a');
ok($pid, 'DROP EXTENSION in a savepoint rolled back: there is a relay');
launcher_barrier($node);
is(relays($node, 'a'), $pid, 'and it stays');

$node->safe_psql('a', 'DROP EXTENSION outbox_kafka');
ok(wait_no_relay($node, 'a'), 'DROP EXTENSION stops the relay');
launcher_barrier($node);
is(relays($node, 'a'), '', 'and it does not come back');

$node->safe_psql('a', "BEGIN; CREATE EXTENSION outbox_kafka; PREPARE TRANSACTION 'create'");
launcher_barrier($node);
is(relays($node, 'a'), '', 'CREATE EXTENSION prepared: no relay yet');
$node->safe_psql('a', "COMMIT PREPARED 'create'");
$pid = wait_relay($node, 'a');
ok($pid, 'COMMIT PREPARED of CREATE EXTENSION: a relay');

# ---------------------------------------------------------------------------
# Commands that need a database without connections
# ---------------------------------------------------------------------------

my ($rc, $took, $err);

($rc, $took) = timed_psql($node, 'postgres', 'CREATE DATABASE copy TEMPLATE a');
is($rc, 0, 'CREATE DATABASE TEMPLATE succeeds while a relay runs');
cmp_ok($took, '<', $AT_ONCE, 'at once');
$pid = wait_relay($node, 'a');
ok($pid, 'the relay of the template comes back');
ok(wait_relay($node, 'copy'), 'the copy has a relay of its own');

($rc, $took) = timed_psql($node, 'postgres', 'ALTER DATABASE copy RENAME TO renamed');
is($rc, 0, 'ALTER DATABASE RENAME succeeds while a relay runs');
cmp_ok($took, '<', $AT_ONCE, 'at once');
ok(wait_relay($node, 'renamed'), 'the relay comes back under the new name');

my $tablespace = PostgreSQL::Test::Utils::tempdir();
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$tablespace'");
($rc, $took) = timed_psql($node, 'postgres', 'ALTER DATABASE renamed SET TABLESPACE elsewhere');
is($rc, 0, 'ALTER DATABASE SET TABLESPACE succeeds while a relay runs');
cmp_ok($took, '<', $AT_ONCE, 'at once');
ok(wait_relay($node, 'renamed'), 'the relay comes back in the new tablespace');

($rc, $took) = timed_psql($node, 'postgres', 'DROP DATABASE renamed');
is($rc, 0, 'DROP DATABASE succeeds while a relay runs');
cmp_ok($took, '<', $AT_ONCE, 'at once');

# Several relays in a row, as the moment of connecting is the delicate one.
my $slowest = 0;
my $failed = 0;
for my $i (1 .. 10)
{
	$node->safe_psql('postgres', 'CREATE DATABASE brief TEMPLATE a');
	my $rc;
	my $took;
	($rc, $took) = timed_psql($node, 'postgres',
		$i % 2 ? 'DROP DATABASE brief' : 'DROP DATABASE brief WITH (FORCE)');
	$failed++ if $rc != 0;
	$slowest = $took if $took > $slowest;
}
is($failed, 0, 'DROP DATABASE right after CREATE, plain and FORCE, ten times');
cmp_ok($slowest, '<', $AT_ONCE, 'each at once');

$node->safe_psql('postgres', "CREATE ROLE owner LOGIN CREATEDB; CREATE ROLE stranger LOGIN CREATEDB");
$node->safe_psql('postgres', 'CREATE DATABASE owned OWNER owner');
$node->safe_psql('owned', 'CREATE EXTENSION outbox_kafka');
$pid = wait_relay($node, 'owned');

# The relay runs as a superuser, whom an ordinary owner may not terminate.
for my $sql ('DROP DATABASE owned', 'DROP DATABASE owned WITH (FORCE)',
	'ALTER DATABASE owned RENAME TO taken', 'CREATE DATABASE taken TEMPLATE owned')
{
	($rc, undef, $err) = $node->psql('postgres', "SET ROLE stranger; $sql");
	like($err, qr/must be owner of database|permission denied/, "refused: $sql");
}
is(relays($node, 'owned'), $pid, 'refused commands do not touch the relay');

# Fails after everything that would have stopped the relay.
($rc, undef, $err) = $node->psql('owned', 'DROP DATABASE owned');
like($err, qr/cannot drop the currently open database/, 'a DROP DATABASE that fails');
$pid = wait_relay($node, 'owned', $pid);
ok($pid, 'brings the relay back');

($rc, undef, $err) = $node->psql('postgres', 'ALTER DATABASE owned RENAME TO a');
like($err, qr/already exists/, 'an ALTER DATABASE RENAME that fails');
$pid = wait_relay($node, 'owned', $pid);
ok($pid, 'brings the relay back');

is( $node->safe_psql('postgres',
		"BEGIN; ALTER DATABASE owned RENAME TO renamed;
		 SELECT count(*) FROM pg_stat_activity WHERE $RELAY AND datname = 'owned';
		 ROLLBACK"),
	0, 'ALTER DATABASE RENAME keeps the relay away for its transaction');
$pid = wait_relay($node, 'owned', $pid);
ok($pid, 'rolled back, it is there again');

($rc, $took) = timed_psql($node, 'postgres', 'SET ROLE owner; DROP DATABASE owned WITH (FORCE)');
is($rc, 0, 'an ordinary owner can DROP DATABASE WITH (FORCE) while a relay runs');
cmp_ok($took, '<', $AT_ONCE, 'at once');

$node->safe_psql('postgres', 'ALTER DATABASE a IS_TEMPLATE true');
ok(wait_no_relay($node, 'a'), 'a template has no relay');
$node->safe_psql('postgres', 'ALTER DATABASE a IS_TEMPLATE false');
$pid = wait_relay($node, 'a');
ok($pid, 'a template no more, it has one');

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', "ALTER DATABASE a SET outbox_kafka.source = '/shop'");
$pid = wait_relay($node, 'a', $pid);
ok($pid, 'ALTER DATABASE SET restarts the relay');

$node->safe_psql('postgres', "ALTER ROLE owner IN DATABASE a SET work_mem = '8MB'");
launcher_barrier($node);
is(relays($node, 'a'), $pid, "a setting for somebody else's sessions does not");

$node->safe_psql('postgres', 'ALTER ROLE ALL RESET ALL');
$pid = wait_relay($node, 'a', $pid);
ok($pid, 'ALTER ROLE ALL concerns relays, too');

$node->safe_psql('postgres',
	"BEGIN; ALTER DATABASE a SET outbox_kafka.retention = '2h'; ROLLBACK");
launcher_barrier($node);
is(relays($node, 'a'), $pid, 'ALTER DATABASE SET rolled back does not');

# ---------------------------------------------------------------------------
# Ends and failures
# ---------------------------------------------------------------------------

my $before = time;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$pid = wait_relay($node, 'a', $pid);
ok($pid, 'a terminated relay is started again');
cmp_ok(time - $before, '<', $AT_ONCE, 'soon');

$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
launcher_barrier($node);
is(relays($node, 'a'), $pid, 'pg_cancel_backend() leaves a relay alone');

my $launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE $LAUNCHER");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 1 AND bool_and(pid <> $launcher) FROM pg_stat_activity WHERE $LAUNCHER"),
	'a terminated launcher comes back');
launcher_barrier($node);
is(relays($node, 'a'), $pid, 'it takes the running relay over');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$pid = wait_relay($node, 'a', $pid);
ok($pid, 'and starts it again when it ends');

# Any relay needs this table.
my $offset = -s $node->logfile;
$node->safe_psql('a', 'ALTER TABLE outbox.relay_state RENAME TO relay_state_gone');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
my $failure = qr/background worker "outbox_kafka relay[^"]*" \(PID \d+\) exited with exit code 1/;
my @failed_at;
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
while (@failed_at < 3 && time < $deadline)
{
	my $now = time;
	push @failed_at, $now while @failed_at < count_log($node, $failure, $offset);
	Time::HiRes::usleep(20_000);
}
is(scalar(@failed_at), 3, 'a relay that fails is started again and again');

# 1 s after the first failure, 2 s after the second; less what polling blurs.
cmp_ok($failed_at[1] - $failed_at[0], '>', 0.9, 'after a second');
cmp_ok($failed_at[2] - $failed_at[1], '>', 1.9, 'then after two');
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION outbox_kafka');
ok(wait_relay($node, 'other'), 'others do not suffer from it');
$node->safe_psql('a', 'ALTER TABLE outbox.relay_state_gone RENAME TO relay_state');
$pid = wait_relay($node, 'a', $pid);
ok($pid, 'it runs once the cause is gone');
launcher_barrier($node);
is(relays($node, 'a'), $pid, 'and stays');

SKIP:
{
	skip 'threads are counted in /proc', 1 unless -d "/proc/$pid/task";
	my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
	my @threads = glob "/proc/$postmaster/task/*";
	is(scalar(@threads), 1, 'the postmaster has one thread');
}

# A crash of the relay is a crash of the server: everything starts anew.
kill_worker($node, 'KILL', $pid);
pass('the server restarts after a relay was killed');
ok(wait_relay($node, 'a', $pid), 'and so does the relay');
ok(wait_relay($node, 'other'), 'and the others');

# The prepared transaction locks the database: its relay waits to connect.
$node->safe_psql('postgres',
	"BEGIN; ALTER DATABASE other RENAME TO another; PREPARE TRANSACTION 'rename'");
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_locks WHERE classid = 'pg_database'::regclass AND NOT granted"),
	'a relay waits for its database');
$before = time;
$node->stop('fast');
cmp_ok(time - $before, '<', 5, 'pg_ctl stop -m fast, with a relay that waits for its database');
$node->start;
$node->safe_psql('postgres', "COMMIT PREPARED 'rename'");
ok(wait_relay($node, 'another'), 'it gets in when the prepared transaction ends');
ok(wait_relay($node, 'a'), 'as do all others');

$before = time;
$node->stop('fast');
cmp_ok(time - $before, '<', 5, 'pg_ctl stop -m fast with relays');
is( count_log($node, qr/(?:PANIC|TRAP|terminated by signal (?!9))/), 0, 'no crash but the one that was asked for');

# ---------------------------------------------------------------------------
# Not enough workers: the launcher and one relay.
# ---------------------------------------------------------------------------

my $few = new_node('few', 'max_logical_replication_workers = 0', 'max_worker_processes = 2',
	'log_min_messages = debug1');
$few->start;
$few->safe_psql('postgres', 'CREATE DATABASE one');
$few->safe_psql('postgres', 'CREATE DATABASE two');
$few->safe_psql('one', 'CREATE EXTENSION outbox_kafka');
ok(wait_relay($few, 'one'), 'the last worker is used');
is(count_log($few, qr/out of background worker slots/), 0, 'without complaint');
$few->safe_psql('two', 'CREATE EXTENSION outbox_kafka');
$few->wait_for_log(qr/LOG: .*out of background worker slots: cannot start a relay in database "two"/);

$few->wait_for_log(qr/(?:still out of background worker slots.*){2}/s);
is(count_log($few, qr/LOG: .*out of background worker slots/), 1, 'no worker left: one line in the log');
is(count_log($few, qr/HINT: .*increase max_worker_processes/), 1, 'with a hint');
ok(relays($few, 'one'), 'the other relay is not affected');
$few->safe_psql('one', 'DROP EXTENSION outbox_kafka');
ok(wait_relay($few, 'two'), 'a relay as soon as there is a worker');
$few->stop;

# ---------------------------------------------------------------------------
# max_databases
# ---------------------------------------------------------------------------

my $limited = new_node('limited', 'outbox_kafka.max_databases = 1');
$limited->start;
$limited->safe_psql('postgres', 'CREATE DATABASE one');
$limited->safe_psql('one', 'CREATE EXTENSION outbox_kafka');
ok(wait_relay($limited, 'one'), 'max_databases = 1: one relay');
$limited->safe_psql('postgres', 'CREATE DATABASE two');
$limited->safe_psql('postgres', 'CREATE DATABASE three');
$limited->safe_psql('two', 'CREATE EXTENSION outbox_kafka');
$limited->wait_for_log(qr/LOG: .*no relay can be started for database "two"/);
ok(wait_no_relay($limited, 'two'), 'and not another one');
is(count_log($limited, qr/HINT: .*increase outbox_kafka.max_databases/),
	1, 'one line with a hint, none for a database that needs no relay');
$limited->safe_psql('one', 'DROP EXTENSION outbox_kafka');
ok(wait_relay($limited, 'two'), 'the place is passed on');
$limited->safe_psql('postgres', 'DROP DATABASE two');
$limited->safe_psql('one', 'CREATE EXTENSION outbox_kafka');
ok(wait_relay($limited, 'one'), 'a dropped database gives its place back');
$limited->stop;

# ---------------------------------------------------------------------------
# Standby
# ---------------------------------------------------------------------------

my $primary = new_node('primary');
$primary->start;
$primary->safe_psql('postgres', 'CREATE EXTENSION outbox_kafka');
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby);
is( $standby->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox_kafka%'"),
	0, 'nothing runs on a standby');
$primary->stop;
$standby->promote;
ok(wait_relay($standby, 'postgres'), 'the relay starts at promotion');
$standby->stop;

# ---------------------------------------------------------------------------
# Not preloaded
# ---------------------------------------------------------------------------

my $bare = PostgreSQL::Test::Cluster->new('bare');
$bare->init;
$bare->append_conf('postgresql.conf', 'max_prepared_transactions = 5');
$bare->start;
($rc, undef, $err) = $bare->psql('postgres', 'CREATE EXTENSION outbox_kafka');
is($rc, 0, 'not preloaded: CREATE EXTENSION works');
like($err, qr/WARNING: .*outbox_kafka is not in shared_preload_libraries/, 'and warns');
$bare->safe_psql('postgres', "ALTER DATABASE postgres SET outbox_kafka.source = '/x'");
$bare->safe_psql('postgres', "SELECT outbox.publish('t', 'x'::text)");
$bare->safe_psql('postgres',
	"BEGIN; SELECT outbox.publish('t', 'x'::text); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'");
is( $bare->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox_kafka%'"),
	0, 'no worker runs');
$bare->safe_psql('postgres', 'DROP EXTENSION outbox_kafka');
$bare->stop;

done_testing();
