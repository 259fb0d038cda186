#!/usr/bin/python3
"""Publish at a steady pace and measure when each message arrives.

One session publishes a message per transaction every --interval seconds while
a consumer (kcat) of the same topic runs. For each message it notes how long
publishing and committing took, and the time from the commit's return to the
arrival at the consumer (a little below zero is possible: the relay may be
faster than the answer to COMMIT). Other messages of the topic are counted and
otherwise ignored.

The program runs for --seconds, or with --until FILE as long as that
file does not exist; then it waits for what has not arrived, at most --wait
seconds. Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time

import psycopg2


class Consumer(threading.Thread):
    """Notes the time at which each event id arrives first."""

    def __init__(self, brokers, topic):
        super().__init__(name="consumer", daemon=True)
        self.process = subprocess.Popen(
            ["kcat", "-C", "-b", brokers, "-t", topic, "-o", "beginning",
             "-q", "-u", "-J", "-X", "fetch.wait.max.ms=10",
             "-X", "topic.metadata.refresh.interval.ms=1000"],
            stdout=subprocess.PIPE)
        self.arrived = {}
        self.condition = threading.Condition()

    def run(self):
        for line in self.process.stdout:
            now = time.time()
            headers = json.loads(line).get("headers") or []
            event = dict(zip(headers[0::2], headers[1::2])).get("ce_id")
            with self.condition:
                self.arrived.setdefault(event, now)
                self.condition.notify()

    def wait_for(self, events, seconds):
        deadline = time.monotonic() + seconds
        with self.condition:
            while not events <= self.arrived.keys():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.condition.wait(left)
        return True

    def stop(self):
        self.process.terminate()
        self.process.wait()


def publish(cursor, topic, text):
    cursor.execute("SELECT outbox.publish(%s, %s::text, 'pace')::text",
                   (topic, text))
    return cursor.fetchone()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conninfo", required=True)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--until", help="run until this file exists")
    parser.add_argument("--ready", help="make this file when the pace begins")
    parser.add_argument("--interval", type=float, default=0.05)
    parser.add_argument("--wait", type=float, default=20)
    options = parser.parse_args()

    consumer = Consumer(options.brokers, options.topic)
    consumer.start()
    connection = psycopg2.connect(options.conninfo)
    connection.autocommit = True
    sent = {}
    slowest = 0.0
    with connection.cursor() as cursor:
        # The consumer is there when the first message has come through.
        first = publish(cursor, options.topic, "first")
        ready = consumer.wait_for({first}, options.wait)
        if not ready:
            print("# the first message did not arrive in %g s" % options.wait,
                  file=sys.stderr)
        if options.ready:
            with open(options.ready, "w", encoding="ascii"):
                pass
        end = time.monotonic() + options.seconds
        while (not os.path.exists(options.until) if options.until
               else time.monotonic() < end):
            began = time.monotonic()
            event = publish(cursor, options.topic, "message %d" % len(sent))
            sent[event] = time.time()
            took = time.monotonic() - began
            slowest = max(slowest, took)
            time.sleep(max(0.0, options.interval - took))
    complete = consumer.wait_for(sent.keys(), options.wait)
    consumer.stop()

    delays = sorted(consumer.arrived[e] - t for e, t in sent.items()
                    if e in consumer.arrived)
    result = {
        "published": len(sent),
        "arrived": len(delays),
        "others": len(set(consumer.arrived) - set(sent) - {first}),
        "slowest_publish": round(slowest, 4),
    }
    if delays:
        result["delay_p50"] = round(delays[len(delays) // 2], 4)
        result["delay_p99"] = round(delays[len(delays) * 99 // 100], 4)
        result["delay_max"] = round(delays[-1], 4)
    print(json.dumps(result))
    sys.exit(0 if ready and complete else 1)


if __name__ == "__main__":
    main()
