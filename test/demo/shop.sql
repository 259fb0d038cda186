-- The shop of the demo and of t/130_orders.pl: an order is placed, and what
-- becomes of it the warehouse decides, or the clock. Run as the role that owns
-- it all.

CREATE TABLE orders (
	id int PRIMARY KEY,
	item text NOT NULL,
	quantity int NOT NULL,
	status text NOT NULL DEFAULT 'placed',
	reason text
);

CREATE FUNCTION order_confirmed(d outbox.decision) RETURNS void LANGUAGE sql AS $$
	UPDATE orders SET status = 'confirmed' WHERE id = (d.context ->> 'order')::int
$$;

CREATE FUNCTION order_rejected(d outbox.decision) RETURNS void LANGUAGE sql AS $$
	UPDATE orders SET status = 'rejected', reason = d.reason WHERE id = (d.context ->> 'order')::int
$$;

CREATE FUNCTION order_expired(d outbox.decision) RETURNS void LANGUAGE sql AS $$
	UPDATE orders SET status = 'cancelled', reason = 'no answer in time' WHERE id = (d.context ->> 'order')::int
$$;

-- The answer came after the order was cancelled: have it undone.
CREATE FUNCTION order_late(d outbox.decision) RETURNS void LANGUAGE sql AS $$
	SELECT outbox.publish('orders.cancelled', d.context, key => d.context ->> 'order')
	WHERE d.answer = 'confirmed'
$$;

-- The order, its message and what is expected of it: one transaction.
CREATE FUNCTION place_order(id int, item text, quantity int, within interval) RETURNS text LANGUAGE sql AS $$
	INSERT INTO orders (id, item, quantity) VALUES (place_order.id, place_order.item, place_order.quantity);
	SELECT outbox.expect_confirmation(
		outbox.publish('orders.created',
			jsonb_build_object('order', place_order.id, 'item', place_order.item, 'quantity', place_order.quantity),
			key => place_order.id::text),
		place_order.within,
		on_confirmed => 'order_confirmed', on_rejected => 'order_rejected',
		on_expired => 'order_expired', on_late => 'order_late',
		answered_by => '{confirmed, rejected}',
		context => jsonb_build_object('order', place_order.id))
$$;

SELECT inbox.subscribe('confirmed', '{orders.confirmed}', 'outbox.confirm_by_message');
SELECT inbox.subscribe('rejected', '{orders.rejected}', 'outbox.reject_by_message');
