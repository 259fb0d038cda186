/* sql/outbox_kafka--0.1.0.sql */

\echo Use "CREATE EXTENSION outbox_kafka" to load this file. \quit

-- Messages are read and written by heap functions, whatever the default is.
SET LOCAL default_table_access_method = heap;

-- ---------------------------------------------------------------------------
-- Schema. Nobody gets in before outbox.grant_publish(); pg_monitor may look.
-- ---------------------------------------------------------------------------

CREATE SCHEMA outbox;
COMMENT ON SCHEMA outbox IS 'outbox_kafka: publishing to Kafka in the caller''s transaction';

-- ---------------------------------------------------------------------------
-- The outbox table: a ring of segments, filled by publish() and INSERT,
-- emptied by the relay. Rows are never updated or deleted.
-- ---------------------------------------------------------------------------

CREATE FUNCTION outbox.current_segment() RETURNS smallint
	LANGUAGE c STABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_current_segment';
COMMENT ON FUNCTION outbox.current_segment() IS 'segment that new messages are written to';

CREATE TABLE outbox.message (
	xid xid8 NOT NULL,
	id bigint NOT NULL,
	segment smallint NOT NULL DEFAULT outbox.current_segment(),
	event_id uuid NOT NULL,
	topic text NOT NULL,
	key bytea,
	payload bytea,
	headers jsonb,
	partition integer,
	correlation_id text,
	created_at timestamptz NOT NULL
) PARTITION BY LIST (segment);
COMMENT ON TABLE outbox.message IS 'messages to relay to Kafka; insert topic, key, payload, headers, partition, event_id, correlation_id only';
COMMENT ON COLUMN outbox.message.xid IS 'top-level transaction that published it; set by the extension';
COMMENT ON COLUMN outbox.message.id IS 'order of publishing, drawn after the xid; set by the extension';
COMMENT ON COLUMN outbox.message.segment IS 'place in the ring; set by the extension';
COMMENT ON COLUMN outbox.message.event_id IS 'identity of the event (header ce_id), a UUIDv7 unless given';
COMMENT ON COLUMN outbox.message.topic IS 'Kafka topic';
COMMENT ON COLUMN outbox.message.key IS 'record key; decides the partition';
COMMENT ON COLUMN outbox.message.payload IS 'record value; NULL is a tombstone and needs a key';
COMMENT ON COLUMN outbox.message.headers IS 'object of string, null or array of those';
COMMENT ON COLUMN outbox.message.partition IS 'explicit partition, NULL: by key';
COMMENT ON COLUMN outbox.message.correlation_id IS 'header correlation-id';
COMMENT ON COLUMN outbox.message.created_at IS 'when it was published (clock time); set by the extension';

-- DROP EXTENSION locks tables and sequence in the order in which they were
-- made; publishing locks outbox.message, the sequence, then a leaf. The same
-- order here keeps the two from waiting for each other.
CREATE SEQUENCE outbox.message_id AS bigint INCREMENT 1 MINVALUE 1 START 1 CACHE 1 NO CYCLE;
COMMENT ON SEQUENCE outbox.message_id IS 'message ids; drawn only after the transaction has its xid';

CREATE FUNCTION outbox.message_before_insert() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_message_before_insert';
COMMENT ON FUNCTION outbox.message_before_insert() IS 'checks an inserted message and gives it xid, id, event id and time; parks restored ones';

CREATE FUNCTION outbox.message_refuse_change() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_message_refuse_change';
COMMENT ON FUNCTION outbox.message_refuse_change() IS 'messages are never updated, deleted or truncated by hand';

CREATE TRIGGER message_before_insert
	BEFORE INSERT ON outbox.message
	FOR EACH ROW EXECUTE FUNCTION outbox.message_before_insert();
CREATE TRIGGER message_refuse_change
	BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.message
	FOR EACH STATEMENT EXECUTE FUNCTION outbox.message_refuse_change();
ALTER TABLE outbox.message ENABLE ALWAYS TRIGGER message_before_insert;
ALTER TABLE outbox.message ENABLE ALWAYS TRIGGER message_refuse_change;

DO $do$
DECLARE
	leaf pg_catalog.text;
BEGIN
	FOR i IN 0 .. 7 LOOP
		leaf := pg_catalog.concat('message_', i);
		EXECUTE pg_catalog.format(
			'CREATE TABLE outbox.%1$I PARTITION OF outbox.message FOR VALUES IN (%2$s)
			 USING heap WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)', leaf, i);
		EXECUTE pg_catalog.format('CREATE INDEX %2$I ON outbox.%1$I (id)', leaf, leaf || '_id');
		EXECUTE pg_catalog.format('CREATE INDEX %2$I ON outbox.%1$I (xid, id)', leaf, leaf || '_xid_id');
		EXECUTE pg_catalog.format('CREATE INDEX %2$I ON outbox.%1$I (event_id)', leaf, leaf || '_event_id');
		EXECUTE pg_catalog.format(
			'CREATE TRIGGER message_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.%1$I
			 FOR EACH STATEMENT EXECUTE FUNCTION outbox.message_refuse_change()', leaf);
		EXECUTE pg_catalog.format('ALTER TABLE outbox.%1$I ENABLE ALWAYS TRIGGER message_before_insert', leaf);
		EXECUTE pg_catalog.format('ALTER TABLE outbox.%1$I ENABLE ALWAYS TRIGGER message_refuse_change', leaf);
		EXECUTE pg_catalog.format('COMMENT ON TABLE outbox.%1$I IS %2$L', leaf, 'one segment of outbox.message');
	END LOOP;
END
$do$;

CREATE TABLE outbox.segment (
	segment smallint PRIMARY KEY,
	is_current boolean NOT NULL,
	turned_at timestamptz,
	delivered_at timestamptz
);
COMMENT ON TABLE outbox.segment IS 'the ring of segments; written by the relay alone';
COMMENT ON COLUMN outbox.segment.segment IS 'N of outbox.message_N';
COMMENT ON COLUMN outbox.segment.is_current IS 'publishing writes to this segment';
COMMENT ON COLUMN outbox.segment.turned_at IS 'when publishing moved on to it last';
COMMENT ON COLUMN outbox.segment.delivered_at IS 'when all in it was seen to be delivered; retention counts from here';
INSERT INTO outbox.segment SELECT i, i OPERATOR(pg_catalog.=) 0, pg_catalog.now(), NULL FROM pg_catalog.generate_series(0, 7) AS i;

-- ---------------------------------------------------------------------------
-- The relay's progress. done: everything visible in this snapshot is
-- delivered. batch: what is being sent; of it, ids up to position are
-- delivered. Not dumped: a copy of the database must not go on from here.
-- ---------------------------------------------------------------------------

CREATE TABLE outbox.relay_state (
	cursor_id integer PRIMARY KEY,
	writer_xid xid NOT NULL,
	database_oid oid NOT NULL,
	done pg_snapshot NOT NULL,
	done_next_xid xid8 NOT NULL,
	tail_id bigint NOT NULL,
	batch pg_snapshot,
	batch_next_xid xid8,
	batch_tail_id bigint,
	batch_max_id bigint,
	nonce uuid
) USING heap WITH (fillfactor = 10);
COMMENT ON TABLE outbox.relay_state IS 'what is delivered, in snapshots; written by the relay alone';
COMMENT ON COLUMN outbox.relay_state.cursor_id IS '0: the main cursor; else that of a row in outbox.held_lane';
COMMENT ON COLUMN outbox.relay_state.writer_xid IS 'transaction that wrote this row; differs from xmin in a logical copy';
COMMENT ON COLUMN outbox.relay_state.database_oid IS 'database it was written in; differs in a copied database';
COMMENT ON COLUMN outbox.relay_state.done IS 'every message visible in this snapshot is delivered';
COMMENT ON COLUMN outbox.relay_state.done_next_xid IS 'next xid when done was taken';
COMMENT ON COLUMN outbox.relay_state.tail_id IS 'every message with xid >= done_next_xid has a higher id';
COMMENT ON COLUMN outbox.relay_state.batch IS 'snapshot of the batch under way, if any';
COMMENT ON COLUMN outbox.relay_state.batch_next_xid IS 'becomes done_next_xid';
COMMENT ON COLUMN outbox.relay_state.batch_tail_id IS 'becomes tail_id';
COMMENT ON COLUMN outbox.relay_state.batch_max_id IS 'no message of the batch has a higher id';
COMMENT ON COLUMN outbox.relay_state.nonce IS 'exactly once: a position in Kafka with this nonce is one in this batch';

CREATE TABLE outbox.relay_position (
	cursor_id integer PRIMARY KEY,
	position bigint NOT NULL
) USING heap WITH (fillfactor = 10);
COMMENT ON TABLE outbox.relay_position IS 'progress within the batch under way; written by the relay alone';
COMMENT ON COLUMN outbox.relay_position.cursor_id IS '0: the main cursor; else that of a row in outbox.held_lane';
COMMENT ON COLUMN outbox.relay_position.position IS 'messages of the batch up to this id are delivered';

-- A new outbox has delivered nothing: no xid is below 3, the first normal one.
-- (The xid of now would not do: an older transaction may still publish.)
-- writer_xid has to be this very (sub)transaction, which only xmin tells.
INSERT INTO outbox.relay_state (cursor_id, writer_xid, database_oid, done, done_next_xid, tail_id)
	SELECT 0, '0', d.oid, '3:3:', '3', 0
	FROM pg_catalog.pg_database AS d
	WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();
UPDATE outbox.relay_state SET writer_xid = xmin;
INSERT INTO outbox.relay_position (cursor_id, position) VALUES (0, 0);

-- What is known of Kafka transactions, for outbox_kafka.delivery =
-- exactly_once. Not dumped either.
CREATE TABLE outbox.relay_transaction (
	producer integer PRIMARY KEY,
	defined text,
	committed text,
	cluster text,
	parked bigint[]
) USING heap WITH (fillfactor = 10);
COMMENT ON TABLE outbox.relay_transaction IS 'Kafka transactions of the relay''s producers; written by the relay alone';
COMMENT ON COLUMN outbox.relay_transaction.producer IS '0: that of the main cursor; 1: that of held lanes and parked messages';
COMMENT ON COLUMN outbox.relay_transaction.defined IS 'nonce under which its next position is, or was, stored in Kafka';
COMMENT ON COLUMN outbox.relay_transaction.committed IS 'nonce that Kafka had when this was written';
COMMENT ON COLUMN outbox.relay_transaction.cluster IS 'id of the Kafka cluster';
COMMENT ON COLUMN outbox.relay_transaction.parked IS 'ids of the parked messages that the definition is about, if it is about such';
INSERT INTO outbox.relay_transaction (producer) VALUES (0), (1);

-- Lanes that are held: cursors other than the main one, which passes over
-- their messages.
CREATE TABLE outbox.held_lane (
	cursor_id integer PRIMARY KEY CHECK (cursor_id OPERATOR(pg_catalog.>) 0),
	topic text NOT NULL,
	partition integer,
	partitions integer,
	since timestamptz NOT NULL,
	reason text NOT NULL CHECK (reason OPERATOR(pg_catalog.=) ANY (ARRAY['no answer', 'refused', 'paused', 'isolated'])),
	error text,
	waiting bigint NOT NULL,
	CHECK ((partition IS NULL) OPERATOR(pg_catalog.=) (partitions IS NULL))
) USING heap WITH (fillfactor = 10);
COMMENT ON TABLE outbox.held_lane IS 'lanes with a cursor of their own; written by the relay alone; see the view outbox.held_lanes';
COMMENT ON COLUMN outbox.held_lane.cursor_id IS 'its cursor in outbox.relay_state and outbox.relay_position';
COMMENT ON COLUMN outbox.held_lane.topic IS 'Kafka topic';
COMMENT ON COLUMN outbox.held_lane.partition IS 'NULL: the whole topic, but for partitions that are held themselves';
COMMENT ON COLUMN outbox.held_lane.partitions IS 'number of partitions that keys are spread over as long as this is held';
COMMENT ON COLUMN outbox.held_lane.since IS 'when it was held';
COMMENT ON COLUMN outbox.held_lane.reason IS 'no answer: no acknowledgement while others had some; refused: the broker does not know or allow the topic; paused: by outbox.pause(topic); isolated: it refused a batch, whose messages are sent in small numbers until the refused one is found';
COMMENT ON COLUMN outbox.held_lane.error IS 'what the broker said last, if it said something';
COMMENT ON COLUMN outbox.held_lane.waiting IS 'messages passed over and not delivered; about';

CREATE FUNCTION outbox.lane_of_message(key bytea, partition integer, id bigint, partitions integer) RETURNS integer
	LANGUAGE c IMMUTABLE PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_lane_of_message';
COMMENT ON FUNCTION outbox.lane_of_message(bytea, integer, bigint, integer) IS 'which of so many partitions a message goes to';

-- Of the cursor that a message belongs to: that of its lane, if it is held.
CREATE FUNCTION outbox.is_delivered(xid xid8, id bigint, topic text, key bytea, partition integer) RETURNS boolean
	LANGUAGE sql STABLE PARALLEL SAFE
	SET search_path = pg_catalog, pg_temp
	AS $$
		SELECT pg_catalog.pg_visible_in_snapshot(is_delivered.xid, s.done)
			OR coalesce(pg_catalog.pg_visible_in_snapshot(is_delivered.xid, s.batch)
						AND is_delivered.id <= p.position, false)
		FROM outbox.relay_state AS s, outbox.relay_position AS p
		WHERE s.cursor_id = p.cursor_id
		  AND s.cursor_id = coalesce(
				(SELECT h.cursor_id FROM outbox.held_lane AS h
				 WHERE h.topic = is_delivered.topic
				   AND (h.partition IS NULL OR h.partition =
						outbox.lane_of_message(is_delivered.key, is_delivered.partition, is_delivered.id, h.partitions))
				 ORDER BY h.partition NULLS LAST LIMIT 1), 0)
	$$;
COMMENT ON FUNCTION outbox.is_delivered(xid8, bigint, text, bytea, integer) IS 'whether the progress on disk covers a message';

-- ---------------------------------------------------------------------------
-- Steering. Tables of their own, so that the relay's stay the relay's.
-- ---------------------------------------------------------------------------

CREATE TABLE outbox.relay_control (
	topic text PRIMARY KEY,
	paused_at timestamptz NOT NULL,
	paused_by text NOT NULL
);
COMMENT ON TABLE outbox.relay_control IS 'what is paused; topic * means everything';
COMMENT ON COLUMN outbox.relay_control.topic IS '* for the whole relay';
COMMENT ON COLUMN outbox.relay_control.paused_at IS 'since when';
COMMENT ON COLUMN outbox.relay_control.paused_by IS 'role that asked for it';

CREATE FUNCTION outbox.relay_control_changed() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_relay_control_changed';
COMMENT ON FUNCTION outbox.relay_control_changed() IS 'makes the relay read outbox.relay_control again at commit';
CREATE TRIGGER relay_control_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.relay_control
	FOR EACH STATEMENT EXECUTE FUNCTION outbox.relay_control_changed();
ALTER TABLE outbox.relay_control ENABLE ALWAYS TRIGGER relay_control_changed;

CREATE TABLE outbox.relay_conflict (
	id integer PRIMARY KEY CHECK (id OPERATOR(pg_catalog.=) 1),
	what text NOT NULL,
	found_at timestamptz NOT NULL,
	claimed_at timestamptz,
	claimed_by text
) USING heap;
COMMENT ON TABLE outbox.relay_conflict IS 'why the relay does not send before outbox.claim(), if it does not; with exactly_once';
COMMENT ON COLUMN outbox.relay_conflict.id IS 'always 1: there is one row, or none';
COMMENT ON COLUMN outbox.relay_conflict.what IS 'what was found';
COMMENT ON COLUMN outbox.relay_conflict.found_at IS 'when';
COMMENT ON COLUMN outbox.relay_conflict.claimed_at IS 'when outbox.claim() was called; the relay then deletes the row';
COMMENT ON COLUMN outbox.relay_conflict.claimed_by IS 'role that called it';
CREATE TRIGGER relay_conflict_changed
	AFTER UPDATE OR DELETE OR TRUNCATE ON outbox.relay_conflict
	FOR EACH STATEMENT EXECUTE FUNCTION outbox.relay_control_changed();
ALTER TABLE outbox.relay_conflict ENABLE ALWAYS TRIGGER relay_conflict_changed;

CREATE FUNCTION outbox.claim() RETURNS void
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		UPDATE outbox.relay_conflict
			SET claimed_at = pg_catalog.clock_timestamp(), claimed_by = session_user
			WHERE claimed_at IS NULL
	$$;
COMMENT ON FUNCTION outbox.claim() IS 'end the state conflict: this database is the one that sends, to the Kafka cluster that is set';

CREATE FUNCTION outbox.pause() RETURNS void
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		INSERT INTO outbox.relay_control (topic, paused_at, paused_by)
			VALUES ('*', pg_catalog.clock_timestamp(), session_user)
			ON CONFLICT (topic) DO NOTHING
	$$;
COMMENT ON FUNCTION outbox.pause() IS 'stop sending after what is in flight; publishing goes on';

CREATE FUNCTION outbox.resume() RETURNS void
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$ DELETE FROM outbox.relay_control WHERE topic = '*' $$;
COMMENT ON FUNCTION outbox.resume() IS 'end outbox.pause()';

CREATE FUNCTION outbox.pause(topic text) RETURNS void
	LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		INSERT INTO outbox.relay_control AS c (topic, paused_at, paused_by)
			VALUES (pause.topic, pg_catalog.clock_timestamp(), session_user)
			ON CONFLICT (topic) DO NOTHING
	$$;
COMMENT ON FUNCTION outbox.pause(text) IS 'hold one topic; the others go on';

CREATE FUNCTION outbox.resume(topic text) RETURNS void
	LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$ DELETE FROM outbox.relay_control AS c WHERE c.topic = resume.topic $$;
COMMENT ON FUNCTION outbox.resume(text) IS 'end outbox.pause(topic): what waited goes out first, in order';

-- ---------------------------------------------------------------------------
-- Parked: messages that wait for a decision. Restored ones come here, so that
-- a restored copy never publishes by surprise.
-- ---------------------------------------------------------------------------

CREATE TABLE outbox.parked_message (
	id bigint PRIMARY KEY,
	event_id uuid NOT NULL,
	topic text NOT NULL,
	key bytea,
	payload bytea,
	headers jsonb,
	partition integer,
	correlation_id text,
	created_at timestamptz NOT NULL,
	reason text NOT NULL,
	error text,
	parked_at timestamptz NOT NULL,
	attempts integer NOT NULL DEFAULT 0,
	next_try_at timestamptz
);
CREATE INDEX parked_message_event_id ON outbox.parked_message (event_id);
COMMENT ON TABLE outbox.parked_message IS 'messages set aside; see the view outbox.parked';
COMMENT ON COLUMN outbox.parked_message.id IS 'its id in outbox.message';
COMMENT ON COLUMN outbox.parked_message.event_id IS 'identity of the event';
COMMENT ON COLUMN outbox.parked_message.topic IS 'Kafka topic';
COMMENT ON COLUMN outbox.parked_message.key IS 'record key';
COMMENT ON COLUMN outbox.parked_message.payload IS 'record value';
COMMENT ON COLUMN outbox.parked_message.headers IS 'headers as published';
COMMENT ON COLUMN outbox.parked_message.partition IS 'explicit partition';
COMMENT ON COLUMN outbox.parked_message.correlation_id IS 'header correlation-id';
COMMENT ON COLUMN outbox.parked_message.created_at IS 'when it was published';
COMMENT ON COLUMN outbox.parked_message.reason IS 'refused: by the broker; behind: an earlier one of its topic and key is parked; restored: it came with a dump or a copy';
COMMENT ON COLUMN outbox.parked_message.error IS 'what the broker said, if it was asked';
COMMENT ON COLUMN outbox.parked_message.parked_at IS 'when it was set aside';
COMMENT ON COLUMN outbox.parked_message.attempts IS 'how often the broker refused it';
COMMENT ON COLUMN outbox.parked_message.next_try_at IS 'when it is sent again; NULL: it waits for a decision or for an earlier one of its key';
CREATE INDEX parked_message_key ON outbox.parked_message (topic, pg_catalog.md5(key), id);
CREATE INDEX parked_message_next_try_at ON outbox.parked_message (next_try_at) WHERE next_try_at IS NOT NULL;

CREATE FUNCTION outbox.wake_relay() RETURNS void
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_wake_relay';
COMMENT ON FUNCTION outbox.wake_relay() IS 'makes the relay look at what was decided, at commit';

CREATE FUNCTION outbox.retry(topic text) RETURNS bigint
	LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		WITH due AS (
			UPDATE outbox.parked_message AS p SET next_try_at = pg_catalog.clock_timestamp()
			WHERE p.topic = retry.topic AND p.reason <> 'restored'
			RETURNING 1)
		SELECT count(*) FROM due, (SELECT outbox.wake_relay() OFFSET 0) AS w
	$$;
COMMENT ON FUNCTION outbox.retry(text) IS 'send the parked messages of a topic again now; returns how many there are';

CREATE FUNCTION outbox.retry(event_id uuid) RETURNS bigint
	LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		WITH due AS (
			UPDATE outbox.parked_message AS p SET next_try_at = pg_catalog.clock_timestamp()
			WHERE p.event_id = retry.event_id AND p.reason <> 'restored'
			RETURNING 1)
		SELECT count(*) FROM due, (SELECT outbox.wake_relay() OFFSET 0) AS w
	$$;
COMMENT ON FUNCTION outbox.retry(uuid) IS 'send a parked message again now; returns how many there are';

-- What was given up. The relay writes it for messages of held lanes, in the
-- transaction that moves the lane's cursor past them, so a message is never
-- both sent and here; outbox.discard() does for parked ones. The relay takes a
-- row away when the message itself is not retained any more.
CREATE TABLE outbox.discarded_message (
	id bigint PRIMARY KEY,
	event_id uuid NOT NULL,
	topic text NOT NULL,
	created_at timestamptz NOT NULL,
	discarded_at timestamptz NOT NULL,
	discarded_by text NOT NULL
) USING heap;
CREATE INDEX discarded_message_event_id ON outbox.discarded_message (event_id);
COMMENT ON TABLE outbox.discarded_message IS 'messages that were given up; see outbox.discard() and outbox.discard_topic()';
COMMENT ON COLUMN outbox.discarded_message.id IS 'its id in outbox.message';
COMMENT ON COLUMN outbox.discarded_message.event_id IS 'identity of the event';
COMMENT ON COLUMN outbox.discarded_message.topic IS 'Kafka topic';
COMMENT ON COLUMN outbox.discarded_message.created_at IS 'when it was published';
COMMENT ON COLUMN outbox.discarded_message.discarded_at IS 'when it was given up';
COMMENT ON COLUMN outbox.discarded_message.discarded_by IS 'role that asked for it';

-- Messages of held lanes are the relay's to give up: it alone knows which of
-- them it has sent.
CREATE TABLE outbox.discard_request (
	request_id uuid PRIMARY KEY,
	topic text NOT NULL,
	message_id bigint,
	upto pg_snapshot,
	requested_at timestamptz NOT NULL,
	requested_by text NOT NULL,
	if_unsent boolean NOT NULL DEFAULT false,
	CHECK ((message_id IS NULL) OPERATOR(pg_catalog.<>) (upto IS NULL))
) USING heap;
COMMENT ON TABLE outbox.discard_request IS 'messages that the relay is asked to give up; it removes what is done';
COMMENT ON COLUMN outbox.discard_request.request_id IS 'random';
COMMENT ON COLUMN outbox.discard_request.topic IS 'Kafka topic';
COMMENT ON COLUMN outbox.discard_request.message_id IS 'one message; NULL: all that upto shows';
COMMENT ON COLUMN outbox.discard_request.upto IS 'what had been published when it was asked for';
COMMENT ON COLUMN outbox.discard_request.requested_at IS 'when it was asked for';
COMMENT ON COLUMN outbox.discard_request.requested_by IS 'role that asked for it';
COMMENT ON COLUMN outbox.discard_request.if_unsent IS 'only if it certainly has not been sent, also in a held lane';

CREATE FUNCTION outbox.discard(event_id uuid) RETURNS bigint
	LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		WITH gone AS (
			DELETE FROM outbox.parked_message AS p WHERE p.event_id = discard.event_id
			RETURNING p.id, p.event_id, p.topic, p.created_at),
		noted AS (
			INSERT INTO outbox.discarded_message (id, event_id, topic, created_at, discarded_at, discarded_by)
			SELECT g.id, g.event_id, g.topic, g.created_at, clock_timestamp(), session_user FROM gone AS g
			ON CONFLICT (id) DO NOTHING),
		asked AS (
			INSERT INTO outbox.discard_request (request_id, topic, message_id, requested_at, requested_by)
			SELECT gen_random_uuid(), m.topic, m.id, clock_timestamp(), session_user
			FROM outbox.message AS m
			WHERE m.event_id = discard.event_id
			  AND NOT outbox.is_delivered(m.xid, m.id, m.topic, m.key, m.partition)
			  AND NOT EXISTS (SELECT FROM outbox.parked_message AS p WHERE p.id = m.id)
			RETURNING 1)
		SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM asked)
		FROM (SELECT outbox.wake_relay() OFFSET 0) AS w
	$$;
COMMENT ON FUNCTION outbox.discard(uuid) IS 'give up for ever a message that is parked, waits in a held lane or has not been sent yet; those behind it go on; returns how many there were, of which the relay may have sent those that were just going out';

CREATE FUNCTION outbox.discard_topic(topic text) RETURNS bigint
	LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
	DECLARE
		paused boolean := EXISTS (SELECT FROM outbox.relay_control AS c WHERE c.topic = discard_topic.topic);
		waiting bigint;
	BEGIN
		IF NOT paused AND NOT EXISTS (SELECT FROM outbox.held_lane AS h WHERE h.topic = discard_topic.topic) THEN
			RAISE EXCEPTION 'topic "%" is not held', discard_topic.topic
				USING ERRCODE = 'object_not_in_prerequisite_state',
					  HINT = 'See outbox.held_lanes; outbox.pause(topic) holds a topic.';
		END IF;
		-- one statement: what is counted is what the snapshot shows
		WITH asked AS (
			INSERT INTO outbox.discard_request (request_id, topic, upto, requested_at, requested_by)
			VALUES (gen_random_uuid(), discard_topic.topic, pg_current_snapshot(), clock_timestamp(), session_user))
		SELECT count(*) INTO waiting
		FROM outbox.message AS m
			 LEFT JOIN LATERAL (
				SELECT h.cursor_id FROM outbox.held_lane AS h
				WHERE h.topic = m.topic
				  AND (h.partition IS NULL OR h.partition =
					   outbox.lane_of_message(m.key, m.partition, m.id, h.partitions))
				ORDER BY h.partition NULLS LAST LIMIT 1) AS h ON true,
			 outbox.relay_state AS s, outbox.relay_position AS p
		WHERE m.topic = discard_topic.topic
		  AND (h.cursor_id IS NOT NULL OR paused)
		  AND s.cursor_id = coalesce(h.cursor_id, 0)
		  AND p.cursor_id = s.cursor_id
		  AND pg_visible_in_snapshot(m.xid, pg_current_snapshot())
		  AND NOT pg_visible_in_snapshot(m.xid, s.done)
		  AND NOT coalesce(pg_visible_in_snapshot(m.xid, s.batch) AND m.id <= p.position, false)
		  AND NOT EXISTS (SELECT FROM outbox.parked_message AS q WHERE q.id = m.id);
		PERFORM outbox.wake_relay();
		RETURN waiting;
	END
	$$;
COMMENT ON FUNCTION outbox.discard_topic(text) IS 'give up for ever what waits in the held lanes of a topic, not what is published from now on; returns how many there were';

-- ---------------------------------------------------------------------------
-- Publishing
-- ---------------------------------------------------------------------------

CREATE FUNCTION outbox.publish(topic text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
		partition integer DEFAULT NULL, event_id uuid DEFAULT NULL, correlation_id text DEFAULT NULL) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_publish_jsonb';
CREATE FUNCTION outbox.publish(topic text, payload json, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
		partition integer DEFAULT NULL, event_id uuid DEFAULT NULL, correlation_id text DEFAULT NULL) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_publish_text';
CREATE FUNCTION outbox.publish(topic text, payload text, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
		partition integer DEFAULT NULL, event_id uuid DEFAULT NULL, correlation_id text DEFAULT NULL) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_publish_text';
CREATE FUNCTION outbox.publish(topic text, payload bytea, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
		partition integer DEFAULT NULL, event_id uuid DEFAULT NULL, correlation_id text DEFAULT NULL) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_publish_bytea_text';
-- A bytea key has no default: publish(topic, bytea) would be ambiguous.
CREATE FUNCTION outbox.publish(topic text, payload bytea, key bytea, headers jsonb DEFAULT NULL,
		partition integer DEFAULT NULL, event_id uuid DEFAULT NULL, correlation_id text DEFAULT NULL) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_publish_bytea';
COMMENT ON FUNCTION outbox.publish(text, jsonb, text, jsonb, integer, uuid, text) IS 'publish a message when this transaction commits; returns the event id';
COMMENT ON FUNCTION outbox.publish(text, json, text, jsonb, integer, uuid, text) IS 'publish a message when this transaction commits; returns the event id';
COMMENT ON FUNCTION outbox.publish(text, text, text, jsonb, integer, uuid, text) IS 'publish a message when this transaction commits; returns the event id';
COMMENT ON FUNCTION outbox.publish(text, bytea, text, jsonb, integer, uuid, text) IS 'publish a message when this transaction commits; returns the event id';
COMMENT ON FUNCTION outbox.publish(text, bytea, bytea, jsonb, integer, uuid, text) IS 'publish a message when this transaction commits; returns the event id';

CREATE TABLE outbox.publish_grant (
	role_name text PRIMARY KEY,
	topics text[] NOT NULL
) USING heap;
COMMENT ON TABLE outbox.publish_grant IS 'who may publish where; see outbox.grant_publish()';
COMMENT ON COLUMN outbox.publish_grant.role_name IS 'a role; its members may as well';
COMMENT ON COLUMN outbox.publish_grant.topics IS 'patterns of topic names, * stands for any characters';

CREATE FUNCTION outbox.publish_grant_changed() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_publish_grant_changed';
COMMENT ON FUNCTION outbox.publish_grant_changed() IS 'makes every session read outbox.publish_grant again';
CREATE TRIGGER publish_grant_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.publish_grant
	FOR EACH STATEMENT EXECUTE FUNCTION outbox.publish_grant_changed();
ALTER TABLE outbox.publish_grant ENABLE ALWAYS TRIGGER publish_grant_changed;

-- What the broker told the relay. Not dumped: it belongs to the cluster, and is
-- asked for again. Sessions look at it when they publish.
CREATE TABLE outbox.topic_limit (
	topic text PRIMARY KEY,
	max_message_bytes integer NOT NULL CHECK (max_message_bytes OPERATOR(pg_catalog.>) 0),
	compressed boolean NOT NULL,
	changed_at timestamptz NOT NULL
) USING heap;
COMMENT ON TABLE outbox.topic_limit IS 'how large a message of a topic may be; written by the relay alone';
COMMENT ON COLUMN outbox.topic_limit.topic IS 'Kafka topic';
COMMENT ON COLUMN outbox.topic_limit.max_message_bytes IS 'its max.message.bytes, as the broker said last';
COMMENT ON COLUMN outbox.topic_limit.compressed IS 'the relay compresses what it sends: a larger message may fit, publishing refuses none';
COMMENT ON COLUMN outbox.topic_limit.changed_at IS 'when the relay heard of it';

CREATE FUNCTION outbox.topic_limit_changed() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_topic_limit_changed';
COMMENT ON FUNCTION outbox.topic_limit_changed() IS 'makes every session read outbox.topic_limit again';
CREATE TRIGGER topic_limit_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.topic_limit
	FOR EACH STATEMENT EXECUTE FUNCTION outbox.topic_limit_changed();
ALTER TABLE outbox.topic_limit ENABLE ALWAYS TRIGGER topic_limit_changed;

CREATE FUNCTION outbox.grant_publish(role regrole, topics text[] DEFAULT '{*}') RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
	DECLARE
		name text := (SELECT r.rolname FROM pg_catalog.pg_roles AS r WHERE r.oid = role);
		signature regprocedure;
		names text[] := ARRAY['publish', 'expect_confirmation', 'wait_decided', 'confirm_by_message', 'reject_by_message'];
	BEGIN
		IF name IS NULL THEN
			RAISE EXCEPTION 'role with OID % does not exist', role::oid USING ERRCODE = 'undefined_object';
		END IF;
		IF topics IS NULL OR array_position(topics, NULL) IS NOT NULL OR cardinality(topics) = 0 THEN
			RAISE EXCEPTION 'topics must be a non-empty array of patterns without NULL'
				USING ERRCODE = 'invalid_parameter_value',
					  HINT = 'Use ''{*}'' for every topic, or outbox.revoke_publish() for none.';
		END IF;
		INSERT INTO outbox.publish_grant AS g (role_name, topics) VALUES (name, grant_publish.topics)
			ON CONFLICT (role_name) DO UPDATE SET topics = excluded.topics;
		EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', name);
		EXECUTE format('GRANT INSERT (topic, key, payload, headers, partition, event_id, correlation_id),
							  SELECT (id, event_id) ON outbox.message TO %I', name);
		FOR signature IN
			SELECT p.oid FROM pg_catalog.pg_proc AS p
			WHERE p.pronamespace = 'outbox'::regnamespace AND p.proname = ANY (names)
		LOOP
			EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', signature, name);
		END LOOP;
	END
	$$;
COMMENT ON FUNCTION outbox.grant_publish(regrole, text[]) IS 'let a role (and its members) publish to topics that match one of the patterns';

CREATE FUNCTION outbox.revoke_publish(role regrole) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
	DECLARE
		name text := (SELECT r.rolname FROM pg_catalog.pg_roles AS r WHERE r.oid = role);
		signature regprocedure;
		names text[] := ARRAY['publish', 'expect_confirmation', 'wait_decided', 'confirm_by_message', 'reject_by_message'];
	BEGIN
		IF name IS NULL THEN
			RAISE EXCEPTION 'role with OID % does not exist', role::oid USING ERRCODE = 'undefined_object';
		END IF;
		DELETE FROM outbox.publish_grant AS g WHERE g.role_name = name;
		EXECUTE format('REVOKE INSERT (topic, key, payload, headers, partition, event_id, correlation_id),
							   SELECT (id, event_id) ON outbox.message FROM %I', name);
		FOR signature IN
			SELECT p.oid FROM pg_catalog.pg_proc AS p
			WHERE p.pronamespace = 'outbox'::regnamespace AND p.proname = ANY (names)
		LOOP
			EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM %I', signature, name);
		END LOOP;
		-- The schema stays open to a role that has other business in it.
		IF NOT EXISTS (
			SELECT FROM pg_catalog.pg_class AS c, aclexplode(c.relacl) AS a
				WHERE c.relnamespace = 'outbox'::regnamespace AND a.grantee = role
			UNION ALL
			SELECT FROM pg_catalog.pg_class AS c, pg_catalog.pg_attribute AS t, aclexplode(t.attacl) AS a
				WHERE c.relnamespace = 'outbox'::regnamespace AND t.attrelid = c.oid AND a.grantee = role
			UNION ALL
			SELECT FROM pg_catalog.pg_proc AS p, aclexplode(p.proacl) AS a
				WHERE p.pronamespace = 'outbox'::regnamespace AND a.grantee = role)
		THEN
			EXECUTE format('REVOKE USAGE ON SCHEMA outbox FROM %I', name);
		END IF;
	END
	$$;
COMMENT ON FUNCTION outbox.revoke_publish(regrole) IS 'undo outbox.grant_publish()';

-- ---------------------------------------------------------------------------
-- What tells this database from its copies. Not dumped: what a dump makes is
-- another one. A copy of the server's files has the same identity; see
-- outbox_kafka.identity_file.
-- ---------------------------------------------------------------------------

CREATE TABLE outbox.database_identity (
	identity uuid PRIMARY KEY,
	database_oid oid NOT NULL,
	made_at timestamptz NOT NULL
);
COMMENT ON TABLE outbox.database_identity IS 'what tells this database from its copies: one row';
COMMENT ON COLUMN outbox.database_identity.identity IS 'random; what outbox_kafka.identity_file has to name';
COMMENT ON COLUMN outbox.database_identity.database_oid IS 'database it was made for; differs in one copied with CREATE DATABASE';
COMMENT ON COLUMN outbox.database_identity.made_at IS 'when it was made';
INSERT INTO outbox.database_identity (identity, database_oid, made_at)
	SELECT pg_catalog.gen_random_uuid(), d.oid, pg_catalog.now()
	FROM pg_catalog.pg_database AS d
	WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();

CREATE FUNCTION outbox.identity() RETURNS uuid
	LANGUAGE sql STABLE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		SELECT i.identity FROM outbox.database_identity AS i, pg_catalog.pg_database AS d
		WHERE d.datname = current_database() AND i.database_oid = d.oid
	$$;
COMMENT ON FUNCTION outbox.identity() IS 'what outbox_kafka.identity_file has to name for this database to send; NULL in a copied one that has had no relay yet';

-- ---------------------------------------------------------------------------
-- A publication FOR ALL TABLES in another database with the extension brings
-- the rows of that one's tables: they are dropped. (message_before_insert
-- does so for messages.) Replica triggers fire in apply workers only.
-- ---------------------------------------------------------------------------

CREATE FUNCTION outbox.ignore_replicated() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_ignore_replicated';
COMMENT ON FUNCTION outbox.ignore_replicated() IS 'drops what logical replication brings from another outbox';

DO $do$
DECLARE
	name pg_catalog.text;
BEGIN
	FOREACH name IN ARRAY ARRAY['segment', 'relay_state', 'relay_position', 'relay_transaction', 'relay_control', 'relay_conflict', 'held_lane', 'parked_message', 'discarded_message', 'discard_request', 'publish_grant', 'topic_limit', 'database_identity'] LOOP
		EXECUTE pg_catalog.format(
			'CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON outbox.%1$I
			 FOR EACH ROW EXECUTE FUNCTION outbox.ignore_replicated()', name);
		EXECUTE pg_catalog.format('ALTER TABLE outbox.%1$I ENABLE REPLICA TRIGGER ignore_replicated', name);
	END LOOP;
END
$do$;

-- ---------------------------------------------------------------------------
-- Seeing. Status views hold no payload and no key.
-- ---------------------------------------------------------------------------

CREATE FUNCTION outbox.relay_status_row(
		OUT state text, OUT pid integer, OUT broker text, OUT started_at timestamptz,
		OUT in_flight bigint, OUT in_flight_bytes bigint, OUT last_id bigint,
		OUT pending_estimate bigint, OUT oldest_pending_age interval,
		OUT published bigint, OUT repeated bigint, OUT last_published_at timestamptz,
		OUT current_segment smallint, OUT last_error text, OUT last_error_at timestamptz)
	RETURNS record
	LANGUAGE c VOLATILE PARALLEL RESTRICTED
	AS 'MODULE_PATHNAME', 'outbox_kafka_relay_status';
COMMENT ON FUNCTION outbox.relay_status_row() IS 'behind outbox.relay_status';
CREATE VIEW outbox.relay_status AS SELECT * FROM outbox.relay_status_row();
COMMENT ON VIEW outbox.relay_status IS 'the relay of this database: one row';

CREATE FUNCTION outbox.topic_status_rows(
		OUT topic text, OUT partitions integer, OUT published bigint, OUT published_bytes bigint,
		OUT in_flight bigint, OUT last_published_at timestamptz,
		OUT last_error text, OUT last_error_at timestamptz)
	RETURNS SETOF record
	LANGUAGE c VOLATILE PARALLEL RESTRICTED
	AS 'MODULE_PATHNAME', 'outbox_kafka_topic_status';
COMMENT ON FUNCTION outbox.topic_status_rows() IS 'behind outbox.topic_status';
CREATE VIEW outbox.topic_status AS
	SELECT r.topic, r.partitions, l.max_message_bytes, r.published, r.published_bytes,
		   r.in_flight, r.last_published_at, r.last_error, r.last_error_at
	FROM outbox.topic_status_rows() AS r
		 LEFT JOIN outbox.topic_limit AS l ON l.topic OPERATOR(pg_catalog.=) r.topic;
COMMENT ON VIEW outbox.topic_status IS 'counters per topic since the server started';

CREATE FUNCTION outbox.backlog_row(OUT bytes bigint, OUT max_bytes bigint, OUT policy text)
	RETURNS record
	LANGUAGE c VOLATILE PARALLEL RESTRICTED
	AS 'MODULE_PATHNAME', 'outbox_kafka_backlog';
COMMENT ON FUNCTION outbox.backlog_row() IS 'behind outbox.backlog';
CREATE VIEW outbox.backlog AS SELECT * FROM outbox.backlog_row();
COMMENT ON VIEW outbox.backlog IS 'disk space that messages take, with indexes and TOAST, and the limit to it: one row';

CREATE TYPE outbox.pending_message AS (
	id bigint, event_id uuid, topic text, xid xid8, segment smallint, bytes integer, created_at timestamptz);
COMMENT ON TYPE outbox.pending_message IS 'a row of outbox.pending';
CREATE FUNCTION outbox.pending_rows() RETURNS SETOF outbox.pending_message
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_pending';
COMMENT ON FUNCTION outbox.pending_rows() IS 'behind outbox.pending';
-- In the target list, rows come one by one: LIMIT reads no more than it needs.
CREATE VIEW outbox.pending AS
	SELECT (p.m).id, (p.m).event_id, (p.m).topic, (p.m).bytes, (p.m).created_at,
		   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) (p.m).created_at AS age
	FROM (SELECT outbox.pending_rows() AS m) AS p;
COMMENT ON VIEW outbox.pending IS 'committed messages not known to be delivered, in the order they go out';

CREATE VIEW outbox.parked AS
	SELECT id, event_id, topic, reason, error, attempts, parked_at, next_try_at, created_at
	FROM outbox.parked_message;
COMMENT ON VIEW outbox.parked IS 'messages set aside, with the reason';

CREATE VIEW outbox.held_lanes AS
	SELECT topic, partition, since, reason, error, waiting AS messages_waiting
	FROM outbox.held_lane;
COMMENT ON VIEW outbox.held_lanes IS 'topics and partitions that wait while the others go on; partition NULL: the whole topic';

CREATE VIEW outbox.message_status AS
	SELECT m.event_id, m.id, m.topic,
		   CASE WHEN q.id IS NOT NULL THEN 'parked'
				WHEN d.id IS NOT NULL THEN 'discarded'
				WHEN pg_catalog.pg_visible_in_snapshot(m.xid, s.done)
				  OR coalesce(pg_catalog.pg_visible_in_snapshot(m.xid, s.batch)
							  AND m.id OPERATOR(pg_catalog.<=) p.position, false)
				THEN 'published' ELSE 'pending' END AS status,
		   m.correlation_id, m.created_at
	FROM outbox.message AS m
		 LEFT JOIN outbox.parked_message AS q ON q.id OPERATOR(pg_catalog.=) m.id
			   AND q.event_id OPERATOR(pg_catalog.=) m.event_id
		 LEFT JOIN outbox.discarded_message AS d ON d.id OPERATOR(pg_catalog.=) m.id
			   AND d.event_id OPERATOR(pg_catalog.=) m.event_id
		 LEFT JOIN LATERAL (
			SELECT h.cursor_id FROM outbox.held_lane AS h
			WHERE h.topic OPERATOR(pg_catalog.=) m.topic
			  AND (h.partition IS NULL OR h.partition OPERATOR(pg_catalog.=)
				   outbox.lane_of_message(m.key, m.partition, m.id, h.partitions))
			ORDER BY h.partition NULLS LAST LIMIT 1) AS h ON true,
		 outbox.relay_state AS s, outbox.relay_position AS p
	WHERE s.cursor_id OPERATOR(pg_catalog.=) coalesce(h.cursor_id, 0)
	  AND p.cursor_id OPERATOR(pg_catalog.=) coalesce(h.cursor_id, 0)
	UNION ALL
	SELECT q.event_id, q.id, q.topic, 'parked', q.correlation_id, q.created_at
	FROM outbox.parked_message AS q
	WHERE NOT EXISTS (SELECT FROM outbox.message AS m
					  WHERE m.event_id OPERATOR(pg_catalog.=) q.event_id
						AND m.id OPERATOR(pg_catalog.=) q.id)
	UNION ALL
	SELECT d.event_id, d.id, d.topic, 'discarded', NULL, d.created_at
	FROM outbox.discarded_message AS d
	WHERE NOT EXISTS (SELECT FROM outbox.message AS m
					  WHERE m.event_id OPERATOR(pg_catalog.=) d.event_id
						AND m.id OPERATOR(pg_catalog.=) d.id)
	  AND NOT EXISTS (SELECT FROM outbox.parked_message AS q
					  WHERE q.event_id OPERATOR(pg_catalog.=) d.event_id
						AND q.id OPERATOR(pg_catalog.=) d.id);
COMMENT ON VIEW outbox.message_status IS 'every retained message: pending, published, parked or discarded';

CREATE FUNCTION outbox.status(event_id uuid) RETURNS text
	LANGUAGE sql STABLE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		SELECT v.status FROM outbox.message_status AS v
		WHERE v.event_id = status.event_id ORDER BY v.id DESC LIMIT 1
	$$;
COMMENT ON FUNCTION outbox.status(uuid) IS 'pending, published, parked or discarded; NULL when it is not retained (any more)';

CREATE FUNCTION outbox.wait_published(event_id uuid, timeout interval) RETURNS boolean
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_wait_published';
COMMENT ON FUNCTION outbox.wait_published(uuid, interval) IS 'wait until a committed message is acknowledged: true, false at the timeout or when it was discarded, NULL when it is not retained';

-- ---------------------------------------------------------------------------
-- Consuming. A worker for each subscription (or several, which share its
-- partitions) reads from the positions in inbox.offset, and stores new ones in
-- the transaction of the handler that it calls.
-- ---------------------------------------------------------------------------

CREATE SCHEMA inbox;
COMMENT ON SCHEMA inbox IS 'outbox_kafka: handling of Kafka messages by SQL functions';

CREATE TYPE inbox.message AS (
	topic text,
	partition integer,
	"offset" bigint,
	key bytea,
	payload bytea,
	headers jsonb,
	"timestamp" timestamptz,
	event_id uuid,
	correlation_id text
);
COMMENT ON TYPE inbox.message IS 'a message from Kafka, the argument of a handler';
COMMENT ON COLUMN inbox.message.topic IS 'Kafka topic';
COMMENT ON COLUMN inbox.message.partition IS 'partition of the topic';
COMMENT ON COLUMN inbox.message."offset" IS 'place in the partition';
COMMENT ON COLUMN inbox.message.key IS 'record key, or NULL';
COMMENT ON COLUMN inbox.message.payload IS 'record value; NULL is a tombstone';
COMMENT ON COLUMN inbox.message.headers IS 'object of string, null or array of those, {"base64": ...} for bytes that are no text; NULL without headers';
COMMENT ON COLUMN inbox.message."timestamp" IS 'time of the record, if it has one';
COMMENT ON COLUMN inbox.message.event_id IS 'header ce_id or id, if it is a UUID';
COMMENT ON COLUMN inbox.message.correlation_id IS 'header correlation-id';

-- Without SET: they are inlined into the statements of a handler.
CREATE FUNCTION inbox.payload_text(message inbox.message) RETURNS text
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	AS $$ SELECT pg_catalog.convert_from((message).payload, 'UTF8') $$;
COMMENT ON FUNCTION inbox.payload_text(inbox.message) IS 'the payload as text; an error if it is not UTF-8';

CREATE FUNCTION inbox.payload_json(message inbox.message) RETURNS jsonb
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	AS $$ SELECT pg_catalog.convert_from((message).payload, 'UTF8')::pg_catalog.jsonb $$;
COMMENT ON FUNCTION inbox.payload_json(inbox.message) IS 'the payload as JSON; an error if it is none';

CREATE SEQUENCE inbox.subscription_id AS integer;
COMMENT ON SEQUENCE inbox.subscription_id IS 'ids of subscriptions; none is used again';

-- Functions and roles stand here by name: a reg* column would keep pg_upgrade
-- from its work.
CREATE TABLE inbox.subscription (
	id integer PRIMARY KEY DEFAULT pg_catalog.nextval('inbox.subscription_id'::pg_catalog.regclass),
	name text NOT NULL UNIQUE,
	owner text NOT NULL,
	topics text[] NOT NULL,
	handler text NOT NULL,
	start_from text NOT NULL,
	max_attempts integer NOT NULL CHECK (max_attempts OPERATOR(pg_catalog.>=) 1),
	retry_backoff interval NOT NULL,
	on_failure text NOT NULL CHECK (on_failure OPERATOR(pg_catalog.=) ANY (ARRAY['skip', 'stop_partition'])),
	workers integer NOT NULL CHECK (workers OPERATOR(pg_catalog.>=) 1),
	batch_size integer NOT NULL CHECK (batch_size OPERATOR(pg_catalog.>=) 1),
	dedupe_window interval,
	paused boolean NOT NULL DEFAULT false,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) USING heap;
COMMENT ON TABLE inbox.subscription IS 'what is read from Kafka, and who handles it; see inbox.subscribe()';
COMMENT ON COLUMN inbox.subscription.id IS 'number of the subscription';
COMMENT ON COLUMN inbox.subscription.name IS 'its name';
COMMENT ON COLUMN inbox.subscription.owner IS 'role as which the handler runs: who called inbox.subscribe()';
COMMENT ON COLUMN inbox.subscription.topics IS 'names of topics; what begins with ^ is a regular expression';
COMMENT ON COLUMN inbox.subscription.handler IS 'qualified name of the function';
COMMENT ON COLUMN inbox.subscription.start_from IS 'where a partition without a position is read from: earliest, latest (what comes after created_at) or a time';
COMMENT ON COLUMN inbox.subscription.max_attempts IS 'how often the handler is called for a message that fails';
COMMENT ON COLUMN inbox.subscription.retry_backoff IS 'pause after the first failure, doubled after each further one';
COMMENT ON COLUMN inbox.subscription.on_failure IS 'skip: the message becomes a dead letter; stop_partition: it and what is behind it waits for inbox.retry() or inbox.skip()';
COMMENT ON COLUMN inbox.subscription.workers IS 'number of workers, which share the partitions';
COMMENT ON COLUMN inbox.subscription.batch_size IS 'most messages of a transaction';
COMMENT ON COLUMN inbox.subscription.dedupe_window IS 'so long a second message with the same event id is passed over; NULL: event ids are not looked at';
COMMENT ON COLUMN inbox.subscription.paused IS 'inbox.pause() was called';
COMMENT ON COLUMN inbox.subscription.created_at IS 'when inbox.subscribe() was called';

CREATE TABLE inbox."offset" (
	subscription integer NOT NULL,
	topic text NOT NULL,
	partition integer NOT NULL,
	position bigint NOT NULL,
	end_offset bigint,
	cluster_id text,
	leader_epoch integer,
	last_offset bigint,
	last_fingerprint bigint,
	state text NOT NULL DEFAULT 'running',
	failing_offset bigint,
	attempts integer NOT NULL DEFAULT 0,
	next_try_at timestamptz,
	lost bigint NOT NULL DEFAULT 0,
	last_error text,
	last_error_at timestamptz,
	PRIMARY KEY (subscription, topic, partition)
) USING heap WITH (fillfactor = 50);
COMMENT ON TABLE inbox."offset" IS 'how far each partition is read; written by the inbox workers alone; see the view inbox.subscription_status';
COMMENT ON COLUMN inbox."offset".subscription IS 'id in inbox.subscription';
COMMENT ON COLUMN inbox."offset".topic IS 'Kafka topic';
COMMENT ON COLUMN inbox."offset".partition IS 'partition of the topic';
COMMENT ON COLUMN inbox."offset".position IS 'offset of the next message to handle';
COMMENT ON COLUMN inbox."offset".end_offset IS 'offset at which the next message will be written, as last heard';
COMMENT ON COLUMN inbox."offset".cluster_id IS 'Kafka cluster the position belongs to';
COMMENT ON COLUMN inbox."offset".leader_epoch IS 'leader epoch of the last message, if librdkafka tells';
COMMENT ON COLUMN inbox."offset".last_offset IS 'the last message that was handled';
COMMENT ON COLUMN inbox."offset".last_fingerprint IS 'hash of its time, key and payload: another message there means that the topic was made anew';
COMMENT ON COLUMN inbox."offset".state IS 'running; retrying: its next message has failed and is tried again; stopped: by on_failure => stop_partition; skipping: by inbox.skip(); missing: the topic or partition is not there; out of range: Kafka has no such offset any more; recreated: the topic was made anew; another cluster';
COMMENT ON COLUMN inbox."offset".failing_offset IS 'message that has failed';
COMMENT ON COLUMN inbox."offset".attempts IS 'how often';
COMMENT ON COLUMN inbox."offset".next_try_at IS 'when it is tried again';
COMMENT ON COLUMN inbox."offset".lost IS 'offsets that Kafka had removed before they were read';
COMMENT ON COLUMN inbox."offset".last_error IS 'what went wrong last';
COMMENT ON COLUMN inbox."offset".last_error_at IS 'when';

-- The positions are the workers' to write: what a user decides about them
-- stands here until they have seen it.
CREATE TABLE inbox.request (
	subscription integer NOT NULL,
	topic text NOT NULL,
	partition integer NOT NULL,
	kind text NOT NULL CHECK (kind OPERATOR(pg_catalog.=) ANY (ARRAY['earliest', 'latest', 'offset', 'time', 'retry', 'skip'])),
	to_offset bigint,
	to_time timestamptz,
	requested_at timestamptz NOT NULL,
	requested_by text NOT NULL,
	PRIMARY KEY (subscription, topic, partition)
) USING heap;
COMMENT ON TABLE inbox.request IS 'what inbox.seek(), inbox.retry() and inbox.skip() ask for; the workers remove what is done';
COMMENT ON COLUMN inbox.request.subscription IS 'id in inbox.subscription';
COMMENT ON COLUMN inbox.request.topic IS 'Kafka topic';
COMMENT ON COLUMN inbox.request.partition IS 'partition of the topic';
COMMENT ON COLUMN inbox.request.kind IS 'earliest, latest, offset, time: where to read on; retry, skip: the message that a stopped partition waits for';
COMMENT ON COLUMN inbox.request.to_offset IS 'for offset';
COMMENT ON COLUMN inbox.request.to_time IS 'for time: the first message from then on';
COMMENT ON COLUMN inbox.request.requested_at IS 'when it was asked for';
COMMENT ON COLUMN inbox.request.requested_by IS 'role that asked for it';

CREATE TABLE inbox.worker_problem (
	subscription integer NOT NULL,
	worker integer NOT NULL,
	problem text NOT NULL,
	since timestamptz NOT NULL,
	PRIMARY KEY (subscription, worker)
) USING heap;
COMMENT ON TABLE inbox.worker_problem IS 'what keeps a worker from a whole subscription or a topic of it; written by the inbox workers alone';
COMMENT ON COLUMN inbox.worker_problem.subscription IS 'id in inbox.subscription';
COMMENT ON COLUMN inbox.worker_problem.worker IS 'number of the worker, from 0';
COMMENT ON COLUMN inbox.worker_problem.problem IS 'what it is';
COMMENT ON COLUMN inbox.worker_problem.since IS 'since when';

CREATE SEQUENCE inbox.dead_letter_id AS bigint;
COMMENT ON SEQUENCE inbox.dead_letter_id IS 'ids of dead letters';

CREATE TABLE inbox.dead_letter (
	id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('inbox.dead_letter_id'::pg_catalog.regclass),
	subscription integer NOT NULL,
	subscription_name text NOT NULL,
	topic text NOT NULL,
	partition integer NOT NULL,
	"offset" bigint NOT NULL,
	key bytea,
	payload bytea,
	headers jsonb,
	"timestamp" timestamptz,
	event_id uuid,
	correlation_id text,
	sqlstate text,
	error text,
	attempts integer NOT NULL,
	failed_at timestamptz NOT NULL,
	retry_at timestamptz
) USING heap;
CREATE INDEX dead_letter_subscription ON inbox.dead_letter (subscription, id);
CREATE INDEX dead_letter_retry_at ON inbox.dead_letter (subscription, retry_at);
COMMENT ON TABLE inbox.dead_letter IS 'messages whose handler failed too often; see the view inbox.dead_letters';
COMMENT ON COLUMN inbox.dead_letter.id IS 'number of the dead letter';
COMMENT ON COLUMN inbox.dead_letter.subscription IS 'id in inbox.subscription';
COMMENT ON COLUMN inbox.dead_letter.subscription_name IS 'its name then';
COMMENT ON COLUMN inbox.dead_letter.topic IS 'Kafka topic';
COMMENT ON COLUMN inbox.dead_letter.partition IS 'partition of the topic';
COMMENT ON COLUMN inbox.dead_letter."offset" IS 'place in the partition';
COMMENT ON COLUMN inbox.dead_letter.key IS 'record key';
COMMENT ON COLUMN inbox.dead_letter.payload IS 'record value';
COMMENT ON COLUMN inbox.dead_letter.headers IS 'headers, as the handler saw them';
COMMENT ON COLUMN inbox.dead_letter."timestamp" IS 'time of the record';
COMMENT ON COLUMN inbox.dead_letter.event_id IS 'header ce_id or id';
COMMENT ON COLUMN inbox.dead_letter.correlation_id IS 'header correlation-id';
COMMENT ON COLUMN inbox.dead_letter.sqlstate IS 'code of the last error';
COMMENT ON COLUMN inbox.dead_letter.error IS 'its text';
COMMENT ON COLUMN inbox.dead_letter.attempts IS 'how often the handler was called';
COMMENT ON COLUMN inbox.dead_letter.failed_at IS 'when it failed last';
COMMENT ON COLUMN inbox.dead_letter.retry_at IS 'when inbox.retry() asked for another attempt';

-- Event ids that were handled, for subscriptions with a dedupe_window: a ring,
-- whose oldest table is emptied when what it holds is older than any window.
CREATE TABLE inbox.seen_ring (
	number smallint PRIMARY KEY,
	is_current boolean NOT NULL,
	turned_at timestamptz NOT NULL
) USING heap;
COMMENT ON TABLE inbox.seen_ring IS 'the ring of inbox.seen_N; written by the inbox workers alone';
COMMENT ON COLUMN inbox.seen_ring.number IS 'N of inbox.seen_N';
COMMENT ON COLUMN inbox.seen_ring.is_current IS 'event ids are written to this table';
COMMENT ON COLUMN inbox.seen_ring.turned_at IS 'when that began, or ended';
INSERT INTO inbox.seen_ring SELECT i, i OPERATOR(pg_catalog.=) 0, pg_catalog.now() FROM pg_catalog.generate_series(0, 3) AS i;

DO $do$
BEGIN
	FOR i IN 0 .. 3 LOOP
		EXECUTE pg_catalog.format(
			'CREATE TABLE inbox.seen_%1$s (
				subscription integer NOT NULL,
				event_id uuid NOT NULL,
				topic text NOT NULL,
				partition integer NOT NULL,
				"offset" bigint NOT NULL,
				PRIMARY KEY (subscription, event_id)
			 ) USING heap', i);
		EXECUTE pg_catalog.format('COMMENT ON TABLE inbox.seen_%s IS %L', i, 'event ids that were handled; written by the inbox workers alone');
		EXECUTE pg_catalog.format('COMMENT ON COLUMN inbox.seen_%s.subscription IS %L', i, 'id in inbox.subscription');
		EXECUTE pg_catalog.format('COMMENT ON COLUMN inbox.seen_%s.event_id IS %L', i, 'of the message');
		EXECUTE pg_catalog.format('COMMENT ON COLUMN inbox.seen_%s.topic IS %L', i, 'where it was first');
		EXECUTE pg_catalog.format('COMMENT ON COLUMN inbox.seen_%s.partition IS %L', i, 'where it was first');
		EXECUTE pg_catalog.format('COMMENT ON COLUMN inbox.seen_%s."offset" IS %L', i, 'where it was first');
	END LOOP;
END
$do$;

CREATE FUNCTION inbox.subscribe(name text, topics text[], handler regproc, start_from text DEFAULT 'earliest',
		max_attempts integer DEFAULT 5, retry_backoff interval DEFAULT '1 s', dedupe_window interval DEFAULT NULL,
		on_failure text DEFAULT 'skip', workers integer DEFAULT 1, batch_size integer DEFAULT 1000) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_subscribe';
COMMENT ON FUNCTION inbox.subscribe(text, text[], regproc, text, integer, interval, interval, text, integer, integer) IS 'have a function f(inbox.message) called for each message of these topics, as the current role';

CREATE FUNCTION inbox.unsubscribe(name text) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_unsubscribe';
COMMENT ON FUNCTION inbox.unsubscribe(text) IS 'end a subscription and forget its positions; its dead letters stay';

CREATE FUNCTION inbox.alter_subscription(name text, topics text[] DEFAULT NULL, handler regproc DEFAULT NULL,
		max_attempts integer DEFAULT NULL, retry_backoff interval DEFAULT NULL, dedupe_window interval DEFAULT NULL,
		on_failure text DEFAULT NULL, workers integer DEFAULT NULL, batch_size integer DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_alter';
COMMENT ON FUNCTION inbox.alter_subscription(text, text[], regproc, integer, interval, interval, text, integer, integer) IS 'change what is not NULL; positions are kept; a dedupe_window of 0 is none';

CREATE FUNCTION inbox.pause(name text) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_pause';
COMMENT ON FUNCTION inbox.pause(text) IS 'handle no message after this is committed';

CREATE FUNCTION inbox.resume(name text) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_resume';
COMMENT ON FUNCTION inbox.resume(text) IS 'end inbox.pause()';

CREATE FUNCTION inbox.seek(name text, "to" text, topic text DEFAULT NULL, partition integer DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_seek_text';
CREATE FUNCTION inbox.seek(name text, "to" timestamptz, topic text DEFAULT NULL, partition integer DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_seek_time';
CREATE FUNCTION inbox.seek(name text, "to" bigint, topic text, partition integer) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_seek_offset';
COMMENT ON FUNCTION inbox.seek(text, text, text, integer) IS 'read on from earliest, latest or a time, in a partition, a topic or all that is known; from the moment of the call no message is handled before this is committed; returns the number of partitions';
COMMENT ON FUNCTION inbox.seek(text, timestamptz, text, integer) IS 'read on from the first message of that time or later; see inbox.seek(text, text, text, integer)';
COMMENT ON FUNCTION inbox.seek(text, bigint, text, integer) IS 'read on from an offset of a partition; see inbox.seek(text, text, text, integer)';

CREATE FUNCTION inbox.retry(name text, topic text, partition integer) RETURNS bigint
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_retry_partition';
COMMENT ON FUNCTION inbox.retry(text, text, integer) IS 'try the failing message of a partition again now, with all attempts before it; returns how many there are';
CREATE FUNCTION inbox.retry(name text) RETURNS bigint
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_retry_all';
COMMENT ON FUNCTION inbox.retry(text) IS 'call the handler once more for each dead letter of a subscription; returns how many there are';
CREATE FUNCTION inbox.retry(dead_letter bigint) RETURNS bigint
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_retry_one';
COMMENT ON FUNCTION inbox.retry(bigint) IS 'call the handler once more for a dead letter; returns how many there are';

CREATE FUNCTION inbox.skip(name text, topic text, partition integer) RETURNS bigint
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_skip_partition';
COMMENT ON FUNCTION inbox.skip(text, text, integer) IS 'make the failing message of a partition a dead letter and go on behind it; returns how many there are';
CREATE FUNCTION inbox.skip(dead_letter bigint) RETURNS bigint
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_skip_one';
COMMENT ON FUNCTION inbox.skip(bigint) IS 'give up a dead letter for ever; returns how many there were';

CREATE FUNCTION inbox.worker_rows(OUT subscription integer, OUT worker integer, OUT state text, OUT pid integer,
		OUT started_at timestamptz, OUT handled bigint, OUT failed bigint, OUT last_activity_at timestamptz,
		OUT last_error text, OUT last_error_at timestamptz)
	RETURNS SETOF record
	LANGUAGE c VOLATILE PARALLEL RESTRICTED
	AS 'MODULE_PATHNAME', 'outbox_kafka_inbox_workers';
COMMENT ON FUNCTION inbox.worker_rows() IS 'behind inbox.workers';

CREATE VIEW inbox.workers AS
	SELECT s.name, w.worker, w.state, w.pid, w.started_at, w.handled, w.failed, w.last_activity_at,
		   coalesce(p.problem, w.last_error) AS last_error,
		   coalesce(p.since, w.last_error_at) AS last_error_at
	FROM inbox.worker_rows() AS w
		 JOIN inbox.subscription AS s ON s.id OPERATOR(pg_catalog.=) w.subscription
		 LEFT JOIN inbox.worker_problem AS p ON p.subscription OPERATOR(pg_catalog.=) w.subscription
			   AND p.worker OPERATOR(pg_catalog.=) w.worker;
COMMENT ON VIEW inbox.workers IS 'the workers of the subscriptions of this database; counters since the server started';

CREATE VIEW inbox.subscription_status AS
	SELECT s.name, o.topic, o.partition,
		   CASE WHEN s.paused THEN 'paused' ELSE o.state END AS state,
		   o.position, o.end_offset, greatest(o.end_offset OPERATOR(pg_catalog.-) o.position, 0) AS lag,
		   o.failing_offset, o.attempts, o.next_try_at, o.lost, o.last_error, o.last_error_at
	FROM inbox.subscription AS s
		 JOIN inbox."offset" AS o ON o.subscription OPERATOR(pg_catalog.=) s.id
	UNION ALL
	SELECT s.name, NULL, NULL,
		   CASE WHEN s.paused THEN 'paused' WHEN p.problem IS NULL THEN 'starting' ELSE 'waiting' END,
		   NULL, NULL, NULL, NULL, NULL, NULL, NULL, p.problem, p.since
	FROM inbox.subscription AS s
		 LEFT JOIN inbox.worker_problem AS p ON p.subscription OPERATOR(pg_catalog.=) s.id
			   AND p.worker OPERATOR(pg_catalog.<) s.workers
	WHERE p.problem IS NOT NULL
	   OR NOT EXISTS (SELECT FROM inbox."offset" AS o WHERE o.subscription OPERATOR(pg_catalog.=) s.id);
COMMENT ON VIEW inbox.subscription_status IS 'a row for each partition of each subscription, and for what keeps a subscription as a whole waiting';

CREATE VIEW inbox.dead_letters AS
	SELECT d.id, d.subscription_name AS name, d.topic, d.partition, d."offset", d.event_id, d.correlation_id,
		   d.sqlstate, d.error, d.attempts, d.failed_at, d.retry_at
	FROM inbox.dead_letter AS d;
COMMENT ON VIEW inbox.dead_letters IS 'messages whose handler failed too often, without key and payload, which are in inbox.dead_letter';

DO $do$
DECLARE
	name pg_catalog.text;
BEGIN
	FOREACH name IN ARRAY ARRAY['subscription', 'offset', 'request', 'worker_problem', 'dead_letter', 'seen_ring', 'seen_0', 'seen_1', 'seen_2', 'seen_3'] LOOP
		EXECUTE pg_catalog.format(
			'CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON inbox.%1$I
			 FOR EACH ROW EXECUTE FUNCTION outbox.ignore_replicated()', name);
		EXECUTE pg_catalog.format('ALTER TABLE inbox.%1$I ENABLE REPLICA TRIGGER ignore_replicated', name);
	END LOOP;
END
$do$;

-- ---------------------------------------------------------------------------
-- Confirmations: answers that are waited for. A row is made in the transaction
-- that publishes the message, decided once, by an answer or by the deadline,
-- and then handed to a function of who expected it.
-- ---------------------------------------------------------------------------

CREATE TYPE outbox.decision AS (
	correlation_id text,
	event_id uuid,
	topic text,
	decision text,
	answer text,
	reason text,
	detail jsonb,
	context jsonb,
	decided_at timestamptz
);
COMMENT ON TYPE outbox.decision IS 'what became of an expectation, the argument of on_confirmed, on_rejected, on_expired and on_late';
COMMENT ON COLUMN outbox.decision.correlation_id IS 'what the answer has to carry';
COMMENT ON COLUMN outbox.decision.event_id IS 'event id of the message';
COMMENT ON COLUMN outbox.decision.topic IS 'Kafka topic of the message';
COMMENT ON COLUMN outbox.decision.decision IS 'confirmed, rejected or expired';
COMMENT ON COLUMN outbox.decision.answer IS 'confirmed or rejected: the answer that this is about, for on_late not the one that decided; NULL for on_expired';
COMMENT ON COLUMN outbox.decision.reason IS 'of that answer; discarded: of an expiry, if the message was given up';
COMMENT ON COLUMN outbox.decision.detail IS 'of that answer';
COMMENT ON COLUMN outbox.decision.context IS 'what was given to outbox.expect_confirmation()';
COMMENT ON COLUMN outbox.decision.decided_at IS 'when that answer came, or the deadline passed';

CREATE TABLE outbox.confirmation (
	id bigint PRIMARY KEY,
	xid xid8 NOT NULL,
	event_id uuid NOT NULL,
	topic text NOT NULL,
	correlation_id text NOT NULL,
	expected_by text NOT NULL,
	answered_by text[],
	expected_at timestamptz NOT NULL,
	within interval NOT NULL,
	counts_from text NOT NULL CHECK (counts_from OPERATOR(pg_catalog.=) ANY (ARRAY['acknowledgement', 'publishing'])),
	deadline timestamptz,
	restored boolean NOT NULL DEFAULT false,
	on_confirmed text,
	on_rejected text,
	on_expired text,
	on_late text,
	context jsonb,
	max_attempts integer NOT NULL CHECK (max_attempts OPERATOR(pg_catalog.>) 0),
	retry_backoff interval NOT NULL,
	decision text CHECK (decision OPERATOR(pg_catalog.=) ANY (ARRAY['confirmed', 'rejected', 'expired'])),
	decided_at timestamptz,
	decided_by text,
	reason text,
	detail jsonb,
	handler_state text CHECK (handler_state OPERATOR(pg_catalog.=) ANY (ARRAY['pending', 'done', 'failed'])),
	repeated bigint NOT NULL DEFAULT 0,
	late bigint NOT NULL DEFAULT 0,
	late_answer text,
	late_at timestamptz,
	late_by text,
	late_reason text,
	late_detail jsonb,
	late_state text CHECK (late_state OPERATOR(pg_catalog.=) ANY (ARRAY['pending', 'done', 'failed'])),
	attempts integer NOT NULL DEFAULT 0,
	next_try_at timestamptz,
	error text,
	completed_at timestamptz
) USING heap WITH (fillfactor = 70);
CREATE UNIQUE INDEX confirmation_awaiting ON outbox.confirmation (correlation_id) WHERE decision IS NULL;
CREATE INDEX confirmation_correlation_id ON outbox.confirmation (correlation_id, id);
CREATE INDEX confirmation_deadline ON outbox.confirmation (deadline) WHERE decision IS NULL AND deadline IS NOT NULL AND NOT restored;
CREATE INDEX confirmation_unacknowledged ON outbox.confirmation (id) WHERE decision IS NULL AND deadline IS NULL AND NOT restored;
CREATE INDEX confirmation_next_try_at ON outbox.confirmation (next_try_at) WHERE next_try_at IS NOT NULL AND NOT restored;
CREATE INDEX confirmation_completed_at ON outbox.confirmation (completed_at) WHERE completed_at IS NOT NULL;
COMMENT ON TABLE outbox.confirmation IS 'answers that are, or were, waited for; see the view outbox.confirmations';
COMMENT ON COLUMN outbox.confirmation.id IS 'id of the message in outbox.message';
COMMENT ON COLUMN outbox.confirmation.xid IS 'transaction that made it: another one is a dump being restored';
COMMENT ON COLUMN outbox.confirmation.event_id IS 'event id of the message';
COMMENT ON COLUMN outbox.confirmation.topic IS 'Kafka topic of the message';
COMMENT ON COLUMN outbox.confirmation.correlation_id IS 'what the answer has to carry: that of the message, or else its event id';
COMMENT ON COLUMN outbox.confirmation.expected_by IS 'role that called outbox.expect_confirmation(): its functions are called as this role, and it or a member of it has to be who answers';
COMMENT ON COLUMN outbox.confirmation.answered_by IS 'subscriptions that may answer; NULL: any of expected_by';
COMMENT ON COLUMN outbox.confirmation.expected_at IS 'when that was called';
COMMENT ON COLUMN outbox.confirmation.within IS 'how long an answer is waited for';
COMMENT ON COLUMN outbox.confirmation.counts_from IS 'that time counts from the acknowledgement of the message or from its publishing';
COMMENT ON COLUMN outbox.confirmation.deadline IS 'when it ends; NULL: the message is not acknowledged yet';
COMMENT ON COLUMN outbox.confirmation.restored IS 'it came with a dump or a copy: nothing expires, no function is called before outbox.adopt()';
COMMENT ON COLUMN outbox.confirmation.on_confirmed IS 'qualified name of the function for that';
COMMENT ON COLUMN outbox.confirmation.on_rejected IS 'the same';
COMMENT ON COLUMN outbox.confirmation.on_expired IS 'the same';
COMMENT ON COLUMN outbox.confirmation.on_late IS 'the same, for the first answer that comes after another decision';
COMMENT ON COLUMN outbox.confirmation.context IS 'handed to the functions';
COMMENT ON COLUMN outbox.confirmation.max_attempts IS 'how often a function is called that fails';
COMMENT ON COLUMN outbox.confirmation.retry_backoff IS 'pause after the first failure, doubled after each further one, up to an hour';
COMMENT ON COLUMN outbox.confirmation.decision IS 'NULL: awaiting';
COMMENT ON COLUMN outbox.confirmation.decided_at IS 'when';
COMMENT ON COLUMN outbox.confirmation.decided_by IS 'subscription or role that answered; NULL: the deadline';
COMMENT ON COLUMN outbox.confirmation.reason IS 'of the answer';
COMMENT ON COLUMN outbox.confirmation.detail IS 'of the answer';
COMMENT ON COLUMN outbox.confirmation.handler_state IS 'of the function for the decision; NULL: there is none to call';
COMMENT ON COLUMN outbox.confirmation.repeated IS 'further answers like the decision';
COMMENT ON COLUMN outbox.confirmation.late IS 'further answers unlike the decision; the first one is kept';
COMMENT ON COLUMN outbox.confirmation.late_answer IS 'confirmed or rejected';
COMMENT ON COLUMN outbox.confirmation.late_at IS 'when it came';
COMMENT ON COLUMN outbox.confirmation.late_by IS 'who answered';
COMMENT ON COLUMN outbox.confirmation.late_reason IS 'its reason';
COMMENT ON COLUMN outbox.confirmation.late_detail IS 'its detail';
COMMENT ON COLUMN outbox.confirmation.late_state IS 'of on_late';
COMMENT ON COLUMN outbox.confirmation.attempts IS 'how often the function that is due has failed';
COMMENT ON COLUMN outbox.confirmation.next_try_at IS 'when a function is to be called; NULL: none is due';
COMMENT ON COLUMN outbox.confirmation.error IS 'of the last call that failed';
COMMENT ON COLUMN outbox.confirmation.completed_at IS 'when nothing was left to be done; retention counts from here';

CREATE FUNCTION outbox.confirmation_before_insert() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_confirmation_before_insert';
COMMENT ON FUNCTION outbox.confirmation_before_insert() IS 'marks what a dump brings as restored';
CREATE TRIGGER confirmation_before_insert
	BEFORE INSERT ON outbox.confirmation
	FOR EACH ROW EXECUTE FUNCTION outbox.confirmation_before_insert();
ALTER TABLE outbox.confirmation ENABLE ALWAYS TRIGGER confirmation_before_insert;
CREATE TRIGGER ignore_replicated
	BEFORE UPDATE OR DELETE ON outbox.confirmation
	FOR EACH ROW EXECUTE FUNCTION outbox.ignore_replicated();
ALTER TABLE outbox.confirmation ENABLE REPLICA TRIGGER ignore_replicated;

CREATE FUNCTION outbox.expect_confirmation(event_id uuid, within interval,
		on_confirmed regproc DEFAULT NULL, on_rejected regproc DEFAULT NULL,
		on_expired regproc DEFAULT NULL, on_late regproc DEFAULT NULL,
		answered_by text[] DEFAULT NULL, context jsonb DEFAULT NULL,
		counts_from text DEFAULT 'acknowledgement',
		max_attempts integer DEFAULT 10, retry_backoff interval DEFAULT '1 s') RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_expect_confirmation';
COMMENT ON FUNCTION outbox.expect_confirmation(uuid, interval, regproc, regproc, regproc, regproc, text[], jsonb, text, integer, interval) IS 'wait for an answer to a message that this transaction has published; returns the correlation id that the answer has to carry';

CREATE FUNCTION outbox.confirm(correlation_id text, detail jsonb DEFAULT NULL) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_confirm';
COMMENT ON FUNCTION outbox.confirm(text, jsonb) IS 'answer: decided, repeated or late; NULL: no such expectation is known';

CREATE FUNCTION outbox.reject(correlation_id text, reason text, detail jsonb DEFAULT NULL) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_reject';
COMMENT ON FUNCTION outbox.reject(text, text, jsonb) IS 'answer: decided, repeated or late; NULL: no such expectation is known';

CREATE FUNCTION outbox.confirm_by_message(message inbox.message) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_confirm_by_message';
COMMENT ON FUNCTION outbox.confirm_by_message(inbox.message) IS 'handler for inbox.subscribe(): the message confirms what its correlation id names';

CREATE FUNCTION outbox.reject_by_message(message inbox.message) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_reject_by_message';
COMMENT ON FUNCTION outbox.reject_by_message(inbox.message) IS 'handler for inbox.subscribe(): the message rejects what its correlation id names';

CREATE FUNCTION outbox.wait_decided(correlation_id text, timeout interval) RETURNS text
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'outbox_kafka_wait_decided';
COMMENT ON FUNCTION outbox.wait_decided(text, interval) IS 'wait until it is decided: confirmed, rejected or expired; awaiting at the timeout, NULL when no such expectation is known';

CREATE FUNCTION outbox.wake_decider() RETURNS void
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'outbox_kafka_wake_decider';
COMMENT ON FUNCTION outbox.wake_decider() IS 'makes the decider look at outbox.confirmation, at commit';

CREATE FUNCTION outbox.retry_confirmation(correlation_id text) RETURNS bigint
	LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		WITH due AS (
			UPDATE outbox.confirmation AS c
				SET handler_state = CASE c.handler_state WHEN 'failed' THEN 'pending' ELSE c.handler_state END,
					late_state = CASE c.late_state WHEN 'failed' THEN 'pending' ELSE c.late_state END,
					attempts = 0, next_try_at = clock_timestamp(), completed_at = NULL
			WHERE c.correlation_id = retry_confirmation.correlation_id
			  AND (c.handler_state IN ('pending', 'failed') OR c.late_state IN ('pending', 'failed'))
			RETURNING 1)
		SELECT count(*) FROM due, (SELECT outbox.wake_decider() OFFSET 0) AS w
	$$;
COMMENT ON FUNCTION outbox.retry_confirmation(text) IS 'call functions that have failed, or are to be tried later, again now; returns for how many expectations';

-- JSON that comes from others may be anything.
CREATE FUNCTION outbox.json_or_null(payload bytea) RETURNS jsonb
	LANGUAGE plpgsql IMMUTABLE STRICT
	SET search_path = pg_catalog, pg_temp
	AS $$
	BEGIN
		RETURN convert_from(payload, 'UTF8')::jsonb;
	EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
		RETURN NULL;
	END
	$$;
COMMENT ON FUNCTION outbox.json_or_null(bytea) IS 'the JSON that a payload is, if it is';

-- Of a message that was not sent in time. What is not parked is the relay's
-- to give up, if it has not sent it by then.
CREATE FUNCTION outbox.withdraw(message_id bigint, asked_by text) RETURNS void
	LANGUAGE sql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
		WITH gone AS (
			DELETE FROM outbox.parked_message AS p WHERE p.id = withdraw.message_id
			RETURNING p.id, p.event_id, p.topic, p.created_at),
		noted AS (
			INSERT INTO outbox.discarded_message (id, event_id, topic, created_at, discarded_at, discarded_by)
			SELECT g.id, g.event_id, g.topic, g.created_at, clock_timestamp(), withdraw.asked_by FROM gone AS g
			ON CONFLICT (id) DO NOTHING),
		asked AS (
			INSERT INTO outbox.discard_request (request_id, topic, message_id, requested_at, requested_by, if_unsent)
			SELECT gen_random_uuid(), m.topic, m.id, clock_timestamp(), withdraw.asked_by, true
			FROM outbox.message AS m
			WHERE m.id = withdraw.message_id
			  AND NOT outbox.is_delivered(m.xid, m.id, m.topic, m.key, m.partition)
			  AND NOT EXISTS (SELECT FROM outbox.parked_message AS p WHERE p.id = m.id))
		SELECT outbox.wake_relay()
	$$;
COMMENT ON FUNCTION outbox.withdraw(bigint, text) IS 'give up a message, if it has not been sent';

CREATE VIEW outbox.confirmations AS
	SELECT c.correlation_id, c.event_id, c.topic,
		   CASE WHEN c.decision IS NULL THEN 'awaiting'
				WHEN c.decision OPERATOR(pg_catalog.=) 'confirmed' OR c.handler_state IS NULL THEN c.decision
				WHEN c.handler_state OPERATOR(pg_catalog.=) 'pending' THEN 'compensating'
				WHEN c.handler_state OPERATOR(pg_catalog.=) 'done' THEN 'compensated'
				ELSE 'compensation_failed' END AS status,
		   c.decision, c.reason, c.expected_by, c.answered_by, c.expected_at, c.within, c.counts_from,
		   c.deadline, c.decided_at, c.decided_by, c.handler_state, c.attempts, c.next_try_at, c.error,
		   c.repeated, c.late, c.late_answer, c.late_at, c.late_state,
		   d.id IS NOT NULL AS withdrawn, c.restored, c.completed_at
	FROM outbox.confirmation AS c
		 LEFT JOIN outbox.discarded_message AS d ON d.id OPERATOR(pg_catalog.=) c.id
			   AND d.event_id OPERATOR(pg_catalog.=) c.event_id;
COMMENT ON VIEW outbox.confirmations IS 'answers that are, or were, waited for, without their details';

CREATE FUNCTION outbox.adopt() RETURNS bigint
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
		-- the time that an answer has begins anew
		UPDATE outbox.confirmation AS c
			SET restored = false,
				deadline = CASE WHEN c.deadline IS NOT NULL THEN clock_timestamp() + c.within END
			WHERE c.restored;
		SELECT outbox.wake_decider();
		UPDATE outbox.parked_message AS b SET next_try_at = pg_catalog.clock_timestamp()
			WHERE b.reason = 'behind';
		WITH due AS (
			UPDATE outbox.parked_message AS p SET next_try_at = pg_catalog.clock_timestamp()
			WHERE p.reason = 'restored'
			RETURNING 1)
		SELECT count(*) FROM due, (SELECT outbox.wake_relay() OFFSET 0) AS w
	$$;
COMMENT ON FUNCTION outbox.adopt() IS 'release the messages that a dump or a copy brought, in the order of their ids, and what was expected of them; returns how many messages there are';

-- ---------------------------------------------------------------------------
-- Privileges: nothing for PUBLIC but the default of a column.
-- ---------------------------------------------------------------------------

REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.current_segment() TO PUBLIC;

GRANT USAGE ON SCHEMA outbox TO pg_monitor;
GRANT SELECT ON outbox.relay_status, outbox.topic_status, outbox.backlog, outbox.pending, outbox.parked, outbox.held_lanes, outbox.message_status, outbox.confirmations TO pg_monitor;
GRANT EXECUTE ON FUNCTION outbox.relay_status_row(), outbox.topic_status_rows(), outbox.backlog_row(), outbox.pending_rows(), outbox.status(uuid), outbox.identity() TO pg_monitor;

REVOKE ALL ON ALL TABLES IN SCHEMA inbox FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA inbox FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA inbox FROM PUBLIC;
-- The type and what is made of it are for whoever writes a handler.
GRANT USAGE ON SCHEMA inbox TO PUBLIC;
GRANT EXECUTE ON FUNCTION inbox.payload_text(inbox.message), inbox.payload_json(inbox.message) TO PUBLIC;
GRANT SELECT ON inbox.subscription_status, inbox.workers, inbox.dead_letters TO pg_monitor;
GRANT EXECUTE ON FUNCTION inbox.worker_rows() TO pg_monitor;

-- ---------------------------------------------------------------------------
-- What pg_dump takes along: messages still to be sent, what is parked, grants
-- and pauses. Never the relay's progress.
-- ---------------------------------------------------------------------------

-- A command each: all of them update the extension's one row.
DO $do$
BEGIN
	FOR i IN 0 .. 7 LOOP
		PERFORM pg_catalog.pg_extension_config_dump(
			pg_catalog.format('outbox.message_%s', i)::pg_catalog.regclass,
			'WHERE NOT outbox.is_delivered(xid, id, topic, key, partition)');
	END LOOP;
END
$do$;
SELECT pg_catalog.pg_extension_config_dump('outbox.message_id', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.parked_message', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.publish_grant', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.relay_control', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.confirmation', '');
-- A restored database reads on from its own positions.
SELECT pg_catalog.pg_extension_config_dump('inbox.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('inbox.subscription_id', '');
SELECT pg_catalog.pg_extension_config_dump('inbox."offset"', '');
SELECT pg_catalog.pg_extension_config_dump('inbox.request', '');
SELECT pg_catalog.pg_extension_config_dump('inbox.dead_letter', '');
SELECT pg_catalog.pg_extension_config_dump('inbox.dead_letter_id', '');
