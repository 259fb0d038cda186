
# outbox_kafka.wait_for_standby: nothing is sent before the synchronous standby
# has it on disk, whatever the publisher does (asynchronous commits, a wait for
# the standby that is cancelled), so that a promotion takes back nothing that
# Kafka has. Without a standby messages wait, and the status says for what.
# Then promotion under load: the relay goes on there, nothing is lost, each
# key's order stays, and what is repeated is bounded.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $max_in_flight = 200;
my $broker = OutboxTest::MockBroker->new(topics => { events => 1, load => 3 });
my %frozen;

# Sessions have to see who waits for the standby: no timeouts of the stream.
my $first = new_node(
	'first',
	kafka => $broker,
	init => { allows_streaming => 1 },
	conf => {
		'wal_sender_timeout' => '0',
		'wal_receiver_timeout' => '0',
		'outbox_kafka.max_in_flight' => $max_in_flight,
		'outbox_kafka.wait_for_standby' => 'on'
	});
new_database($first, 'a');

sub configure
{
	my ($node, %conf) = @_;
	$node->append_conf('postgresql.conf', "$_ = '$conf{$_}'") for sort keys %conf;
	$node->reload;
	return;
}

# A standby of a node, as its synchronous one.
sub add_standby
{
	my ($node, $name, $before_start) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$node->backup($name);
	$standby->init_from_backup($node, $name, has_streaming => 1);
	$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''");
	configure($node, synchronous_standby_names => $name);
	$before_start->() if $before_start;
	$standby->start;
	wait_until("$name is synchronous",
		sub { $node->safe_psql('postgres', 'SELECT sync_state FROM pg_stat_replication') eq 'sync' });
	return $standby;
}

# Keep the WAL from going to the standby, and let it go on.
sub freeze
{
	my ($node) = @_;
	my $pid = $node->safe_psql('postgres', 'SELECT pid FROM pg_stat_replication');
	kill('STOP', $pid) == 1 or die "could not stop process $pid";
	$frozen{ $node->name } = $pid;
	return;
}

sub thaw
{
	my ($node) = @_;
	kill 'CONT', delete $frozen{ $node->name };
	return;
}

# The machine of the node is gone.
sub lose
{
	my ($node) = @_;
	$node->kill9;
	my $pid = delete $frozen{ $node->name };
	kill 'KILL', $pid if $pid;
	return;
}

sub arrived
{
	my ($topic) = @_;
	return OutboxTest::Kcat::consume($broker->bootstrap, $topic);
}

# Begin a commit that waits for the standby; the session is the second result.
sub start_publisher
{
	my ($node, $payload) = @_;
	my $publisher = { out => '', err => '' };
	$publisher->{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('a'),
			'-c', "SELECT outbox.publish('events', '$payload', 'k')" ],
		'<', \undef, '>', \$publisher->{out}, '2>', \$publisher->{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$publisher->{pid} = wait_until('the publisher waits for the standby',
		sub { $node->safe_psql('a', "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'
									AND query LIKE '%$payload%'") });
	return $publisher;
}

sub cancel
{
	my ($node, $publisher) = @_;
	$node->safe_psql('a', "SELECT pg_cancel_backend($publisher->{pid})");
	$publisher->{run}->finish;
	return;
}

sub publish_async
{
	my ($node, $payload) = @_;
	$node->safe_psql('a', "SET synchronous_commit = off; SELECT outbox.publish('events', '$payload', 'k')");
	return;
}

# The relay has seen something that it must not send yet.
sub is_held
{
	my ($node, $count, $reason, $name) = @_;
	my $row = wait_state($node, 'a', 'waiting for standby');
	wait_until("$name: the status says why",
		sub { (relay_status($node, 'a')->{last_error} // '') =~ $reason }, 10,
		sub { relay_status($node, 'a')->{last_error} });
	is(scalar(my @list = arrived('events')), $count, "$name: not sent");
	return;
}

sub is_sent
{
	my ($node, $expected, $name) = @_;
	wait_delivered($node, 'a');
	is_deeply([ map { $_->{payload} } arrived('events') ], $expected, "$name: sent");
	is(wait_state($node, 'a', 'idle')->{state}, 'idle', "$name: the relay is idle");
	return;
}

# ---------------------------------------------------------------------------
# No standby is configured; then none is connected; then one comes.
# ---------------------------------------------------------------------------

publish($first, 'a', q{'events', 'alone', 'k'});
is_held($first, 0, qr/synchronous_standby_names is empty/, 'none configured');
ok($first->log_contains(qr/WARNING:.*waiting for a synchronous standby/),
	'none configured: the log says so');
my $second = add_standby($first, 'second', sub {
	is_held($first, 0, qr/0 of 1 synchronous standbys are connected/, 'none connected');
});
my @expected = ('alone');
is_sent($first, \@expected, 'standby has come');

publish($first, 'a', q{'events', 'sync', 'k'});
publish_async($first, 'async');
push @expected, 'sync', 'async';
is_sent($first, \@expected, 'standby connected');

# ---------------------------------------------------------------------------
# The standby stops: neither an asynchronous commit nor one whose publisher
# gave up waiting is sent; both are when it is back.
# ---------------------------------------------------------------------------

# First the one that gave up, alone: where the commit log knows of asynchronous
# commits among its neighbours, it has a position for all of them.
$first->safe_psql('a', 'CREATE TABLE burnt (i int)');
freeze($first);
$first->safe_psql('a', q{
	SET synchronous_commit = local;
	DO $$ BEGIN FOR i IN 1 .. 100 LOOP INSERT INTO burnt VALUES (i); COMMIT; END LOOP; END $$});
my $publisher = start_publisher($first, 'cancelled');
cancel($first, $publisher);
like($publisher->{err}, qr/canceling wait for synchronous replication/,
	'cancelled wait: the publisher was told');
is_held($first, 3, qr/has not flushed the WAL up to/, 'cancelled wait');
publish_async($first, 'async behind');
is($first->safe_psql('a', 'SELECT count(*) FROM outbox.pending'),
	2, 'asynchronous commit: the message is visible');
is_held($first, 3, qr/has not flushed the WAL up to/, 'asynchronous commit');

# The relay holds no snapshot while it waits.
is($first->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'outbox_kafka relay' AND backend_xmin IS NOT NULL"),
	0, 'no snapshot is held');
my $waiting = start_publisher($first, 'waiting');
thaw($first);
$waiting->{run}->finish;
push @expected, 'cancelled', 'async behind', 'waiting';
is_sent($first, \@expected, 'standby back');

# Released messages go the same way.
$first->safe_psql('a', "INSERT INTO outbox.message (xid, id, event_id, topic, key, payload, created_at)
	VALUES ('1', 1000, gen_random_uuid(), 'events', 'r', 'restored', now())");
wait_until('the standby has it', sub { $first->safe_psql('postgres',
	'SELECT flush_lsn >= pg_current_wal_insert_lsn() FROM pg_stat_replication') eq 't' });
freeze($first);
$first->safe_psql('a', "SET synchronous_commit = off; SELECT outbox.adopt()");
is_held($first, 6, qr/has not flushed the WAL up to/, 'released message');
thaw($first);
wait_until('nothing is parked',
	sub { $first->safe_psql('a', 'SELECT count(*) FROM outbox.parked') == 0 });
push @expected, 'restored';
is_sent($first, \@expected, 'released message');

# A held lane has a cursor of its own, which waits as well.
$first->safe_psql('a', "SELECT outbox.pause('events')");
wait_until('the topic is held',
	sub { $first->safe_psql('a', 'SELECT count(*) FROM outbox.held_lanes') == 1 });
publish($first, 'a', q{'events', 'lane 1', 'k'});
wait_until('the main cursor has passed it', sub { $first->safe_psql('a',
	'SELECT messages_waiting FROM outbox.held_lanes') == 1 });
freeze($first);
publish_async($first, 'lane 2');
$first->safe_psql('a', "SET synchronous_commit = off; SELECT outbox.resume('events')");
wait_state($first, 'a', 'waiting for standby');
is((grep { $_->{payload} eq 'lane 2' } arrived('events')), 0, 'held lane: not sent');
thaw($first);
push @expected, 'lane 1', 'lane 2';
is_sent($first, \@expected, 'held lane');

# Without the setting nothing is waited for, and the other way round.
freeze($first);
configure($first, 'outbox_kafka.wait_for_standby' => 'off');
publish_async($first, 'not awaited');
push @expected, 'not awaited';
wait_until('it is sent without the standby',
	sub { scalar(my @list = arrived('events')) == @expected });
configure($first, 'outbox_kafka.wait_for_standby' => 'on');
thaw($first);
publish_async($first, 'awaited');
push @expected, 'awaited';
is_sent($first, \@expected, 'switched');

# ---------------------------------------------------------------------------
# The first server is lost while messages are only there: Kafka does not have
# them, and has nothing that the promoted one has not.
# ---------------------------------------------------------------------------

freeze($first);
cancel($first, start_publisher($first, 'lost cancelled'));
publish_async($first, 'lost async');
is_held($first, scalar @expected, qr/has not flushed the WAL up to/, 'before the loss');
lose($first);
configure($second, 'outbox_kafka.wait_for_standby' => 'off');
$second->promote;
wait_state($second, 'a', qr/idle|running/);
is($second->safe_psql('a', "SELECT count(*) FROM outbox.message WHERE convert_from(payload, 'UTF8') LIKE 'lost%'"),
	0, 'promoted: it does not have them');
publish($second, 'a', q{'events', 'after', 'k'});
wait_delivered($second, 'a');
my @records = arrived('events');
is((grep { $_->{payload} =~ /^lost/ } @records), 0, 'promoted: nor has Kafka');
my %there = map { $_ => 1 } split /\n/,
  $second->safe_psql('a', 'SELECT event_id FROM outbox.message');
is((grep { !$there{ $_->{header}{ce_id} } && $_->{payload} ne 'restored' } @records),
	0, 'promoted: it has all that Kafka has');
my %seen;
is_deeply([ grep { !$seen{$_}++ } map { $_->{payload} } @records ],
	[ @expected, 'after' ], 'promoted: the relay goes on in order');

# ---------------------------------------------------------------------------
# Promotion under load, against a ledger of event ids: every committed message
# of the promoted server is in Kafka, in the order of its key, and nothing else.
# ---------------------------------------------------------------------------

$second->safe_psql('a', q{
	CREATE TABLE aggregate (key int PRIMARY KEY, version int NOT NULL);
	INSERT INTO aggregate SELECT i, 0 FROM generate_series(1, 20) AS i;
	CREATE TABLE ledger (event_id uuid, key int, version int);
	CREATE FUNCTION act(which int) RETURNS void LANGUAGE sql AS $$
		WITH a AS (UPDATE aggregate SET version = version + 1 WHERE key = which RETURNING key, version)
		INSERT INTO ledger SELECT outbox.publish('load', version::text, key::text), key, version FROM a $$});
my $third = add_standby($second, 'third');
configure($second, 'outbox_kafka.wait_for_standby' => 'on');
my $published = relay_status($second, 'a')->{published};

append_to_file($second->basedir . '/load.sql', q{
	\set k random(1, 20)
	\set mode random(1, 3)
	BEGIN;
	\if :mode = 1
	SET LOCAL synchronous_commit = off;
	\elif :mode = 2
	SET LOCAL synchronous_commit = local;
	\endif
	SELECT act(:k);
	COMMIT;
});
my ($out, $err) = ('', '');
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '4', '-T', '600', '-f', $second->basedir . '/load.sql', $second->connstr('a') ],
	'<', \undef, '>', \$out, '2>', \$err);
wait_until('the relay is well under way',
	sub { relay_status($second, 'a')->{published} > $published + 1000 });
freeze($second);
wait_until('a writer waits for the standby',
	sub { $second->safe_psql('postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") > 0 });
publish_async($second, 'lost with the second');
wait_state($second, 'a', 'waiting for standby');
lose($second);
$load->finish;
like($err, qr/aborted/, 'load: it was cut off');
my $before = scalar(my @list = arrived('load'));

configure($third, 'outbox_kafka.wait_for_standby' => 'off');
$third->promote;
wait_state($third, 'a', qr/idle|running/);
$third->safe_psql('a', 'SELECT act(i) FROM generate_series(1, 20) AS i');
wait_delivered($third, 'a');

my %ledger = map { my @row = split /\|/; ($row[0] => "$row[1] $row[2]") } split /\n/,
  $third->safe_psql('a', 'SELECT event_id, key, version FROM ledger');
my ($extra, $repeated, $disorder, %arrived, %last) = (0, 0, 0);
for my $record (arrived('load'))
{
	my $id = $record->{header}{ce_id};
	if ($arrived{$id}++)
	{
		$repeated++;
		next;
	}
	$extra++ if ($ledger{$id} // '') ne "$record->{key} $record->{payload}";
	$disorder++ if $record->{payload} <= ($last{ $record->{key} } // 0);
	$last{ $record->{key} } = $record->{payload};
}
cmp_ok($before, '>', 1000, 'load: there was one');
is((grep { !$arrived{$_} } keys %ledger), 0, 'load: nothing is lost');
is($extra, 0, 'load: Kafka has nothing that the promoted server has not');
is($disorder, 0, 'load: first arrivals are in order');
cmp_ok($repeated, '<=', 2 * $max_in_flight,
	"load: $repeated repeated, within " . 2 * $max_in_flight);

$third->stop;
done_testing();

END
{
	local $?;
	kill 'CONT', values %frozen;
}
