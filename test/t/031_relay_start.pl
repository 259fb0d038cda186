
# The start of a relay, interrupted at every step: what it needs is locked by
# somebody else, it is terminated or killed there or at any moment, its extension
# goes away under it. Nothing is lost or sent twice, what was committed before
# comes first, DDL and shutdown do not wait for it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(time usleep);

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;
use PostgreSQL::Test::Utils;

my $RELAY = "backend_type = 'outbox_kafka relay' AND datname = 'a'";

# Longer than a relay waits for a lock, and less than what DROP DATABASE does.
my $AT_ONCE = 4.5;

my $broker = OutboxTest::MockBroker->new(topics => { orders => 1 });
my $node = new_node('start', kafka => $broker, conf => { 'restart_after_crash' => 'on' });
new_database($node, 'a');

my $number = 0;

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

# What goes on is looked at from another database: in this one catalogs are locked.
sub look
{
	my ($query) = @_;
	return $node->safe_psql('postgres', $query);
}

sub publish_next
{
	$number++;
	sql("SELECT outbox.publish('orders', '$number'::text, 'k')");
	return;
}

# The pid of a relay of the database other than the one given, however far it is.
sub wait_relay
{
	my ($not) = @_;
	return wait_until('a relay starts', sub { look("SELECT max(pid) FROM pg_stat_activity WHERE $RELAY AND pid <> $not") });
}

# End it by a signal that is sent at once; how long that took.
sub end_process
{
	my ($pid, $signal) = @_;
	my $begin = time;
	kill $signal, $pid;
	wait_until("process $pid has ended", sub { !kill 0, $pid });
	return time - $begin;
}

# How many relays have ended with an error so far.
sub failures
{
	my $count = () = slurp_file($node->logfile) =~ /"outbox_kafka relay[^"]*" \(PID \d+\) exited with exit code 1/g;
	return $count;
}

sub payloads
{
	return map { $_->{payload} } OutboxTest::Kcat::consume($broker->bootstrap, 'orders');
}

# All numbers have come, first arrivals are in order.
sub check_arrivals
{
	my ($repeated, $name) = @_;
	my %seen;
	my @arrived = payloads();
	is(join(' ', grep { !$seen{$_}++ } @arrived), join(' ', 1 .. $number), $name);
	cmp_ok(scalar(@arrived) - $number, '<=', $repeated, "... $repeated repeated at most");
	return;
}

publish_next();
wait_delivered($node, 'a');

# ---------------------------------------------------------------------------
# What the start needs is locked by somebody else
# ---------------------------------------------------------------------------

my $leaf = sql('SELECT min(inhrelid)::regclass FROM pg_inherits WHERE inhparent = $$outbox.message$$::regclass');
my @tables = (qw(pg_catalog.pg_extension outbox.message outbox.segment outbox.relay_state outbox.relay_position
	outbox.relay_control outbox.parked_message outbox.held_lane), $leaf);
my $may_repeat = 0;
for my $table (@tables)
{
	publish_next();
	my $pid = wait_relay(0);
	my $holder = $node->background_psql('a', on_error_stop => 1);
	$holder->query_safe("BEGIN; LOCK TABLE $table IN ACCESS EXCLUSIVE MODE");
	my $took = end_process($pid, 'TERM');

	# The next one waits, or does without for now; or it has failed at once.
	my $next = 0;
	my $failed = failures();
	wait_until('another relay meets the lock', sub {
		$next = look("SELECT max(pid) FROM pg_stat_activity WHERE $RELAY AND pid <> $pid
			AND (wait_event_type = 'Lock' OR state IS NOT NULL)");
		return $next || failures() > $failed;
	});
	my $end = $next ? end_process($next, 'TERM') : 0;
	$holder->quit;
	wait_delivered($node, 'a', 60);
	cmp_ok($took + $end, '<', $AT_ONCE, "$table locked: relays end at once");

	# a relay whose progress is locked cannot say what it has sent
	$may_repeat++ if $table =~ /relay_(?:state|position)$/;
	check_arrivals($may_repeat, '... and after it all is there, in order');
}

# The same at a shutdown.
publish_next();
my $pid = wait_relay(0);
my $holder = $node->background_psql('a', on_error_stop => 1);
$holder->query_safe('BEGIN; LOCK TABLE pg_catalog.pg_extension IN ACCESS EXCLUSIVE MODE');
end_process($pid, 'TERM');
wait_relay($pid);
my $begin = time;
$node->stop('fast');
cmp_ok(time - $begin, '<', 5, 'pg_ctl stop -m fast while a relay waits for a catalog');
$holder->{run}->kill_kill;
$node->start;
wait_delivered($node, 'a', 60);
check_arrivals($may_repeat, 'nothing was lost');

# ---------------------------------------------------------------------------
# At any moment
# ---------------------------------------------------------------------------

my $kills = 0;
for my $round (0 .. 15)
{
	publish_next();
	$pid = wait_relay(0);
	end_process($pid, 'TERM');
	my $next = wait_relay($pid);
	usleep($round * 4000);
	my $signal = $round % 4 == 3 ? 'KILL' : 'TERM';
	$kills++ if $signal eq 'KILL';
	end_process($next, $signal);
	$node->poll_query_until('postgres', 'SELECT true');
}
wait_delivered($node, 'a', 120);
check_arrivals($may_repeat + 2 * $kills, 'ended at any moment of its start, 16 times: all is there, in order');

# ---------------------------------------------------------------------------
# The extension goes away under it
# ---------------------------------------------------------------------------

my $slowest = 0;
for my $round (0 .. 9)
{
	look('CREATE DATABASE b');
	$node->safe_psql('b', 'CREATE EXTENSION outbox_kafka');
	usleep($round * 4000);
	$begin = time;
	$node->safe_psql('b', 'DROP EXTENSION outbox_kafka');
	look('DROP DATABASE b');
	$slowest = time - $begin if time - $begin > $slowest;
}
cmp_ok($slowest, '<', $AT_ONCE, 'DROP EXTENSION and DROP DATABASE at any moment of a start, ten times: at once');
publish_next();
wait_delivered($node, 'a', 60);
is(look("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox_kafka relay'"), 1, 'one relay is left, and works');

my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP|terminated by signal (?!9:)/, 'no process died of itself');
$node->stop;
done_testing();
