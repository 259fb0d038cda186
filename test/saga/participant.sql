-- A saga: the side of a service that takes part. What it does for a saga is
-- kept under the saga's number, so a command that comes again changes nothing.
-- psql variable service: its name.

CREATE TABLE done (
	saga bigint PRIMARY KEY,
	amount int NOT NULL,
	state text NOT NULL CHECK (state IN ('done', 'undone'))
);

-- Refuses on purpose what data says it should.
CREATE FUNCTION execute_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	command jsonb := inbox.payload_json(m);
	service text := split_part(m.topic, '.', 1);
	id bigint := command ->> 'saga';
	refused boolean := false;
BEGIN
	IF command ->> 'action' = 'undo' THEN
		UPDATE done SET state = 'undone' WHERE saga = id;
	ELSIF command -> 'data' ->> 'refused_by' = service THEN
		refused := true;
	ELSE
		INSERT INTO done VALUES (id, (command -> 'data' ->> 'amount')::int, 'done') ON CONFLICT DO NOTHING;
	END IF;
	PERFORM outbox.publish(CASE WHEN refused THEN 'saga.refused' ELSE 'saga.done' END,
		jsonb_build_object('saga', id, 'service', service, 'reason', CASE WHEN refused THEN service || ' refuses' END),
		key => id::text);
END $$;

SELECT inbox.subscribe('commands', ARRAY[:'service' || '.commands'], 'execute_command');
