
# The way there and back, over a real Kafka: one database publishes an order and
# waits for an answer, another one handles it and publishes the answer, which
# carries by itself what it answers; an inbox of the first one decides. Answers
# from a subscription that may not answer are refused.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 1) for qw(orders.created orders.confirmed orders.rejected gossip);

my $node = new_node('answers', kafka => $kafka);
new_database($node, $_) for qw(shop stock);

sub sql
{
	my ($database, $query) = @_;
	return $node->safe_psql($database, $query);
}

sub wait_sql
{
	my ($database, $query, $expected, $what) = @_;
	wait_until($what, sub { sql($database, $query) eq $expected }, 60, sub {
			join "\n", sql($database, $query), map { my $d = $_; map { sql($d, "SELECT * FROM $_") }
				qw(outbox.confirmations inbox.subscription_status inbox.workers inbox.dead_letters) } qw(shop stock) });
	is(sql($database, $query), $expected, $what);
	return;
}

sql('shop', q{
	CREATE ROLE shop; CREATE ROLE thief; CREATE ROLE stock;
	SELECT outbox.grant_publish('shop');
	SELECT outbox.grant_publish('thief');
	GRANT EXECUTE ON FUNCTION inbox.subscribe TO shop, thief;
	CREATE TABLE orders (id int PRIMARY KEY, state text, why text);
	ALTER TABLE orders OWNER TO shop;
	CREATE FUNCTION order_confirmed(d outbox.decision) RETURNS void LANGUAGE sql AS $$
		UPDATE public.orders SET state = 'confirmed', why = (d).detail->>'reserved' WHERE id = ((d).context->>'id')::int $$;
	CREATE FUNCTION order_cancelled(d outbox.decision) RETURNS void LANGUAGE sql AS $$
		UPDATE public.orders SET state = 'cancelled', why = coalesce((d).reason, (d).decision) WHERE id = ((d).context->>'id')::int $$;
	SET ROLE shop;
	SELECT inbox.subscribe('confirmed', '{orders.confirmed}', 'outbox.confirm_by_message');
	SELECT inbox.subscribe('rejected', '{orders.rejected}', 'outbox.reject_by_message');
	SELECT inbox.subscribe('gossip', '{gossip}', 'outbox.confirm_by_message', max_attempts => 1);
	SET ROLE thief;
	SELECT inbox.subscribe('thief', '{gossip}', 'outbox.confirm_by_message', max_attempts => 1);
});
sql('stock', q{
	SELECT outbox.grant_publish('stock');
	GRANT EXECUTE ON FUNCTION inbox.subscribe TO stock;
	CREATE TABLE stock (left_over int);
	INSERT INTO stock VALUES (5);
	ALTER TABLE stock OWNER TO stock;
	CREATE FUNCTION reserve(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		wanted int := (inbox.payload_json(m)->>'n')::int;
	BEGIN
		UPDATE public.stock SET left_over = left_over - wanted WHERE left_over >= wanted;
		IF FOUND THEN
			PERFORM outbox.publish('orders.confirmed', jsonb_build_object('reserved', wanted));
		ELSE
			INSERT INTO outbox.message (topic, payload, headers)
				VALUES ('orders.rejected', 'not JSON', '{"reason": "out of stock", "causation-id": "mine"}');
		END IF;
	END $$;
	SET ROLE stock;
	SELECT inbox.subscribe('orders', '{orders.created}', 'reserve');
});

sub place_order
{
	my ($number, $n, $arguments) = @_;
	$arguments //= '';
	return (split /\n/, sql('shop', qq{
		SET ROLE shop;
		BEGIN;
		INSERT INTO orders VALUES ($number, 'new');
		SELECT outbox.expect_confirmation(outbox.publish('orders.created', '{"n": $n}'::jsonb, '$number'), '60 s',
			'order_confirmed', 'order_cancelled', 'order_cancelled', context => '{"id": $number}'$arguments);
		COMMIT;
	}))[-1];
}

my $first = place_order(1, 3);
my $second = place_order(2, 3);
wait_sql('shop', q{SELECT string_agg(concat_ws(' ', id, state, why), ', ' ORDER BY id) FROM orders},
	'1 confirmed 3, 2 cancelled out of stock', 'the orders know');
is(sql('stock', 'SELECT left_over FROM stock'), 2, 'the stock was taken once');
is(sql('shop', qq{SELECT status || ' ' || decided_by FROM outbox.confirmations WHERE correlation_id = '$first'}),
	'confirmed subscription confirmed', 'who confirmed');
is(sql('shop', qq{SELECT status || ' ' || decided_by FROM outbox.confirmations WHERE correlation_id = '$second'}),
	'compensated subscription rejected', 'who rejected');

my ($yes) = $kafka->consume('orders.confirmed');
is($yes->{header}{'correlation-id'}, $first, 'an answer carries the correlation id by itself');
is($yes->{header}{'causation-id'}, $first, 'and the id of what it answers');
my ($no) = $kafka->consume('orders.rejected');
is($no->{header}{'correlation-id'}, $second, 'by INSERT as well');
is($no->{header}{'causation-id'}, 'mine', 'what was given is kept');

# somebody else's subscription, and one that is not named
sql('stock', q{DELETE FROM stock});
my $third = place_order(3, 0, q{, answered_by => '{confirmed,rejected}'});
wait_sql('shop', q{SELECT state FROM orders WHERE id = 3}, 'cancelled', 'no stock');
my $fourth = (split /\n/, sql('shop', q{SET ROLE shop; SELECT outbox.expect_confirmation(outbox.publish('elsewhere', 'x'::text), '600 s',
	answered_by => '{confirmed,rejected}')}))[-1];
my $fifth = (split /\n/, sql('shop', q{SET ROLE shop; SELECT outbox.expect_confirmation(outbox.publish('elsewhere', 'x'::text), '600 s')}))[-1];
publish($node, 'stock', "'gossip', '{}'::jsonb, correlation_id => '$fourth'");
publish($node, 'stock', "'gossip', '{}'::jsonb, correlation_id => '$fifth'");
publish($node, 'stock', "'gossip', '{}'::jsonb, correlation_id => 'nobody waits for this'");
publish($node, 'stock', "'gossip', '{}'::jsonb");
wait_sql('shop', q{SELECT string_agg(name || ' ' || n, ', ' ORDER BY name) FROM (SELECT name, count(*) AS n FROM inbox.dead_letters GROUP BY 1) AS d},
	'gossip 2, thief 3', 'forged answers are dead letters');
is(sql('shop', qq{SELECT status FROM outbox.confirmations WHERE correlation_id = '$fourth'}), 'awaiting', 'a subscription that is not named decides nothing');
is(sql('shop', qq{SELECT status || ' ' || decided_by FROM outbox.confirmations WHERE correlation_id = '$fifth'}), 'confirmed subscription gossip', 'without names, one of the same role does');
like(sql('shop', qq{SELECT string_agg(error, '; ') FROM inbox.dead_letters}), qr/may not answer/, 'the error says so');

# nobody answers
sql('stock', q{SELECT inbox.pause('orders')});
my $sixth = (split /\n/, sql('shop', q{SET ROLE shop; INSERT INTO orders VALUES (6, 'new');
	SELECT outbox.expect_confirmation(outbox.publish('orders.created', '{"n": 0}'::jsonb), '1 s',
		'order_confirmed', 'order_cancelled', 'order_cancelled', context => '{"id": 6}')}))[-1];
wait_sql('shop', q{SELECT state || ' ' || why FROM orders WHERE id = 6}, 'cancelled expired', 'with the receiver down, it expires');
sql('stock', q{SELECT inbox.resume('orders'); INSERT INTO stock VALUES (9)});
wait_sql('shop', qq{SELECT late + repeated FROM outbox.confirmations WHERE correlation_id = '$sixth'}, '1', 'its answer is late');
is(sql('shop', q{SELECT state FROM orders WHERE id = 6}), 'cancelled', 'and changes nothing');

$node->stop;
$kafka->stop;
done_testing();
