/* test/modules/cursor_test/cursor_test--1.0.sql */

\echo Use "CREATE EXTENSION cursor_test" to load this file. \quit

CREATE SCHEMA cursor_test;

CREATE FUNCTION cursor_test.start(name text, variant text DEFAULT 'right') RETURNS void
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_start';
COMMENT ON FUNCTION cursor_test.start(text, text) IS 'a cursor of this session: what is committed now counts as delivered';

CREATE FUNCTION cursor_test.open(name text) RETURNS void
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_open';
COMMENT ON FUNCTION cursor_test.open(text) IS 'take the bound of a batch, to be read by read()';

CREATE FUNCTION cursor_test.read(name text, rows integer DEFAULT 0) RETURNS SETOF bigint
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_read';
COMMENT ON FUNCTION cursor_test.read(text, integer) IS 'the next ids of the open batch, at most so many; at its end it counts as delivered';

CREATE FUNCTION cursor_test.next(name text, chunk_rows integer DEFAULT 0) RETURNS SETOF bigint
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_next';
COMMENT ON FUNCTION cursor_test.next(text, integer) IS 'open() and read() to the end in chunks';

CREATE FUNCTION cursor_test.pause(place text, lock bigint) RETURNS void
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_pause';
COMMENT ON FUNCTION cursor_test.pause(text, bigint) IS 'at its next batch this session waits at that place for that advisory lock';

CREATE FUNCTION cursor_test.buffers() RETURNS bigint
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_buffers';
COMMENT ON FUNCTION cursor_test.buffers() IS 'shared buffers this session has looked at so far';

CREATE FUNCTION cursor_test.bound(name text, OUT running integer, OUT xmax xid8, OUT next_xid xid8, OUT tail_id bigint)
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_bound';
COMMENT ON FUNCTION cursor_test.bound(text) IS 'of a cursor that is bounded by snapshots: what is delivered';

CREATE FUNCTION cursor_test.progress() RETURNS text
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_progress';
COMMENT ON FUNCTION cursor_test.progress() IS 'what progress_read() says of the relay''s own row: ok, busy, missing or foreign';

CREATE FUNCTION cursor_test.rewrite_progress() RETURNS text
	LANGUAGE c VOLATILE STRICT
	AS 'MODULE_PATHNAME', 'cursor_test_rewrite_progress';
COMMENT ON FUNCTION cursor_test.rewrite_progress() IS 'progress_write() of what progress_read() returned';

CREATE FUNCTION cursor_test.payloads(ids bigint[]) RETURNS text
	LANGUAGE sql VOLATILE
	AS $$
		SELECT coalesce(string_agg(convert_from(m.payload, 'UTF8'), ' ' ORDER BY n.place), '(none)')
		FROM unnest(ids) WITH ORDINALITY AS n (id, place)
		LEFT JOIN outbox.message AS m USING (id)
	$$;
COMMENT ON FUNCTION cursor_test.payloads(bigint[]) IS 'of these messages, in this order';

-- Statement by statement, so that the payloads of what next() found are seen.
CREATE FUNCTION cursor_test.sent(name text, chunk_rows integer DEFAULT 0) RETURNS text
	LANGUAGE plpgsql VOLATILE
	AS $$
	DECLARE
		ids bigint[];
	BEGIN
		ids := ARRAY(SELECT cursor_test.next(name, chunk_rows));
		RETURN cursor_test.payloads(ids);
	END
	$$;
COMMENT ON FUNCTION cursor_test.sent(text, integer) IS 'next(), as payloads';

CREATE FUNCTION cursor_test.sent_chunk(name text, rows integer) RETURNS text
	LANGUAGE plpgsql VOLATILE
	AS $$
	DECLARE
		ids bigint[];
	BEGIN
		ids := ARRAY(SELECT cursor_test.read(name, rows));
		RETURN cursor_test.payloads(ids);
	END
	$$;
COMMENT ON FUNCTION cursor_test.sent_chunk(text, integer) IS 'read(), as payloads';
