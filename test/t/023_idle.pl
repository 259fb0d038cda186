
# A server with nothing to publish: for a minute the extension writes no WAL,
# runs no query, holds no snapshot and uses next to no processor time. And the
# postmaster has one thread, whatever librdkafka does in the workers.
#
# What the server itself writes while idle (a snapshot of running transactions
# after something happened, a checkpoint) is told apart by pg_waldump: every
# record of that time is looked at.
#
# OUTBOX_IDLE_SECONDS changes the minute.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Utils;
use IPC::Run;
use POSIX qw(sysconf _SC_CLK_TCK);
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $idle = $ENV{OUTBOX_IDLE_SECONDS} // 60;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('idle', 3);
my $node = new_node(
	'idle',
	kafka => $kafka,
	conf => {
		'wal_level' => 'replica',
		'autovacuum' => 'off',
		'checkpoint_timeout' => '1h',
		'track_activities' => 'on'
	});
new_database($node, $_) for qw(a b);
$node->safe_psql('postgres', 'CREATE DATABASE without');

# Work first: an idle relay has sent something, and its client is connected.
for my $database (qw(a b))
{
	$node->safe_psql($database,
		q{SELECT outbox.publish('idle', 'x'::text, i::text)
		  FROM generate_series(1, 1000) AS i});
	wait_delivered($node, $database);
	wait_state($node, $database, 'idle');
}
cmp_ok($kafka->message_count('idle'), '==', 2000, 'the relays have worked');

my $tick = sysconf(_SC_CLK_TCK);

# Seconds of processor time of a process, of all its threads.
sub cpu_seconds
{
	my ($pid) = @_;
	my ($text) = slurp_file("/proc/$pid/stat") =~ /.*\) (.*)/s;
	my @field = split / /, $text;
	return ($field[11] + $field[12]) / $tick;
}

sub threads
{
	my ($pid) = @_;
	return scalar(() = glob "/proc/$pid/task/*");
}

sub workers
{
	my %pid;
	for my $line (split /\n/, $node->safe_psql(
			'postgres',
			q{SELECT coalesce(backend_type || ' ' || datname, backend_type), pid
			  FROM pg_stat_activity WHERE backend_type LIKE 'outbox_kafka%'}))
	{
		my ($name, $pid) = split /\|/, $line;
		$pid{$name} = $pid;
	}
	return \%pid;
}

# What the databases of the extension have done so far. The test itself is
# connected to postgres only.
my $activity = q{
	SELECT datname, xact_commit + xact_rollback, tup_returned + tup_fetched,
		   blks_read + blks_hit
	FROM pg_stat_database WHERE datname IN ('a', 'b', 'without') ORDER BY 1};

# The relays report their statistics when they fall idle, the last of them up to
# ten seconds later (PGSTAT_IDLE_INTERVAL); the retention of what they sent is
# looked at later, too: wait until the figures stand still.
$node->safe_psql('postgres', 'CHECKPOINT');
my ($last, $since) = ('', time);
wait_until(
	'the activity has settled',
	sub {
		my $now = $node->safe_psql('postgres',
			'SELECT pg_current_wal_insert_lsn()')
		  . $node->safe_psql('postgres', $activity);
		($last, $since) = ($now, time) if $now ne $last;
		return time - $since > 12;
	});

my $workers = workers();
is_deeply(
	[ sort keys %$workers ],
	[
		'outbox_kafka launcher',
		'outbox_kafka relay a', 'outbox_kafka relay b'
	],
	'a launcher and two relays run');
my $before = $node->safe_psql('postgres', $activity);
my $lsn = $node->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
my %cpu = map { $_ => cpu_seconds($workers->{$_}) } keys %$workers;
my %asleep = map { $_ => switches($workers->{$_}) } keys %$workers;

# How often the process's main thread gave up the processor: its wake-ups.
sub switches
{
	my ($pid) = @_;
	my ($count) = slurp_file("/proc/$pid/task/$pid/status") =~
	  /^voluntary_ctxt_switches:\s*(\d+)/m;
	return $count;
}

# Looking once a second, not touching a or b.
my $end = time + $idle;
my %seen;
while (time < $end)
{
	for my $line (split /\n/, $node->safe_psql(
			'postgres',
			q{SELECT coalesce(backend_type || ' ' || datname, backend_type),
				state, backend_xmin, backend_xid, xact_start
			  FROM pg_stat_activity WHERE backend_type LIKE 'outbox_kafka%'}))
	{
		my ($name, $state, @open) = split /\|/, $line, -1;
		$seen{looks}++;
		$seen{"$name: state $state"}++ if $state !~ /^(?:idle)?$/;
		$seen{"$name: a transaction is open"}++ if grep { $_ ne '' } @open;
	}
	sleep 1;
}
my $looks = delete $seen{looks};
cmp_ok($looks, '>=', 3 * int($idle / 2), 'the workers were looked at');
is_deeply(\%seen, {}, 'no transaction, no snapshot, no xid, no query');

my %spent = map { $_ => cpu_seconds($workers->{$_}) - $cpu{$_} } keys %cpu;
my %woken = map { $_ => switches($workers->{$_}) - $asleep{$_} } keys %cpu;
is_deeply(workers(), $workers, 'the same processes run');
for my $name (sort keys %spent)
{
	diag(sprintf '%s: %.2f s of processor time in %d s, %d wake-ups',
		$name, $spent{$name}, $idle, $woken{$name});
	# librdkafka's own threads tick; the worker itself sleeps.
	cmp_ok($spent{$name}, '<=', 0.005 * $idle,
		"$name: at most half a percent of a processor");
	cmp_ok($woken{$name}, '<=', 2 + $idle / 30,
		"$name: it sleeps on");
}

# One look is allowed to each relay in all: a minute after the last xid was
# drawn (by the other relay's progress, say) it makes sure that it has missed
# nothing. Beyond that, no transaction, no row and no page.
my ($was, $is) = map {
	my %of = map { my ($name, @counts) = split /\|/; $name => \@counts }
	  split /\n/;
	\%of
} $before, $node->safe_psql('postgres', $activity);
for my $database (qw(a b without))
{
	my ($transactions, $rows, $pages) =
	  map { $is->{$database}[$_] - $was->{$database}[$_] } 0 .. 2;
	my $looks = $database eq 'without' ? 0 : 1;
	diag("$database: $transactions transactions, $rows rows, $pages pages");
	cmp_ok($transactions, '<=', $looks, "$database: $looks transactions at most");
	is($rows, 0, "$database: no row was read");
	cmp_ok($pages, '<=', 20 * $transactions, "$database: no other page either");
}

# Every WAL record of that time, by what wrote it.
my $until = $node->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
my %records;
if ($until ne $lsn)
{
	my ($output, $error);
	IPC::Run::run(
		[
			'pg_waldump', '--path', $node->data_dir . '/pg_wal',
			'--start', $lsn, '--end', $until
		],
		'>', \$output,
		'2>', \$error);
	for my $line (split /\n/, $output)
	{
		my ($manager, $kind) = $line =~ /^rmgr: (\S+).* desc: (\S+)/ or next;
		$records{"$manager $kind"}++;
	}
	cmp_ok(scalar keys %records, '>', 0, 'pg_waldump read what was written')
	  or diag($error);
	diag("WAL: $_ x $records{$_}") for sort keys %records;
}
else
{
	diag("WAL: none, the insert position stays at $lsn");
}
delete $records{'Standby RUNNING_XACTS'};    # the background writer's
is_deeply(\%records, {}, 'no WAL but the background writer\'s own');

# Threads: librdkafka's live in the relays alone.
my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
is(threads($postmaster), 1, 'the postmaster has one thread');
is(threads($workers->{'outbox_kafka launcher'}),
	1, 'the launcher has one thread');
cmp_ok(threads($workers->{"outbox_kafka relay $_"}),
	'>', 1, "the relay of $_ has librdkafka's threads")
  for qw(a b);

# And it is awake at once.
my $began = time;
wait_published($node, 'a', publish($node, 'a', q{'idle', 'awake'::text}));
cmp_ok(time - $began, '<', 10, 'an idle relay sends at once');

$node->stop;
done_testing();
