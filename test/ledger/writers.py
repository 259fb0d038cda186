#!/usr/bin/python3
"""Concurrent writers that publish and keep a ledger of what they published.

Every message is recorded in ledger.event by the transaction that publishes it,
so the database itself says which messages exist: a message that reached Kafka
without a row there was sent though its transaction did not commit (or was not
durable), a row without a message is a lost one.

A message with a key belongs to an aggregate (a row of ledger.aggregate). The
publisher locks that row first, raises its version and puts the version in the
message, so the versions of one aggregate are the order in which its messages
must arrive. compare.py checks both against the consumer's log.

Each writer draws transactions of many shapes from its own random generator;
the seed is printed and can be given. Prepared transactions are finished by a
session of their own. A lost connection (a crash of the server) is not an
error: the writer connects again and goes on; what became of the transaction
the ledger knows. At the end no prepared transaction is left.

Prints one JSON object with totals to standard output, the story to standard
error.
"""

import argparse
import collections
import heapq
import io
import json
import os
import random
import sys
import threading
import time
import uuid

import psycopg2
import psycopg2.errors

SETUP = """
CREATE SCHEMA ledger;
CREATE TABLE ledger.aggregate (
    id integer PRIMARY KEY,
    version bigint NOT NULL
) WITH (fillfactor = 20);
CREATE TABLE ledger.event (
    event_id uuid PRIMARY KEY,
    topic text NOT NULL,
    aggregate integer,
    version bigint,
    kind text NOT NULL,
    digest text NOT NULL
);

CREATE FUNCTION ledger.next_version(agg integer) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    v bigint;
BEGIN
    SELECT a.version + 1 INTO STRICT v FROM ledger.aggregate AS a
        WHERE a.id = agg FOR UPDATE;
    UPDATE ledger.aggregate SET version = v WHERE id = agg;
    RETURN v;
END $$;

CREATE FUNCTION ledger.body(agg integer, v bigint, pad integer) RETURNS text
    LANGUAGE sql AS $$
    SELECT jsonb_build_object('aggregate', agg, 'version', v,
                              'pad', repeat(U&'\\00e9-', pad))::text
$$;

CREATE FUNCTION ledger.publish(agg integer, topic text, kind text, form text,
                               pad integer) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    v bigint := CASE WHEN agg IS NOT NULL THEN ledger.next_version(agg) END;
    k text := 'agg-' || agg;
    body text := ledger.body(agg, v, pad);
    e uuid;
BEGIN
    CASE form
        WHEN 'jsonb' THEN
            e := outbox.publish(topic, body::jsonb, k,
                                headers => jsonb_build_object('kind', kind));
        WHEN 'text' THEN
            e := outbox.publish(topic, body, key => k);
        WHEN 'bytea' THEN
            e := outbox.publish(topic, convert_to(body, 'UTF8'),
                                convert_to(k, 'UTF8'));
        WHEN 'insert' THEN
            INSERT INTO outbox.message (topic, key, payload, headers)
                VALUES (publish.topic, convert_to(k, 'UTF8'),
                        convert_to(body, 'UTF8'),
                        jsonb_build_object('kind', kind))
                RETURNING event_id INTO e;
    END CASE;
    INSERT INTO ledger.event VALUES (e, topic, agg, v, kind, md5(body));
END $$;

-- n blocks with an exception handler; about a third of them fail after they
-- have published.
CREATE FUNCTION ledger.exception_blocks(agg integer, topic text, kind text,
                                        form text, n integer) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. n LOOP
        BEGIN
            PERFORM ledger.publish(agg, topic, kind, form, 3);
            IF random() < 0.3 THEN
                RAISE EXCEPTION 'block % fails', i;
            END IF;
        EXCEPTION WHEN raise_exception THEN
            NULL;
        END;
    END LOOP;
END $$;
"""

FORMS = ("jsonb", "text", "bytea", "insert")

# Shapes of transactions with their weights, in a busy session and in a slow
# one. Every fourth session is slow: it is what the others' messages overtake.
BUSY = {
    "plain": 30,
    "async": 10,
    "keyless": 6,
    "many": 2,
    "copy": 3,
    "rows": 3,
    "savepoint": 14,
    "exceptions": 3,
    "rollback": 8,
    "prepared": 4,
    "early_xid": 14,
    "repeatable": 3,
}
SLOW = {
    "plain": 10,
    "early_xid": 40,
    "prepared": 30,
    "held": 20,
}

CONFLICT = (psycopg2.errors.LockNotAvailable,
            psycopg2.errors.DeadlockDetected,
            psycopg2.errors.SerializationFailure)


def lost_connection(error):
    """
    Whether an error is the end of the connection, not of a statement. What
    libpq says itself has no SQLSTATE; it comes as a plain DatabaseError too.
    """
    return error.pgcode is None or isinstance(error, psycopg2.OperationalError)


def log(text):
    print("# %s" % text, file=sys.stderr, flush=True)


class Totals:
    """Counters of all threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = collections.Counter()

    def add(self, name, n=1):
        with self.lock:
            self.counts[name] += n


class Resolver(threading.Thread):
    """Finishes prepared transactions, each when its time has come."""

    def __init__(self, options, totals):
        super().__init__(name="resolver")
        self.options = options
        self.totals = totals
        self.random = random.Random("%s-%s-resolver" % (options.seed,
                                                        options.run))
        self.queue = []
        self.wake = threading.Condition()
        self.closing = False
        self.failure = None

    def add(self, gid, delay):
        with self.wake:
            heapq.heappush(self.queue, (time.monotonic() + delay, gid))
            self.wake.notify()

    def close(self):
        with self.wake:
            self.closing = True
            self.wake.notify()

    def run(self):
        try:
            while True:
                with self.wake:
                    while not self.queue and not self.closing:
                        self.wake.wait()
                    if not self.queue:
                        break
                    due, gid = self.queue[0]
                    left = due - time.monotonic()
                    if left > 0 and not self.closing:
                        self.wake.wait(left)
                        continue
                    heapq.heappop(self.queue)
                self.finish(gid)
            self.sweep()
        except Exception as error:     # reported by main()
            self.failure = error

    def finish(self, gid):
        """
        Commit or roll back. After a lost connection it is tried again: what
        was not finished keeps its locks. It may be finished by then, or never
        have been prepared.
        """
        command = "ROLLBACK" if self.random.random() < 0.25 else "COMMIT"
        connection = connect(self.options)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("%s PREPARED '%s'" % (command, gid))
            self.totals.add("prepared_" + command.lower())
        except psycopg2.errors.UndefinedObject:
            self.totals.add("prepared_gone")
        except psycopg2.Error as error:
            if not lost_connection(error):
                raise
            self.add(gid, 0.2)
        finally:
            connection.close()

    def sweep(self):
        while True:
            connection = connect(self.options)
            try:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("SELECT gid FROM pg_prepared_xacts"
                                   " WHERE gid LIKE 'ledger-%'")
                    gids = [row[0] for row in cursor.fetchall()]
                if not gids:
                    return
            except psycopg2.Error as error:
                if not lost_connection(error):
                    raise
                continue
            finally:
                connection.close()
            for gid in gids:
                self.finish(gid)


def connect(options, patience=90):
    """A connection, waiting for a server that is restarting."""
    deadline = time.monotonic() + patience
    while True:
        try:
            connection = psycopg2.connect(options.conninfo)
            connection.set_client_encoding("UTF8")
            return connection
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Writer(threading.Thread):
    """One session that runs transactions of random shapes until the end."""

    def __init__(self, number, options, totals, resolver, deadline):
        super().__init__(name="writer-%d" % number)
        self.number = number
        self.options = options
        self.totals = totals
        self.resolver = resolver
        self.deadline = deadline
        self.random = random.Random("%s-%s-%d" % (options.seed, options.run,
                                                  number))
        self.prepared = 0
        self.connection = None
        self.failure = None

    def run(self):
        weights = {shape: weight for shape, weight
                   in (SLOW if self.number % 4 == 0 else BUSY).items()
                   if shape not in self.options.without}
        try:
            while (time.monotonic() < self.deadline
                   or self.options.until
                   and not os.path.exists(self.options.until)):
                if self.options.pace > 0:
                    time.sleep(self.random.expovariate(1 / self.options.pace))
                shape = self.random.choices(list(weights), weights.values())[0]
                self.totals.add("tried_" + shape)
                try:
                    if self.connection is None:
                        self.open()
                    try:
                        outcome = getattr(self, "shape_" + shape)()
                    except CONFLICT:
                        self.connection.rollback()
                        outcome = "conflict"
                except psycopg2.Error as error:
                    if not lost_connection(error):
                        raise
                    self.totals.add("connection_lost")
                    self.connection.close()
                    self.connection = None
                    outcome = "unknown"
                self.totals.add(outcome)
                self.totals.add("%s_%s" % (outcome, shape))
        except Exception as error:     # reported by main()
            self.failure = error
        finally:
            if self.connection is not None:
                self.connection.close()

    def open(self):
        self.connection = connect(self.options)
        with self.connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1s'")
            cursor.execute("SET deadlock_timeout = '100ms'")
            cursor.execute("SELECT setseed(%s)", (self.random.random(),))
        self.connection.commit()

    # Building blocks

    def execute(self, sql, values=None):
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values)

    def hot(self):
        """An aggregate that many sessions want at the same time."""
        return self.random.randrange(self.options.hot)

    def cold(self):
        return self.random.randrange(self.options.aggregates)

    def topic(self, aggregate):
        """Mostly the aggregate's own topic, now and then another one."""
        topics = self.options.topics
        if aggregate is None or self.random.random() < 0.1:
            return self.random.choice(topics)
        return topics[aggregate % len(topics)]

    def pad(self):
        """Mostly small, sometimes so large that it is stored out of line."""
        if self.random.random() < 0.02:
            return self.random.randrange(1000, 20000)
        return self.random.randrange(0, 60)

    def publish(self, aggregates, kind):
        for aggregate in aggregates:
            self.execute("SELECT ledger.publish(%s, %s, %s, %s, %s)",
                         (aggregate, self.topic(aggregate), kind,
                          self.random.choice(FORMS), self.pad()))

    def some(self, low, high, pick):
        """Aggregates to publish to; ascending, so that locks do not cross."""
        count = self.random.randint(low, high)
        return sorted(pick() for _ in range(count))

    def commit(self):
        self.connection.commit()
        return "committed"

    # Shapes

    def shape_plain(self):
        pick = self.hot if self.random.random() < 0.5 else self.cold
        self.publish(self.some(1, 4, pick), "plain")
        return self.commit()

    def shape_keyless(self):
        self.publish([None] * self.random.randint(1, 4), "keyless")
        return self.commit()

    def shape_many(self):
        """Many messages of one aggregate by one statement."""
        aggregate = self.cold()
        self.execute("SELECT ledger.publish(%s, %s, 'many', %s, 2)"
                     " FROM generate_series(1, %s)",
                     (aggregate, self.topic(aggregate),
                      self.random.choice(FORMS),
                      self.random.randint(20, 300)))
        return self.commit()

    def shape_rows(self):
        """A multi-row INSERT, the event ids from RETURNING."""
        aggregate = self.cold()
        topic = self.topic(aggregate)
        self.execute("""
            WITH new AS MATERIALIZED (
                SELECT v, ledger.body(%(agg)s, v, 4) AS body
                FROM (SELECT ledger.next_version(%(agg)s) AS v
                      FROM generate_series(1, %(n)s)) AS versions
                ORDER BY v
            ), sent AS (
                INSERT INTO outbox.message (topic, key, payload)
                    SELECT %(topic)s, convert_to('agg-' || %(agg)s, 'UTF8'),
                           convert_to(body, 'UTF8')
                    FROM new ORDER BY v
                    RETURNING event_id, payload
            )
            INSERT INTO ledger.event
                SELECT event_id, %(topic)s, %(agg)s,
                       (convert_from(payload, 'UTF8')::jsonb->>'version')::bigint,
                       'rows', md5(convert_from(payload, 'UTF8'))
                FROM sent""",
                     {"agg": aggregate, "topic": topic,
                      "n": self.random.randint(2, 30)})
        return self.commit()

    def shape_copy(self):
        """COPY with event ids of our own choice."""
        aggregate = self.cold()
        topic = self.topic(aggregate)
        messages, entries = io.StringIO(), io.StringIO()
        with self.connection.cursor() as cursor:
            for _ in range(self.random.randint(2, 30)):
                event = uuid.UUID(int=self.random.getrandbits(128), version=4)
                cursor.execute(
                    "SELECT v, ledger.body(%s, v, 1)"
                    " FROM ledger.next_version(%s) AS v",
                    (aggregate, aggregate))
                version, body = cursor.fetchone()
                key = ("agg-%d" % aggregate).encode().hex()
                messages.write("%s\t\\\\x%s\t\\\\x%s\t%s\n" % (
                    topic, key, body.encode().hex(), event))
                cursor.execute("SELECT md5(%s)", (body,))
                entries.write("%s\t%s\t%d\t%d\tcopy\t%s\n" % (
                    event, topic, aggregate, version, cursor.fetchone()[0]))
            messages.seek(0)
            entries.seek(0)
            cursor.copy_expert("COPY outbox.message"
                               " (topic, key, payload, event_id) FROM STDIN",
                               messages)
            cursor.copy_expert("COPY ledger.event FROM STDIN", entries)
        return self.commit()

    def shape_savepoint(self):
        """Savepoints, some of them rolled back with what they published."""
        self.publish(self.some(1, 2, self.cold), "savepoint")
        for _ in range(self.random.randint(1, 4)):
            self.execute("SAVEPOINT a")
            self.publish([self.cold()], "savepoint")
            if self.random.random() < 0.3:
                self.execute("SAVEPOINT b")
                self.publish([self.cold()], "savepoint")
                self.execute("RELEASE SAVEPOINT b"
                             if self.random.random() < 0.5
                             else "ROLLBACK TO SAVEPOINT b")
            self.execute("ROLLBACK TO SAVEPOINT a"
                         if self.random.random() < 0.4
                         else "RELEASE SAVEPOINT a")
        if self.random.random() < 0.5:
            self.publish([self.cold()], "savepoint")
        return self.commit()

    def shape_exceptions(self):
        aggregate = self.cold()
        self.execute("SELECT ledger.exception_blocks(%s, %s, %s, %s, %s)",
                     (aggregate, self.topic(aggregate), "exceptions",
                      self.random.choice(FORMS),
                      self.random.choice((3, 20, 100))))
        return self.commit()

    def shape_rollback(self):
        self.publish(self.some(1, 4, self.cold), "rollback")
        self.connection.rollback()
        return "rolled_back"

    def shape_prepared(self):
        gid = "ledger-%s-%d-%d" % (self.options.run, self.number, self.prepared)
        self.prepared += 1
        # By hand: psycopg2 would send a COMMIT after PREPARE TRANSACTION.
        self.connection.autocommit = True
        try:
            self.execute("BEGIN")
            self.publish(self.some(1, 3, self.cold), "prepared")
            if self.random.random() < 0.3:
                self.execute("SAVEPOINT a")
                self.publish([self.cold()], "prepared")
                self.execute("ROLLBACK TO SAVEPOINT a")
            self.execute("PREPARE TRANSACTION '%s'" % gid)
        except CONFLICT:
            self.execute("ROLLBACK")
            self.connection.autocommit = False
            raise
        except psycopg2.Error:
            self.resolver.add(gid, 0.5)
            raise
        self.connection.autocommit = False
        self.resolver.add(gid, self.random.choice((0, 0.05, 0.5, 2.5)))
        return "prepared"

    def shape_early_xid(self):
        """Takes an xid, then publishes after others have committed."""
        self.execute("SELECT pg_current_xact_id()")
        time.sleep(self.random.choice((0, 0.005, 0.02))
                   if self.number % 4 else self.random.choice((0.1, 0.8)))
        self.publish(self.some(1, 3, self.hot), "early_xid")
        return self.commit()

    def shape_repeatable(self):
        """An old snapshot: what it may change nobody else has changed."""
        self.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self.execute("SELECT pg_current_xact_id()")
        time.sleep(self.random.choice((0, 0.01)))
        self.publish([self.cold()], "repeatable")
        return self.commit()

    def shape_held(self):
        """Publishes at once, then stays open for seconds."""
        self.publish([self.cold()], "held")
        time.sleep(self.random.uniform(1, self.options.hold))
        self.publish([self.cold()], "held")
        if self.random.random() < 0.2:
            self.connection.rollback()
            return "rolled_back"
        return self.commit()

    def shape_async(self):
        self.execute("SET LOCAL synchronous_commit = off")
        self.publish(self.some(1, 4, self.cold), "async")
        return self.commit()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conninfo", required=True)
    parser.add_argument("--topics", required=True,
                        type=lambda text: text.split(","))
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--until", help="and until this file exists")
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--aggregates", type=int, default=2000)
    parser.add_argument("--hot", type=int, default=16,
                        help="how many aggregates most sessions want")
    parser.add_argument("--hold", type=float, default=5,
                        help="longest time a held transaction stays open, s")
    parser.add_argument("--pace", type=float, default=0,
                        help="mean pause between a writer's transactions, s")
    parser.add_argument("--without", default=[],
                        type=lambda text: text.split(","),
                        help="shapes of transactions that are not wanted")
    parser.add_argument("--seed", default=None)
    parser.add_argument("--run", default="1",
                        help="part of the names of prepared transactions")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = str(random.SystemRandom().randrange(10 ** 9))
    log("seed %s, %d writers, %g s" % (options.seed, options.writers,
                                       options.seconds))

    connection = connect(options)
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regnamespace('ledger') IS NULL")
        if cursor.fetchone()[0]:
            cursor.execute(SETUP)
            cursor.execute("INSERT INTO ledger.aggregate"
                           " SELECT i, 0 FROM generate_series(0, %s) AS i",
                           (options.aggregates - 1,))
    connection.commit()
    connection.close()

    totals = Totals()
    resolver = Resolver(options, totals)
    deadline = time.monotonic() + options.seconds
    writers = [Writer(i, options, totals, resolver, deadline)
               for i in range(options.writers)]
    resolver.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    resolver.close()
    resolver.join()

    failures = [(t.name, t.failure) for t in writers + [resolver] if t.failure]
    for name, failure in failures:
        log("%s failed: %s: %s" % (name, type(failure).__name__, failure))

    connection = connect(options)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*), count(DISTINCT aggregate),"
                       " count(DISTINCT topic) FROM ledger.event")
        events, aggregates, topics = cursor.fetchone()
    connection.close()
    summary = dict(sorted(totals.counts.items()))
    summary.update(seed=options.seed, events=events, aggregates=aggregates,
                   topics=topics)
    print(json.dumps(summary))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
