
# pg_upgrade: what was delivered, pending, parked, held and discarded is so
# afterwards, with grants, pauses and the identity; nothing is sent meanwhile,
# nothing twice afterwards, and the relay goes on by itself.
#
# From this version to itself, or from the one that OUTBOX_OLD_INSTALL names: a
# directory with bin and lib in it, with the extension installed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use File::Find;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my @topics = qw(t held auto);
my $broker = OutboxTest::MockBroker->new(topics => { map { $_ => 2 } @topics }, timeout => 600);

my %conf = (
	'shared_preload_libraries' => 'outbox_kafka',
	'max_worker_processes' => 16,
	'outbox_kafka.bootstrap_servers' => $broker->bootstrap);
# A newer initdb makes checksums by default, and both have to agree.
my %init = (extra => ['--data-checksums']);

sub new_cluster
{
	my ($name, @install) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, @install);
	$node->init(%init);
	$node->append_conf('postgresql.conf', "$_ = '$conf{$_}'") for sort keys %conf;
	return $node;
}

my $old = new_cluster('old', $ENV{OUTBOX_OLD_INSTALL} ? (install_path => $ENV{OUTBOX_OLD_INSTALL}) : ());
$old->start;
diag('from ' . $old->safe_psql('postgres', 'SHOW server_version'));

sub publish_numbers
{
	my ($database, $topic, $from, $to) = @_;
	$old->safe_psql($database, "SELECT outbox.publish('$topic', i::text, key => 'k' || i % 3) FROM generate_series($from, $to) AS i");
	return;
}

# The payloads of a topic in the order of arrival, which has to be that of the
# numbers within each key.
sub arrived
{
	my ($topic, $name) = @_;
	my (%last, @payloads);
	my $misordered = 0;
	for my $record (OutboxTest::Kcat::consume($broker->bootstrap, $topic))
	{
		$misordered++ if $record->{payload} <= ($last{ $record->{key} } // 0);
		$last{ $record->{key} } = $record->{payload};
		push @payloads, $record->{payload};
	}
	is($misordered, 0, "$name: in order, none twice");
	return [ sort { $a <=> $b } @payloads ];
}

# Everything that there is to know of the messages and who may do what.
sub picture
{
	my ($node, $database) = @_;
	return join "\n", map { $node->safe_psql($database, $_) } (
		'SELECT id, event_id, topic, status, created_at FROM outbox.message_status ORDER BY id',
		'SELECT xid, id, event_id, topic, key, payload, headers, partition, correlation_id, segment FROM outbox.message ORDER BY id',
		'SELECT id, event_id, topic, reason, error, attempts FROM outbox.parked ORDER BY id',
		'SELECT topic, partition, since, reason, error FROM outbox.held_lanes ORDER BY topic',
		'SELECT id, event_id, topic FROM outbox.pending ORDER BY id',
		'SELECT * FROM outbox.discarded_message ORDER BY id',
		'SELECT cursor_id, done, done_next_xid, tail_id, position FROM outbox.relay_state JOIN outbox.relay_position USING (cursor_id) ORDER BY 1',
		'SELECT topic FROM outbox.relay_control ORDER BY 1',
		'SELECT * FROM outbox.publish_grant ORDER BY 1',
		'SELECT segment, is_current FROM outbox.segment ORDER BY 1',
		'SELECT outbox.identity()', 'SELECT last_value, is_called FROM outbox.message_id',
		q{SELECT count(*) FROM outbox.message WHERE outbox.is_delivered(xid, id, topic, key, partition)});
}

# ---------------------------------------------------------------------------
# a: paused, with something of everything. b: its broker is away.
# ---------------------------------------------------------------------------

$old->safe_psql('postgres', 'CREATE ROLE app LOGIN');
new_database($old, $_) for qw(a b);
$old->safe_psql('a', q{SELECT outbox.grant_publish('app', '{t,held}')});
publish_numbers('a', 't', 1, 100);
publish_numbers('a', 'held', 1, 20);
publish_numbers('b', 'auto', 1, 50);
wait_delivered($old, $_) for qw(a b);

# one that is refused, for there is no such partition, and one behind it
$old->safe_psql('a', q{SELECT outbox.publish('t', '0', key => 'refused', partition => 7)});
$old->safe_psql('a', q{SELECT outbox.publish('t', '1000', key => 'refused')});
wait_until('two are parked', sub { $old->safe_psql('a', 'SELECT count(*) FROM outbox.parked') == 2 });

$old->safe_psql('a', q{SELECT outbox.pause('held')});
wait_until('a topic is held', sub { $old->safe_psql('a', 'SELECT count(*) FROM outbox.held_lanes') == 1 });
publish_numbers('a', 'held', 21, 40);
is($old->safe_psql('a', q{SELECT outbox.discard(event_id) FROM outbox.message WHERE topic = 'held' AND convert_from(payload, 'UTF8') = '21'}),
	1, 'one of it is discarded');
wait_until('it is', sub { $old->safe_psql('a', 'SELECT count(*) FROM outbox.discarded_message') == 1 });

# ids far from xids, a main cursor in the middle of things
publish_numbers('a', 't', 101, 150);
wait_until('the other topic goes on', sub {
		$old->safe_psql('a', q{SELECT count(*) FROM outbox.message_status WHERE topic = 't' AND status = 'published'}) == 150;
	});
$old->safe_psql('a', 'SELECT outbox.pause()');
wait_state($old, 'a', 'paused');
publish_numbers('a', 't', 151, 200);

$broker->command('down all');
wait_until('the broker is away', sub {
		publish_numbers('b', 'auto', 51, 51) if $old->safe_psql('b', 'SELECT count(*) FROM outbox.message') == 50;
		return relay_status($old, 'b')->{state} eq 'connecting';
	}, 60);
publish_numbers('b', 'auto', 52, 100);
# with the broker away the last progress is on disk
is($old->safe_psql('b', 'SELECT count(*) FROM outbox.pending'), 50, 'messages wait for the broker');

my %before = map { $_ => picture($old, $_) } qw(a b);
$old->stop;
$broker->command('up all');
my %count = map { $_ => scalar @{ arrived($_, "$_ before") } } @topics;

# ---------------------------------------------------------------------------
# pg_upgrade
# ---------------------------------------------------------------------------

my $new = new_cluster('new');
my ($old_bin, $new_bin) = map { $_->config_data('--bindir') } $old, $new;
chdir $new->basedir or die "chdir: $!";
command_ok(
	[ 'pg_upgrade', '--retain', '-d', $old->data_dir, '-D', $new->data_dir,
		'-b', $old_bin, '-B', $new_bin, '-s', $new->host,
		'-p', $old->port, '-P', $new->port ],
	'pg_upgrade');
chdir '/';

# A worker would say so in the log, and would have had something to send.
my $logs = '';
find(sub { $logs .= slurp_file($_) if /server.*\.log$/; }, $new->data_dir . '/pg_upgrade_output.d');
like($logs, qr/database system is ready/, 'the servers that pg_upgrade started have a log');
unlike($logs, qr/outbox_kafka (relay|launcher|client|sends|holds)/, 'no worker of ours ran in them');
is(scalar @{ arrived($_, "$_ meanwhile") }, $count{$_}, "nothing was sent to $_") for @topics;

# First without the relay, to compare.
$new->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = ''");
$new->start;
diag('to ' . $new->safe_psql('postgres', 'SHOW server_version'));
is(picture($new, $_), $before{$_}, "$_: everything is as it was") for qw(a b);
$new->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $broker->bootstrap . "'");
$new->restart;

wait_delivered($new, 'b');
is_deeply(arrived('auto', 'the relay goes on by itself'), [ 1 .. 100 ], 'all has arrived');
wait_state($new, 'a', 'paused');
is(scalar @{ arrived($_, "$_ paused") }, $count{$_}, "what was paused still is: $_") for qw(t held);

$new->safe_psql('a', 'SELECT outbox.resume()');
wait_until('what was pending is published', sub {
		$new->safe_psql('a', q{SELECT count(*) FROM outbox.message_status WHERE topic = 't' AND status = 'published'}) == 200;
	});
is_deeply(arrived('t', 'what was pending'), [ 1 .. 200 ], 'what was pending has arrived');
is($new->safe_psql('a', 'SELECT count(*), min(reason), max(reason) FROM outbox.parked'), '2|behind|refused', 'what was parked is');
is(scalar @{ arrived('held', 'the held topic') }, 20, 'the held topic waits');

$new->safe_psql('a', q{SELECT outbox.resume('held')});
wait_until('nothing is held', sub { $new->safe_psql('a', 'SELECT count(*) FROM outbox.held_lanes') == 0 });
wait_delivered($new, 'a');
is_deeply(arrived('held', 'the held topic'), [ 1 .. 20, 22 .. 40 ], 'the held topic has arrived, but for what was discarded');
is($new->safe_psql('a', 'SELECT outbox.discard(event_id) FROM outbox.parked ORDER BY id LIMIT 1'), 1, 'a parked message is discarded');
wait_until('the one behind it is sent', sub { $new->safe_psql('a', 'SELECT count(*) FROM outbox.parked') == 0 }, 60);

# Publishing, by whom it was allowed, and the ids go on.
is($new->safe_psql('a', q{SET ROLE app; SELECT count(outbox.publish('t', i::text, key => 'k' || i % 3)) FROM generate_series(1001, 1050) AS i}),
	50, 'a grant is still one');
my ($code, undef, $error) = $new->psql('a', q{SET ROLE app; SELECT outbox.publish('auto', 'x'::text)});
like($error, qr/permission|may not|not allowed/, 'and no more than it was');
wait_delivered($new, 'a');
is_deeply(arrived('t', 'afterwards'), [ 1 .. 200, 1000, 1001 .. 1050 ], 'new messages arrive');
is($new->safe_psql('a', 'SELECT count(*) FROM (SELECT id FROM outbox.message GROUP BY 1 HAVING count(*) > 1) AS d'), 0, 'no id was used twice');

$new->stop;
$broker->stop;
done_testing();
