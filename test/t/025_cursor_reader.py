#!/usr/bin/python3
"""Read an outbox under load with several cursors, right and wrong ones.

For each variant of cursor_test.start() named on the command line, a session
calls cursor_test.next() in a loop, with pieces of a random number of rows,
and notes the ids in the order in which they would be sent. Nothing is written
to the database: an xid taken here would disturb what is watched.

Says "ready" when all cursors are started. When standard input ends, the
writers have ended: read once more, compare with outbox.message, which holds
exactly what was committed, and print one JSON object: for each variant how
many messages were lost, duplicated, not committed, and sent after a later
version of their aggregate.
"""

import argparse
import collections
import json
import random
import sys
import threading

import psycopg2


class Reader(threading.Thread):
    def __init__(self, options, variant):
        super().__init__(name=variant, daemon=True)
        self.variant = variant
        self.random = random.Random("%s-%s" % (options.seed, variant))
        self.connection = psycopg2.connect(options.conninfo)
        self.connection.autocommit = True
        self.sent = []
        self.batches = 0
        self.finish = threading.Event()
        self.failure = None
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT cursor_test.start(%s, %s)", (variant, variant))

    def next(self):
        rows = self.random.choice((0, 1, 1, 2, 3, 10, 100))
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT id FROM cursor_test.next(%s, %s) AS id",
                           (self.variant, rows))
            ids = [row[0] for row in cursor]
        self.sent += ids
        if ids:
            self.batches += 1

    def run(self):
        try:
            # batches of many sizes
            while not self.finish.wait(self.random.choice((0, 0.002, 0.02))):
                self.next()
            # all writers have ended: one batch shows the rest
            self.next()
        except Exception as error:     # reported by main()
            self.failure = error


def judge(sent, committed):
    """committed: id -> (aggregate or None, version)."""
    counts = collections.Counter(sent)
    newest = {}
    misordered = 0
    for number in sent:
        aggregate, version = committed.get(number, (None, None))
        if aggregate is None:
            continue
        if version < newest.get(aggregate, 0):
            misordered += 1
        newest[aggregate] = max(version, newest.get(aggregate, 0))
    return {
        "sent": len(sent),
        "lost": sum(1 for number in committed if number not in counts),
        "duplicated": sum(n - 1 for n in counts.values()),
        "uncommitted": sum(1 for number in counts if number not in committed),
        "misordered": misordered,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conninfo", required=True)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10 ** 9)))
    parser.add_argument("variants", nargs="+")
    options = parser.parse_args()
    print("# reader's seed %s" % options.seed, file=sys.stderr, flush=True)

    readers = [Reader(options, variant) for variant in options.variants]
    for reader in readers:
        reader.start()
    print("ready", flush=True)
    sys.stdin.read()
    for reader in readers:
        reader.finish.set()
    for reader in readers:
        reader.join()

    connection = psycopg2.connect(options.conninfo)
    with connection.cursor() as cursor:
        cursor.execute("SELECT m.id, e.aggregate, e.version"
                       " FROM outbox.message AS m JOIN ledger.event AS e USING (event_id)")
        committed = {row[0]: row[1:] for row in cursor}
        cursor.execute("SELECT count(*), count(DISTINCT segment) FROM outbox.message")
        rows, segments = cursor.fetchone()
    result = {
        "committed": len(committed),
        "rows": rows,
        "segments": segments,
        "failures": ["%s: %s" % (reader.variant, reader.failure)
                     for reader in readers if reader.failure],
        "variants": {reader.variant: dict(judge(reader.sent, committed),
                                          batches=reader.batches)
                     for reader in readers},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
