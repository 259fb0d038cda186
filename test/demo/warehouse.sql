-- The warehouse of the demo and of t/130_orders.pl: what it does with a message
-- and the answer that it publishes are one transaction.

CREATE TABLE stock (
	item text PRIMARY KEY,
	available int NOT NULL CHECK (available >= 0)
);

CREATE TABLE reservation (
	"order" int PRIMARY KEY,
	item text NOT NULL REFERENCES stock,
	quantity int NOT NULL
);

-- The answer carries the correlation id of the message by itself.
CREATE FUNCTION reserve(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	o jsonb := inbox.payload_json(m);
BEGIN
	UPDATE stock SET available = available - (o ->> 'quantity')::int
		WHERE item = o ->> 'item' AND available >= (o ->> 'quantity')::int;
	IF FOUND THEN
		INSERT INTO reservation VALUES ((o ->> 'order')::int, o ->> 'item', (o ->> 'quantity')::int);
		PERFORM outbox.publish('orders.confirmed', jsonb_build_object('order', o -> 'order'), key => o ->> 'order');
	ELSE
		PERFORM outbox.publish('orders.rejected',
			jsonb_build_object('order', o -> 'order', 'reason', 'not enough of ' || (o ->> 'item')), key => o ->> 'order');
	END IF;
END $$;

CREATE FUNCTION release(m inbox.message) RETURNS void LANGUAGE sql AS $$
	WITH gone AS (
		DELETE FROM reservation WHERE "order" = (inbox.payload_json(m) ->> 'order')::int RETURNING *)
	UPDATE stock SET available = available + gone.quantity FROM gone WHERE stock.item = gone.item
$$;

-- A message that arrives twice takes effect once.
SELECT inbox.subscribe('orders', '{orders.created}', 'reserve', dedupe_window => '1 day');
SELECT inbox.subscribe('cancellations', '{orders.cancelled}', 'release', dedupe_window => '1 day');
