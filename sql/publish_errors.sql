-- What outbox.publish() refuses: every error reaches the caller's transaction
-- and names neither key nor payload nor the value of a header.
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;

-- topic
SELECT outbox.publish(NULL, 'x');
SELECT outbox.publish('', 'x');
SELECT outbox.publish('.', 'x');
SELECT outbox.publish('..', 'x');
SELECT outbox.publish('a b', 'x');
SELECT outbox.publish('a/b', 'x');
SELECT outbox.publish('a*', 'x');
SELECT outbox.publish(U&'\00e4', 'x');
SELECT outbox.publish(E'line\n', 'x');
SELECT outbox.publish(repeat('t', 250), 'x');

-- a tombstone needs a key
SELECT outbox.publish('orders', NULL::jsonb);
SELECT outbox.publish('orders', NULL::json);
SELECT outbox.publish('orders', NULL::text, NULL);
SELECT outbox.publish('orders', NULL::bytea);
SELECT outbox.publish('orders', NULL::bytea, NULL::bytea);

-- partition
SELECT outbox.publish('orders', 'x', partition => -1);
SELECT outbox.publish('orders', 'x', 'k', NULL, -2147483648);

-- headers
SELECT outbox.publish('orders', 'x', headers => '[]');
SELECT outbox.publish('orders', 'x', headers => '"secret"');
SELECT outbox.publish('orders', 'x', headers => 'null');
SELECT outbox.publish('orders', 'x', headers => '1');
SELECT outbox.publish('orders', 'x', headers => '[{"a": "secret"}]');
SELECT outbox.publish('orders', 'x', headers => '{"a": "fine", "": "secret"}');
SELECT outbox.publish('orders', 'x', headers => '{"a": "fine", "b": 4711}');
SELECT outbox.publish('orders', 'x', headers => '{"a": "fine", "b": true}');
SELECT outbox.publish('orders', 'x', headers => '{"a": "fine", "b": {"c": "secret"}}');
SELECT outbox.publish('orders', 'x', headers => '{"a": "fine", "b": {}}');
SELECT outbox.publish('orders', 'x', headers => '{"b": ["fine", 4711]}');
SELECT outbox.publish('orders', 'x', headers => '{"b": ["fine", ["secret"]]}');
SELECT outbox.publish('orders', 'x', headers => '{"b": ["fine", {"c": "secret"}]}');
SELECT outbox.publish('orders', 'x', headers => '{"ce_id": "1"}');
SELECT outbox.publish('orders', 'x', headers => '{"ce_specversion": null}');
SELECT outbox.publish('orders', 'x', headers => jsonb_build_object(repeat(U&'\00e4', 1000), 1));
-- close to a reserved name is not reserved
SELECT outbox.publish('orders', 'x', headers => '{"CE_ID": "1", "ce_id2": "1", "ce_i": "1", "ce_type": "1", "ce_source": "1"}') IS NOT NULL AS ok;

-- correlation id
SELECT outbox.publish('orders', 'x', correlation_id => repeat('c', 1024)) IS NOT NULL AS ok;
SELECT outbox.publish('orders', 'x', correlation_id => repeat('c', 1025));
SELECT outbox.publish('orders', 'x', correlation_id => repeat(U&'\00e4', 513));

-- size: key, payload and headers count together
SELECT outbox.publish('orders', repeat('x', 1000000));
SELECT outbox.publish('orders', repeat('x', 500000), repeat('k', 500000));
SELECT outbox.publish('orders', 'x', headers => jsonb_build_object('h', repeat('x', 1000000)));
SELECT outbox.publish('orders', 'x', headers => jsonb_build_object(repeat('x', 1000000), 'h'));
SELECT outbox.publish('orders', 'x', headers => jsonb_build_object(repeat('x', 100000), '["","","","","","","","","",""]'::jsonb));
SELECT outbox.publish('orders', to_jsonb(repeat('x', 1000000)));
SELECT outbox.publish('orders', convert_to(repeat('x', 1000000), 'UTF8'));
SET outbox_kafka.max_message_bytes = 2000;
SET outbox_kafka.source = '/s';
SELECT 2000 - 256 - length('orders') - length('/s') AS longest \gset
SELECT :longest AS longest, outbox.publish('orders', repeat('x', :longest)) IS NOT NULL AS ok;
SELECT outbox.publish('orders', repeat('x', :longest + 1));
SELECT outbox.publish('orders', repeat('x', :longest), correlation_id => 'c');
RESET outbox_kafka.source;
RESET outbox_kafka.max_message_bytes;

-- what was refused was not stored (three were fine), and fails its transaction
SELECT count(*) FROM outbox.message;
BEGIN;
SELECT outbox.publish('orders', 'x') IS NOT NULL AS ok;
SELECT outbox.publish('', 'x');
SELECT outbox.publish('orders', 'x') IS NOT NULL AS ok;
COMMIT;
SELECT count(*) FROM outbox.message;

-- a transaction that may not write
BEGIN READ ONLY;
SELECT outbox.publish('orders', 'x');
ROLLBACK;
BEGIN;
SET TRANSACTION READ ONLY;
INSERT INTO outbox.message (topic, payload) VALUES ('orders', 'x');
ROLLBACK;

-- never in a parallel worker, not even when it is declared safe
CREATE FUNCTION pretended(topic text, payload text, key text, headers jsonb, partition int, event_id uuid, correlation_id text) RETURNS uuid
	LANGUAGE c PARALLEL SAFE AS '$libdir/outbox_kafka', 'outbox_kafka_publish_text';
CREATE TABLE rows AS SELECT g FROM generate_series(1, 1000) AS g;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET parallel_leader_participation = off;
DO $$
BEGIN
	PERFORM count(pretended('orders', g::text, NULL, NULL, NULL, NULL, NULL)) FROM rows;
	RAISE NOTICE 'published';
EXCEPTION WHEN invalid_transaction_state THEN
	RAISE NOTICE '%', sqlerrm;
END
$$;
RESET parallel_leader_participation;
RESET min_parallel_table_scan_size;
RESET parallel_tuple_cost;
RESET parallel_setup_cost;
DROP TABLE rows;
DROP FUNCTION pretended(text, text, text, jsonb, int, uuid, text);

DROP EXTENSION outbox_kafka;
