
# P2 and P8 together: database A, Kafka, database B, with both servers, their
# workers and the broker killed at random. What B has added up equals A's ledger
# exactly, for each account: with Kafka transactions on A's side (exactly_once),
# and without them (at_least_once) if B passes over event ids it has seen.
#
# A third subscription reads the messages of at_least_once without passing over
# anything. Whatever Kafka holds twice it has added twice: that is what the
# comparison would find, and how much there was is noted.
#
# OUTBOX_SECONDS is how long there are faults.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use List::Util qw(shuffle);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use OutboxTest;
use OutboxTest::Inbox;
use OutboxTest::Kafka;

my $seconds = $ENV{OUTBOX_SECONDS} // 12;
my $seed = $ENV{OUTBOX_SEED} // int(rand(1000000));
srand $seed;
note("OUTBOX_SEED=$seed");

my %delivery = (exact => 'exactly_once', least => 'at_least_once');
my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 3) for sort keys %delivery;

# What was sent and is not known to have arrived is repeated: progress that
# nobody flushes makes for many of those.
my %conf = (
	'restart_after_crash' => 'on',
	'wal_writer_delay' => '10s');
my $sender = new_node('sender', kafka => $kafka, conf => \%conf);
my $receiver = new_node('receiver', kafka => $kafka, conf => \%conf);

for my $name (sort keys %delivery)
{
	$sender->safe_psql('postgres', qq{CREATE DATABASE "$name"});
	$sender->safe_psql('postgres', qq{ALTER DATABASE "$name" SET outbox_kafka.delivery = '$delivery{$name}'});
	$sender->safe_psql($name, 'CREATE EXTENSION outbox_kafka');
	$sender->safe_psql($name, qq{
		CREATE TABLE ledger (account int, amount bigint);
		CREATE FUNCTION book(n int) RETURNS void LANGUAGE sql AS \$\$
			WITH entry AS (
				INSERT INTO ledger SELECT 1 + random() * 19, random() * 1000 FROM generate_series(1, n)
				RETURNING account, amount)
			SELECT count(outbox.publish('$name', jsonb_build_object('account', account, 'amount', amount), account::text))
			FROM entry
		\$\$;
		CREATE PROCEDURE load(transactions int) LANGUAGE plpgsql AS \$\$
		BEGIN
			FOR i IN 1 .. transactions LOOP
				PERFORM book(1 + i % 12);
				IF i % 9 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
				PERFORM pg_sleep(0.004);
			END LOOP;
		END \$\$});
}

new_database($receiver, 'b');
my %subscriptions = (exact => [ 'exact', 'NULL' ], least => [ 'least', q{'1 day'} ], twice => [ 'least', 'NULL' ]);
for my $name (sort keys %subscriptions)
{
	my ($topic, $window) = @{ $subscriptions{$name} };
	$receiver->safe_psql('b', qq{
		CREATE TABLE $name (account int PRIMARY KEY, total bigint NOT NULL, entries bigint NOT NULL);
		CREATE FUNCTION add_$name(m inbox.message) RETURNS void LANGUAGE sql AS \$\$
			INSERT INTO $name AS t
			SELECT (p ->> 'account')::int, (p ->> 'amount')::bigint, 1 FROM inbox.payload_json(m) AS p
			ON CONFLICT (account) DO UPDATE SET total = t.total + excluded.total, entries = t.entries + 1
		\$\$;
		SELECT inbox.subscribe('$name', '{$topic}', 'add_$name', dedupe_window => $window, batch_size => 200,
			workers => 2, retry_backoff => '50 ms')});
}

# Publish until the parent ends it; through crashes.
sub start_load
{
	my ($database) = @_;
	my $pid = fork // die "could not fork: $!";
	return $pid if $pid;
	open(STDERR, '>', '/dev/null');
	while (getppid() != 1)
	{
		try_sql($sender, $database, 'CALL load(5000)');
		sleep 0.1;
	}
	POSIX::_exit(0);
}

# A process that a statement tells, if there is one now.
sub process_of
{
	my ($node, $database, $sql) = @_;
	my $pid = try_sql($node, $database, $sql) // '';
	return $pid =~ /^\d+$/ ? $pid : 0;
}

sub a_relay
{
	my $name = (sort keys %delivery)[ rand 2 ];
	return process_of($sender, $name, 'SELECT coalesce(max(pid), 0) FROM outbox.relay_status');
}

sub an_inbox_worker
{
	return process_of($receiver, 'b', 'SELECT coalesce((SELECT pid FROM inbox.workers WHERE pid IS NOT NULL ORDER BY random() LIMIT 1), 0)');
}

sub signal
{
	my ($signal, $pid) = @_;
	kill $signal, $pid if $pid > 0;
	return;
}

sub crash
{
	my ($node) = @_;
	$node->stop('immediate');
	sleep rand(0.3);
	$node->start;
	return;
}

my %faults = (
	'kill relay' => sub { signal('KILL', a_relay()) },
	'end relay' => sub { signal('TERM', a_relay()) },
	'kill inbox worker' => sub { signal('KILL', an_inbox_worker()) },
	'end inbox worker' => sub { signal('TERM', an_inbox_worker()) },
	'crash sender' => sub { crash($sender) },
	'crash receiver' => sub { crash($receiver) },
	'kill broker' => sub { $kafka->kill9(1); sleep rand(0.5); $kafka->start_node(1) });

my @loads = map { start_load($_) } sort keys %delivery;
my $end = time + $seconds;
my %count = map { $_ => 0 } keys %faults;
my @left;

# each once, in any order, then any
while (time < $end || @left)
{
	@left = shuffle sort keys %faults if !@left;
	my $fault = shift @left;
	sleep 0.5 + rand(1);
	$faults{$fault}->();
	$count{$fault}++;
}
for my $pid (@loads)
{
	kill 'TERM', $pid;
	waitpid $pid, 0;
}
for my $name (sort keys %delivery)
{
	wait_until("nobody writes to $name", sub {
		(try_sql($sender, $name, q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'CALL load%'}) // '') eq '0'; }, 60);
}
note(join ', ', map { "$_: $count{$_}" } sort keys %count);

wait_until("all of $_ is sent", sub { insist_sql($sender, $_, 'SELECT NOT EXISTS (SELECT FROM outbox.pending)') eq 't' }, 120)
  for sort keys %delivery;
for my $name (sort keys %subscriptions)
{
	my $topic = $subscriptions{$name}[0];
	my $ends = $kafka->message_count($topic);
	wait_until("$name has read all", sub {
		insist_sql($receiver, 'b', qq{
			SELECT count(*) = 3 AND bool_and(state = 'running' AND lag = 0) AND sum(position) = $ends
			FROM inbox.subscription_status WHERE name = '$name'}) eq 't' }, 120,
		sub { "$ends in Kafka\n" . inbox_describe($receiver, 'b') });
}

my %ledger = map { $_ => insist_sql($sender, $_, 'SELECT account, sum(amount), count(*) FROM ledger GROUP BY 1 ORDER BY 1') } keys %delivery;
my %entries = map { $_ => insist_sql($sender, $_, 'SELECT count(*) FROM ledger') } keys %delivery;
is(insist_sql($receiver, 'b', 'SELECT * FROM exact ORDER BY 1'), $ledger{exact},
	"exactly_once: $entries{exact} entries have taken effect once");
is(insist_sql($receiver, 'b', 'SELECT * FROM least ORDER BY 1'), $ledger{least},
	"at_least_once and dedupe: $entries{least} entries have taken effect once");

my $twice = insist_sql($receiver, 'b', 'SELECT sum(entries) FROM twice');
is($twice, scalar(my @all = $kafka->consume('least')), "without dedupe all that Kafka has takes effect, $twice entries");
note($twice - $entries{least} . ' of them twice');
is(insist_sql($receiver, 'b', 'SELECT count(*) FROM inbox.dead_letters'), 0, 'none was given up');
done_testing();
