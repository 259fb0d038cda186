
# The way there and back over a real Kafka and two databases: a shop publishes
# an order, the warehouse reserves stock and answers, the order is confirmed or
# rejected. With the warehouse away it expires and is cancelled, and what the
# warehouse does later is undone. The applications are those of the demo
# (test/demo); all is done by a role with no more privileges than it needs.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Cwd qw(abs_path);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::Kafka;

my $directory = abs_path("$FindBin::RealBin/../demo");
my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 3) for qw(orders.created orders.confirmed orders.rejected orders.cancelled);

my $node = new_node('main', kafka => $kafka, conf => { 'restart_after_crash' => 'on' });
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN');
for my $database (qw(shop warehouse))
{
	new_database($node, $database);
	$node->safe_psql($database, q{
		GRANT CREATE ON SCHEMA public TO app;
		SELECT outbox.grant_publish('app', '{orders.*}');
		GRANT EXECUTE ON FUNCTION inbox.subscribe TO app});
	$node->safe_psql($database, "SET ROLE app;\n" . slurp_file("$directory/$database.sql"));
}
$node->safe_psql('warehouse', q{INSERT INTO stock VALUES ('teapot', 10), ('cup', 3)});

sub order_of
{
	my ($id) = @_;
	return $node->safe_psql('shop', "SELECT status || coalesce(': ' || reason, '') FROM orders WHERE id = $id");
}

# Place an order as the application does; the correlation id.
sub place
{
	my ($id, $item, $quantity, $within) = @_;
	return $node->safe_psql('shop', "SET ROLE app; SELECT place_order($id, '$item', $quantity, '$within')");
}

# Until the function for what was decided has been called.
sub wait_order
{
	my ($id) = @_;
	wait_until("order $id is decided", sub { order_of($id) ne 'placed' }, 60, sub {
		join "\n", map { $node->safe_psql($_->[0], "TABLE $_->[1]") }
			[ shop => 'outbox.confirmations' ], [ shop => 'inbox.subscription_status' ],
			[ warehouse => 'inbox.subscription_status' ], [ warehouse => 'inbox.dead_letters' ] });
	return order_of($id);
}

sub stock
{
	return $node->safe_psql('warehouse', "SELECT string_agg(item || ' ' || available, ', ' ORDER BY item) FROM stock");
}

# ---------------------------------------------------------------------------
# Confirmed, rejected
# ---------------------------------------------------------------------------

my $id = place(1, 'teapot', 4, '1 min');
is($node->safe_psql('shop', "SET ROLE app; SELECT outbox.wait_decided('$id', '60 s')"), 'confirmed', 'outbox.wait_decided() says so');
is(wait_order(1), 'confirmed', 'an order that can be had is confirmed');
place(2, 'cup', 5, '1 min');
is(wait_order(2), 'rejected: not enough of cup', 'one that cannot is rejected, with the reason');
is(stock(), 'cup 3, teapot 6', 'the warehouse has reserved the one');

my ($created) = grep { $_->{key} eq '1' } $kafka->consume('orders.created');
my ($confirmed) = $kafka->consume('orders.confirmed');
is($confirmed->{header}{'correlation-id'}, $id, 'the answer carries the correlation id');
is($confirmed->{header}{'causation-id'}, $created->{header}{ce_id}, 'and the id of what it answers');

# rolled back: neither an order, nor a message, nor an expectation
$node->psql('shop', "SET ROLE app; BEGIN; SELECT place_order(3, 'cup', 1, '1 min'); ROLLBACK");
is($node->safe_psql('shop', 'SELECT count(*) FROM outbox.confirmations'), 2, 'rolled back: nothing is expected');

# ---------------------------------------------------------------------------
# The receiver is down
# ---------------------------------------------------------------------------

$node->safe_psql('warehouse', q{SELECT inbox.pause('orders')});
my $begin = time;
$id = place(4, 'teapot', 1, '2 s');
is(wait_order(4), 'cancelled: no answer in time', 'no answer in time: expired and compensated');
my $took = time - $begin;
cmp_ok($took, '>=', 2, 'not before the time is over');
cmp_ok($took, '<', 4, 'and soon after');
is($node->safe_psql('shop', "SELECT status FROM outbox.confirmations WHERE correlation_id = '$id'"),
	'compensated', 'and that is the status');
is(stock(), 'cup 3, teapot 6', 'nothing was reserved');

# The warehouse comes back and reserves; its answer is late; all is undone.
$node->safe_psql('warehouse', q{SELECT inbox.resume('orders')});
wait_until('the late answer has come', sub {
	$node->safe_psql('shop', "SELECT late_answer FROM outbox.confirmations WHERE correlation_id = '$id'") eq 'confirmed' }, 60);
wait_until('the reservation is gone', sub {
	return $kafka->message_count('orders.cancelled') == 1 && $node->safe_psql('warehouse', 'SELECT count(*) FROM reservation WHERE "order" = 4') == 0
		&& $node->safe_psql('warehouse', q{SELECT sum(lag) FROM inbox.subscription_status WHERE name = 'cancellations'}) eq '0' }, 60);
is(stock(), 'cup 3, teapot 6', 'what was reserved after that is released');
is(order_of(4), 'cancelled: no answer in time', 'the order stays cancelled');

# ---------------------------------------------------------------------------
# The publisher's side cannot be fooled
# ---------------------------------------------------------------------------

# An answer from a topic that nobody expects it from.
$node->safe_psql('shop', q{SET ROLE app; SELECT inbox.subscribe('other', '{orders.cancelled}', 'outbox.confirm_by_message')});
$node->safe_psql('warehouse', q{SELECT inbox.pause('orders')});
$id = place(5, 'teapot', 1, '1 h');
publish($node, 'warehouse', "'orders.cancelled', '{\"order\": 5}'::text, '5', correlation_id => '$id'");
wait_until('the forged answer is refused', sub {
	$node->safe_psql('shop', q{SELECT coalesce(sum(handled), 0) + (SELECT count(*) FROM inbox.dead_letters WHERE name = 'other')
		FROM inbox.workers WHERE name = 'other'}) > 0 }, 60);
is(order_of(5), 'placed', 'an answer from another subscription than was named changes nothing');
$node->safe_psql('shop', q{SELECT inbox.unsubscribe('other')});
$node->safe_psql('warehouse', q{SELECT inbox.resume('orders')});
is(wait_order(5), 'confirmed', 'the true one does');

# ---------------------------------------------------------------------------
# Many, with processes killed meanwhile
# ---------------------------------------------------------------------------

$node->safe_psql('warehouse', q{UPDATE stock SET available = 150 WHERE item = 'teapot'});
for my $round (0 .. 3)
{
	$node->safe_psql('shop', "SET ROLE app; SELECT place_order(id, 'teapot', 1, '5 min')
		FROM generate_series(1000 + $round * 50, 1049 + $round * 50) AS id");
	my $victim = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity
		WHERE backend_type ~ 'outbox_kafka (relay|inbox|decider)' ORDER BY random() LIMIT 1});
	kill_worker($node, $round % 2 ? 'KILL' : 'TERM', $victim) if $victim ne '';
}
wait_until('all orders are decided', sub {
	$node->safe_psql('shop', q{SELECT count(*) FROM orders WHERE status = 'placed'}) eq '0' }, 180, sub {
		join "\n", map { $node->safe_psql($_->[0], "TABLE $_->[1]") }
			[ shop => 'inbox.subscription_status' ], [ warehouse => 'inbox.subscription_status' ], [ warehouse => 'inbox.dead_letters' ] });
is($node->safe_psql('shop', q{SELECT string_agg(status || ' ' || n, ', ' ORDER BY status)
	FROM (SELECT status, count(*) AS n FROM orders WHERE id >= 1000 GROUP BY 1) AS s}),
	'confirmed 150, rejected 50', '200 orders for 150 teapots, two workers killed by SIGKILL and two ended meanwhile: each is decided once');
is($node->safe_psql('warehouse', 'SELECT count(*) FROM reservation WHERE "order" >= 1000'), 150, 'as many reservations');
is($node->safe_psql('warehouse', q{SELECT available FROM stock WHERE item = 'teapot'}), 0, 'no teapot is left');
is($node->safe_psql('warehouse', 'SELECT "order" FROM reservation WHERE "order" >= 1000 ORDER BY 1'),
	$node->safe_psql('shop', q{SELECT id FROM orders WHERE id >= 1000 AND status = 'confirmed' ORDER BY 1}),
	'for the very orders that are confirmed');

$node->stop;
done_testing();
