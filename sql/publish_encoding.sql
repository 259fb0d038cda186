-- What is stored is UTF-8, whatever the encoding of the database.
\set previous :DBNAME
SET client_min_messages = error;
CREATE DATABASE regress_outbox_latin1 TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
CREATE DATABASE regress_outbox_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C';

\connect regress_outbox_latin1
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;
CREATE FUNCTION stored(event uuid, OUT key bytea, OUT payload bytea) LANGUAGE sql
	AS $$ SELECT m.key, m.payload FROM outbox.message AS m WHERE m.event_id = event $$;
-- chr(228) is one byte here and two in Kafka
SELECT octet_length(chr(228));
SELECT * FROM stored(outbox.publish('orders', chr(228), chr(252)));
SELECT * FROM stored(outbox.publish('orders', to_json(chr(228)), chr(252)));
SELECT * FROM stored(outbox.publish('orders', to_jsonb(chr(228)), chr(252)));
SELECT * FROM stored(outbox.publish('orders', '\xe4'::bytea, chr(252)));
SELECT * FROM stored(outbox.publish('orders', '\xe4'::bytea, '\xfc'::bytea));
SELECT octet_length(payload), md5(payload) = md5(convert_to(repeat(chr(228), 400000), 'UTF8')) AS same
	FROM stored(outbox.publish('orders', repeat(chr(228), 400000)));
-- lengths count in UTF-8
SELECT outbox.publish('orders', repeat(chr(228), 500000));
SELECT outbox.publish('orders', 'x', correlation_id => repeat(chr(228), 512)) IS NOT NULL AS ok;
SELECT outbox.publish('orders', 'x', correlation_id => repeat(chr(228), 513));
SELECT outbox.publish('orders', 'x', headers => jsonb_build_object('h', repeat(chr(228), 500000)));
INSERT INTO outbox.message (topic, payload, correlation_id) VALUES ('orders', 'x', repeat(chr(228), 513));

-- without an encoding, text has to be UTF-8 already
\connect regress_outbox_ascii
SET client_min_messages = error;
CREATE EXTENSION outbox_kafka;
RESET client_min_messages;
CREATE FUNCTION stored(event uuid, OUT key bytea, OUT payload bytea) LANGUAGE sql
	AS $$ SELECT m.key, m.payload FROM outbox.message AS m WHERE m.event_id = event $$;
SELECT * FROM stored(outbox.publish('orders', E'\xc3\xa4'::text, E'\xc3\xbc'));
SELECT outbox.publish('orders', E'\xe4'::text);
SELECT outbox.publish('orders', 'x'::text, E'\xe4');
SELECT outbox.publish('orders', 'x'::text, correlation_id => E'\xe4');
SELECT outbox.publish('orders', 'x'::text, headers => E'{"h": "\xe4"}');
SELECT outbox.publish('orders', 'x'::text, headers => E'{"\xe4": null}');

\connect :previous
DROP DATABASE regress_outbox_latin1;
DROP DATABASE regress_outbox_ascii;
