
# P4 with exactly_once: messages that the broker refuses, a topic that it does
# not know, a topic that is paused, a broker that is away for longer than a
# transaction may last. Everything else goes on; each arrives once, each key's in
# order, for readers of committed messages.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('small', 1, { 'max.message.bytes' => 20000 });
$kafka->create_topic($_, 2) for qw(good paused);
my $node = new_node(
	'faults',
	kafka => $kafka,
	conf => {
		'restart_after_crash' => 'on',
		'outbox_kafka.delivery' => 'exactly_once',
		'outbox_kafka.producer_config' => 'batch.size=15000'
	});
new_database($node, 'd');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('d', $query);
}

# Payloads "number:...", each once, and in order within each key.
sub check
{
	my ($topic, $wanted, $name) = @_;
	my (%times, %last);
	my $misordered = 0;
	for my $record ($kafka->consume($topic, properties => { 'isolation.level' => 'read_committed' }))
	{
		my ($number) = split /:/, $record->{payload};
		$times{$number}++;
		my $key = $record->{key} // '';
		$misordered++ if ($last{$key} // 0) > $number;
		$last{$key} = $number;
	}
	is(scalar(keys %times), $wanted, "$name: all arrived");
	is(scalar(grep { $_ > 1 } values %times), 0, "$name: each once");
	is($misordered, 0, "$name: in order");
	return;
}

# Of a server that may be down.
sub ask
{
	my ($query, $database) = @_;
	return try_sql($node, $database // 'd', $query);
}

sub count_parked
{
	my ($where) = @_;
	return sql("SELECT count(*) FROM outbox.parked WHERE $where");
}

# refused ones among good ones, and what queues behind them
sql(q{
	SELECT outbox.publish(CASE WHEN i % 2 = 0 THEN 'good' ELSE 'small' END,
		CASE WHEN i % 100 = 7 THEN i || ':' || repeat('x', 30000) ELSE i || ':' END,
		key => CASE WHEN i % 100 IN (7, 9) THEN 'bad-' || i / 100 ELSE 'good-' || i % 11 END)
	FROM generate_series(1, 1000) AS i});
wait_delivered($node, 'd');
is(count_parked("reason = 'refused'"), 10, 'the refused ones are parked');
is(count_parked("reason = 'behind'"), 10, 'and those behind them');
check('good', 500, 'another topic');
check('small', 480, 'the same topic');

# dying over and over while they are tried again
$kafka->configure_topic('small', { 'max.message.bytes' => 1000000 });
$node->safe_psql('postgres', q{ALTER SYSTEM SET outbox_kafka.fault_point = 'committed:2'});
$node->reload;
sql(q{SELECT outbox.retry('small')});
for my $i (1 .. 5)
{
	ask("SELECT outbox.publish('good', '" . (1000 + $i) . ":'::text, 'k')");
}
wait_until('nothing is parked', sub { (ask('SELECT count(*) FROM outbox.parked') // '') eq '0' }, 300);
wait_until('the setting is reset', sub {
	defined ask('ALTER SYSTEM RESET outbox_kafka.fault_point', 'postgres') });
$node->reload;
wait_state($node, 'd', 'idle');
wait_delivered($node, 'd');
cmp_ok(scalar(() = PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /dies at fault point/g),
	'>', 0, 'it has died meanwhile');
check('small', 500, 'tried again');
check('good', 500 + sql(q{SELECT count(*) FROM outbox.message WHERE topic = 'good' AND key = 'k'}), 'the other topic');

# a topic that nobody knows, in the middle of others, is held
sql(q{SELECT outbox.publish(CASE WHEN i % 5 = 0 THEN 'unknown' ELSE 'paused' END, i || ':', 'k' || i % 3)
	  FROM generate_series(1, 500) AS i});
wait_until('the others have arrived', sub {
	sql(q{SELECT count(*) FROM outbox.pending WHERE topic = 'paused'}) == 0 }, 60);
check('paused', 400, 'others than the unknown topic');
is(sql('SELECT topic FROM outbox.held_lanes'), 'unknown', 'it is held');
sql(q{SELECT outbox.pause('paused')});
wait_until('paused', sub { sql('SELECT count(*) FROM outbox.held_lanes') == 2 });
sql(q{SELECT outbox.publish(CASE WHEN i % 5 = 0 THEN 'unknown' ELSE 'paused' END, i || ':', 'k' || i % 3)
	  FROM generate_series(501, 1000) AS i});
$kafka->create_topic('unknown', 2);
sql(q{SELECT outbox.retry('unknown')});
wait_until('what the unknown topic had has arrived', sub {
	sql(q{SELECT count(*) FROM outbox.pending WHERE topic = 'unknown'}) == 0 }, 60);
check('unknown', 200, 'the topic, made later');
check('paused', 400, 'the paused topic');

# dying while it catches up
$node->safe_psql('postgres', q{ALTER SYSTEM SET outbox_kafka.fault_point = 'committed:3'});
$node->reload;
wait_until('resumed', sub { defined ask(q{SELECT outbox.resume('paused')}) });
wait_until('it has caught up', sub {
	(ask('SELECT (SELECT count(*) FROM outbox.pending) + (SELECT count(*) FROM outbox.held_lanes)') // '') eq '0' }, 120);
wait_until('the setting is reset', sub {
	defined ask('ALTER SYSTEM RESET outbox_kafka.fault_point', 'postgres') });
$node->reload;
check('paused', 800, 'resumed');
check('unknown', 200, 'the topic, made later');

# away for longer than the coordinator lets a transaction live
my $number = 2000;
wait_published($node, 'd', publish($node, 'd', "'good', '" . ++$number . ":'::text, 'z'"));
for my $i (1 .. 20)
{
	publish($node, 'd', "'good', '" . ++$number . ":'::text, 'z'");
	$kafka->pause(1) if $i == 3;
}
sleep 12;
$kafka->cont(1);
wait_delivered($node, 'd', 120);
check('good', 521 + sql(q{SELECT count(*) FROM outbox.message WHERE topic = 'good' AND key = 'k'}), 'after an outage');

$node->stop;
done_testing();
