
# Transactions that published and stay open for a minute delay nobody else: one
# in the database itself, one in another database of the server, one prepared,
# and one that only holds an old snapshot and an xid. Messages published
# meanwhile arrive at once in both databases, the open ones arrive when they
# commit, and only then.
#
# OUTBOX_HOLD_SECONDS changes the minute.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::Kafka;

my $hold = $ENV{OUTBOX_HOLD_SECONDS} // 60;
my $prompt = 1.5;    # seconds from commit to arrival, on a busy machine
$PostgreSQL::Test::Utils::timeout_default += $hold;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_node('long', kafka => $kafka);
for my $database (qw(a b))
{
	new_database($node, $database);
	$kafka->create_topic("pace_$database", 3);
}
$kafka->create_topic('warm', 1);

# Start to publish and to measure in a database.
sub start_pace
{
	my ($database) = @_;
	my %pace = (database => $database, output => '', error => '');
	$pace{run} = IPC::Run::start(
		[
			'/usr/bin/python3', "$FindBin::RealBin/../ledger/latency.py",
			'--conninfo', $node->connstr($database),
			'--brokers', $kafka->bootstrap,
			'--topic', "pace_$database",
			'--seconds', $hold
		],
		'<', \undef,
		'>', \$pace{output},
		'2>', \$pace{error});
	return \%pace;
}

sub finish_pace
{
	my ($pace) = @_;
	my $ok = $pace->{run}->finish;
	my $name = "database $pace->{database}";
	diag("$name: $pace->{output}$pace->{error}");
	my $seen = decode_json($pace->{output});
	ok($ok, "$name: all that was published meanwhile arrived");
	cmp_ok($seen->{published}, '>=', $hold * 5, "$name: messages all the time");
	is($seen->{arrived}, $seen->{published}, "$name: as many as published");
	is($seen->{others}, 0, "$name: nothing of the open transactions");
	cmp_ok($seen->{delay_max}, '<', $prompt,
		"$name: each within $prompt s of its commit");
	cmp_ok($seen->{delay_p50}, '<', 0.1, "$name: half of them within 0.1 s");
	return;
}

# One message through each relay first: what is measured is not the start.
wait_published($node, $_, publish($node, $_, "'warm', 'x'::text"))
  for qw(a b);

# The open transactions.
my %id;
my %session;
for my $database (qw(a b))
{
	$session{$database} = $node->background_psql($database);
	$session{$database}->query_safe('BEGIN');
	$id{$database} = $session{$database}->query_safe(
		"SELECT outbox.publish('pace_$database', 'held'::text, 'held')");
}
$id{prepared} = $node->safe_psql(
	'a', q{
	BEGIN;
	SELECT outbox.publish('pace_a', 'prepared'::text, 'held');
	PREPARE TRANSACTION 'long';});
my $old = $node->background_psql('a');
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$old->query_safe('SELECT pg_current_xact_id()');

my %before = map { $_ => $kafka->message_count("pace_$_") } qw(a b);
is_deeply(\%before, { a => 0, b => 0 }, 'nothing of them is sent');

my $began = time;
my @paces = map { start_pace($_) } qw(a b);
finish_pace($_) for @paces;
cmp_ok(time - $began, '>=', $hold, "they were open for $hold s");

for my $database (qw(a b))
{
	is($node->safe_psql($database, 'SELECT count(*) FROM outbox.pending'),
		'0', "database $database: nothing is pending");
}

# Now they commit, one after the other.
sub arrives
{
	my ($what, $database, $event, $commit) = @_;
	my $topic = "pace_$database";
	is((grep { $_->{header}{ce_id} eq $event } $kafka->consume($topic)),
		0, "$what: not in Kafka before it commits");
	my $count = $kafka->message_count($topic);
	my $committed = time;
	$commit->();
	$kafka->wait_messages($topic, $count + 1, 10);
	my $took = time - $committed;
	cmp_ok($took, '<', 1 + $prompt, sprintf "%s: arrives %.2f s after COMMIT",
		$what, $took);
	is((grep { $_->{header}{ce_id} eq $event } $kafka->consume($topic)),
		1, "$what: it is that one, once");
	return;
}

arrives('in another database', 'b', $id{b},
	sub { $session{b}->query_safe('COMMIT') });
arrives('in this database', 'a', $id{a},
	sub { $session{a}->query_safe('COMMIT') });
arrives('prepared', 'a', $id{prepared},
	sub { $node->safe_psql('a', "COMMIT PREPARED 'long'") });

# The one with the oldest xid publishes last, after all the others committed.
$id{old} = $old->query_safe(
	"SELECT outbox.publish('pace_a', 'late'::text, 'held')");
arrives('an old xid', 'a', $id{old}, sub { $old->query_safe('COMMIT') });

$_->quit for values %session, $old;
$node->stop;
done_testing();
