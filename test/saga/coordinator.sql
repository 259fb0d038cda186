-- A saga: steps in several databases, one after the other, of which all take
-- effect or none stays. The coordinator's side; see doc/saga.md.

CREATE TABLE step (
	number int PRIMARY KEY,
	service text NOT NULL
);

CREATE TABLE saga (
	id bigint PRIMARY KEY,
	data jsonb NOT NULL,
	status text NOT NULL DEFAULT 'running'
		CHECK (status IN ('running', 'completed', 'compensating', 'compensated')),
	reason text
);

-- What was asked of whom, and what came of it, in the order in which it did.
CREATE TABLE saga_log (
	number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	saga bigint NOT NULL REFERENCES saga,
	step int NOT NULL,
	action text NOT NULL,
	outcome text NOT NULL
);

-- Ask the service of a step to do or to undo it. All that is asked on behalf
-- of one saga has the same key, so it arrives in the order in which it was
-- asked: an "undo" never overtakes its "do".
CREATE FUNCTION saga_ask(saga bigint, step int, action text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	service text := (SELECT s.service FROM step AS s WHERE s.number = saga_ask.step);
BEGIN
	PERFORM outbox.expect_confirmation(
		outbox.publish(service || '.commands',
			jsonb_build_object('saga', saga, 'action', action,
				'data', (SELECT s.data FROM saga AS s WHERE s.id = saga_ask.saga)),
			key => saga::text),
		coalesce(nullif(current_setting('saga.patience', true), ''), '10 s')::interval,
		on_confirmed => 'saga_done', on_rejected => 'saga_failed', on_expired => 'saga_failed',
		answered_by => '{done, refused}',
		context => jsonb_build_object('saga', saga, 'step', step, 'action', action),
		max_attempts => 1000);
	INSERT INTO saga_log (saga, step, action, outcome) VALUES (saga, step, action, 'asked');
END $$;

-- Go back from a step: undo it and what is before it, one at a time.
CREATE FUNCTION saga_undo(saga bigint, step int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM step AS s WHERE s.number = saga_undo.step) THEN
		PERFORM saga_ask(saga, step, 'undo');
	ELSE
		UPDATE saga AS s SET status = 'compensated' WHERE s.id = saga_undo.saga;
	END IF;
END $$;

CREATE FUNCTION saga_done(d outbox.decision) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	saga bigint := d.context ->> 'saga';
	step int := d.context ->> 'step';
	action text := d.context ->> 'action';
BEGIN
	INSERT INTO saga_log (saga, step, action, outcome) VALUES (saga, step, action, 'done');
	IF action = 'undo' THEN
		PERFORM saga_undo(saga, step - 1);
	ELSIF EXISTS (SELECT FROM step AS s WHERE s.number = step + 1) THEN
		PERFORM saga_ask(saga, step + 1, 'do');
	ELSE
		UPDATE saga AS s SET status = 'completed' WHERE s.id = saga;
	END IF;
END $$;

-- A step that was refused has no effect, so what is before it has to go. Of
-- one that has not answered nobody knows: it has to go as well. What should be
-- undone and is not confirmed to be is asked for again, for as long as it takes.
CREATE FUNCTION saga_failed(d outbox.decision) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	saga bigint := d.context ->> 'saga';
	step int := d.context ->> 'step';
	action text := d.context ->> 'action';
BEGIN
	INSERT INTO saga_log (saga, step, action, outcome) VALUES (saga, step, action, d.decision);
	IF action = 'do' THEN
		UPDATE saga AS s SET status = 'compensating', reason = coalesce(d.reason, d.decision) WHERE s.id = saga;
	END IF;
	PERFORM saga_undo(saga, CASE WHEN action = 'do' AND d.decision = 'rejected' THEN step - 1 ELSE step END);
END $$;

CREATE FUNCTION saga_start(id bigint, data jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO saga (id, data) VALUES (saga_start.id, saga_start.data);
	SELECT saga_ask(saga_start.id, 1, 'do')
$$;

SELECT inbox.subscribe('done', '{saga.done}', 'outbox.confirm_by_message');
SELECT inbox.subscribe('refused', '{saga.refused}', 'outbox.reject_by_message');
