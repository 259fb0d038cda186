
# P2, P6: who may send, with exactly_once. A state older than Kafka's (recovery
# to a point in time) is noticed: at least once for the gap, with a warning. If it
# sends beside the database that it is a copy of, both stop with the state
# conflict, also after a restart, and outbox.claim() decides: what is claimed goes
# on. A switchover to a synchronous standby without loss keeps exactly once, and
# the old primary, frozen meanwhile, cannot publish when it comes back; it alone
# stops. Another Kafka cluster is noticed as well.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 1) for qw(t s h);

# How often each payload has arrived, for readers of committed messages.
sub arrived
{
	my ($topic, $from) = @_;
	my %count;
	$count{ $_->{payload} }++
	  for ($from // $kafka)->consume($topic, properties => { 'isolation.level' => 'read_committed' });
	return \%count;
}

sub log_of
{
	my ($node) = @_;
	return slurp_file($node->logfile);
}

# ---------------------------------------------------------------------------
# A copy of the files that is older than what was sent since
# ---------------------------------------------------------------------------

my $original = new_node(
	'original',
	kafka => $kafka,
	init => { allows_streaming => 1 },
	conf => { 'outbox_kafka.delivery' => 'exactly_once' });
new_database($original, 'd');
wait_published($original, 'd', publish($original, 'd', q{'t', 'before'::text, 'k'}));
$original->backup('early');
wait_published($original, 'd', publish($original, 'd', q{'t', 'after'::text, 'k'}));

my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($original, 'early');
$copy->start;
wait_published($copy, 'd', publish($copy, 'd', q{'t', 'copy'::text, 'k'}));
like(log_of($copy), qr/WARNING.*Kafka knows a later position/, 'the gap is in the log');
like(relay_status($copy, 'd')->{last_error} // '', qr/may have been sent twice/, 'and in the status');

# the original sends again: it finds that somebody else did
my $waiting = publish($original, 'd', q{'t', 'late'::text, 'k'});
my $status = wait_state($original, 'd', 'conflict');
like($status->{last_error}, qr/a copy of this database/, 'the original stops and says why');
is($original->safe_psql('d', 'SELECT what FROM outbox.relay_conflict') eq $status->{last_error},
	1, 'and has it on disk');
publish($copy, 'd', q{'t', 'copy 2'::text, 'k'});
$status = wait_state($copy, 'd', 'conflict');
like($status->{last_error}, qr/a copy of this database/, 'the copy stops as well');

$_->restart for $original, $copy;
wait_state($_, 'd', 'conflict') for $original, $copy;
pass('a restart does not end it');
my $count = arrived('t');
is($count->{$_}, 1, "$_ arrived once") for ('before', 'after', 'copy');
is($count->{$_}, undef, "$_ waits") for ('late', 'copy 2');

$original->safe_psql('d', 'SELECT outbox.claim()');
wait_published($original, 'd', $waiting);
is($original->safe_psql('d', 'SELECT count(*) FROM outbox.relay_conflict'), 0, 'claimed, it sends');
wait_published($original, 'd', publish($original, 'd', q{'t', 'late 2'::text, 'k'}));
is(relay_status($copy, 'd')->{state}, 'conflict', 'the other one does not');
is(arrived('t')->{'copy 2'}, undef, 'nor has it');

# now the other one: it is sure to be the one, and does not stop any more
$copy->safe_psql('d', 'SELECT outbox.claim()');
wait_published($copy, 'd', publish($copy, 'd', q{'t', 'copy 3'::text, 'k'}));
$waiting = publish($original, 'd', q{'t', 'late 3'::text, 'k'});
wait_state($original, 'd', 'conflict');
wait_published($copy, 'd', publish($copy, 'd', q{'t', 'copy 4'::text, 'k'}));
is(wait_state($copy, 'd', 'idle')->{state}, 'idle', 'what was claimed goes on');
like(relay_status($copy, 'd')->{last_error}, qr/another relay with the identity/, 'and says what it has seen');
$count = arrived('t');
is($count->{$_}, 1, "$_ arrived once")
  for ('before', 'after', 'copy', 'late', 'late 2', 'copy 2', 'copy 3', 'copy 4');
is($count->{'late 3'}, undef, 'what was published in conflict did not');
$copy->stop;

# both publish all the time: neither takes the right to send from the other for
# ever. The copy dies in its first transaction, and is unsure all the same.
$original->safe_psql('d', 'SELECT outbox.claim()');
wait_published($original, 'd', $waiting);
my $second_copy = PostgreSQL::Test::Cluster->new('second_copy');
$second_copy->init_from_backup($original, 'early');
$second_copy->append_conf('postgresql.conf', "restart_after_crash = on\noutbox_kafka.fault_point = 'positioned:1'");
$second_copy->start;
try_sql($second_copy, 'd', q{SELECT outbox.publish('t', 'second copy'::text, 'k')});
wait_until('the relay of the copy dies', sub { log_of($second_copy) =~ /dies at fault point "positioned"/ });
insist_sql($second_copy, 'postgres', "ALTER SYSTEM SET outbox_kafka.fault_point = ''");
$second_copy->reload;
wait_delivered($second_copy, 'd');
my @publishers = map { $_->background_psql('d') } $original, $second_copy;
$_->query_until(qr/started/, q{\echo started
	DO $$ BEGIN
		WHILE to_regclass('enough') IS NULL LOOP
			PERFORM outbox.publish('t', 'busy'::text, 'k');
			COMMIT;
			PERFORM pg_sleep(0.001);
		END LOOP;
	END $$;
}) for @publishers;
wait_state($_, 'd', 'conflict') for $original, $second_copy;
pass('both send, and both stop');
$_->safe_psql('d', 'CREATE TABLE enough ()') for $original, $second_copy;
$_->quit for @publishers;
cmp_ok(scalar(() = log_of($second_copy) =~ /WARNING.*outbox_kafka cannot send/g), '<', 10,
	'after a few tries');
$second_copy->stop;
$original->safe_psql('d', 'SELECT outbox.claim()');
wait_delivered($original, 'd');

# ---------------------------------------------------------------------------
# Another Kafka cluster
# ---------------------------------------------------------------------------

my $other = OutboxTest::Kafka->new(name => 'other', heap => '256m');
$other->start;
$other->create_topic('t', 1);
$original->safe_psql('postgres', "ALTER SYSTEM SET outbox_kafka.bootstrap_servers = '" . $other->bootstrap . "'");
$original->reload;
$waiting = publish($original, 'd', q{'t', 'elsewhere'::text, 'k'});
$status = wait_state($original, 'd', 'conflict');
like($status->{last_error}, qr/Kafka cluster/, 'another cluster is noticed');
$original->safe_psql('d', 'SELECT outbox.claim()');
wait_published($original, 'd', $waiting);
is(arrived('t', $other)->{elsewhere}, 1, 'claimed, it is sent to');
$other->stop;
$original->stop('immediate');

# ---------------------------------------------------------------------------
# Switchover, and a zombie
# ---------------------------------------------------------------------------

my $first = new_node(
	'first',
	kafka => $kafka,
	init => { allows_streaming => 1 },
	conf => {
		'outbox_kafka.delivery' => 'exactly_once',
		'outbox_kafka.wait_for_standby' => 'on'
	});
new_database($first, 'd');
$first->backup('standby');
my $second = PostgreSQL::Test::Cluster->new('second');
$second->init_from_backup($first, 'standby', has_streaming => 1);
$second->append_conf('postgresql.conf', "synchronous_standby_names = ''\noutbox_kafka.wait_for_standby = 'off'");
$first->append_conf('postgresql.conf', "synchronous_standby_names = 'second'");
$first->reload;
$second->start;
wait_until('the standby is synchronous',
	sub { $first->safe_psql('postgres', 'SELECT sync_state FROM pg_stat_replication') eq 'sync' });

$first->safe_psql('d', q{SELECT outbox.publish('s', i::text, 'k') FROM generate_series(1, 500) AS i});
wait_delivered($first, 'd');

# a lane that was held catches up at that time, by the second producer
$first->safe_psql('d', q{SELECT outbox.publish('h', i::text, 'k') FROM generate_series(1, 50) AS i});
wait_delivered($first, 'd');
$first->safe_psql('d', q{SELECT outbox.pause('h')});
wait_until('a topic is held', sub { $first->safe_psql('d', 'SELECT count(*) FROM outbox.held_lanes') == 1 });
$first->safe_psql('d', q{SELECT outbox.publish('h', i::text, 'k') FROM generate_series(51, 300) AS i});

# many small ones, and the relay is frozen in the middle of them
$first->psql('d', q{
	DO $$ BEGIN FOR i IN 501 .. 700 LOOP PERFORM outbox.publish('s', i::text, 'k'); COMMIT; END LOOP; END $$});
$first->safe_psql('d', q{SELECT outbox.resume('h')});
my $zombie = relay_pid($first, 'd');
kill 'STOP', $zombie;
$second->promote;
$second->poll_query_until('d', 'SELECT NOT pg_is_in_recovery()') or die;
wait_published($second, 'd', publish($second, 'd', q{'s', 'second'::text, 'k'}));
wait_delivered($second, 'd');
$count = arrived('s');
is(scalar(grep { ($count->{$_} // 0) == 1 } 1 .. 700), 700, 'switchover: each once');
is($count->{second}, 1, 'the new one sends');
my $held = arrived('h');
is(scalar(grep { ($held->{$_} // 0) == 1 } 1 .. 300), 300, 'switchover: each of the held topic once');

# the old one has something to send that its primary alone has
$first->append_conf('postgresql.conf', "synchronous_standby_names = ''\noutbox_kafka.wait_for_standby = 'off'");
$first->reload;
publish($first, 'd', q{'s', 'zombie'::text, 'k'});
kill 'CONT', $zombie;
wait_state($first, 'd', 'conflict');
wait_published($second, 'd', publish($second, 'd', q{'s', 'second 2'::text, 'k'}));
$count = arrived('s');
is($count->{zombie}, undef, 'the zombie published nothing');
is($count->{'second 2'}, 1, 'the new one goes on');
is(scalar(grep { $count->{$_} > 1 } keys %$count), 0, 'nothing came twice');
unlike(log_of($second), qr/messages may be sent a second time/, 'the new one knew the position');
$first->stop('immediate');
$second->stop;

done_testing();
