#!/usr/bin/python3
"""When what arrived in a run of the chaos rig, and what explains it.

Reads the ledger and the consumer's log (as test/ledger/compare.py does; the
records carry the broker's time of appending) and the rig's timeline. Prints
one JSON object: events by kind, the longest time without an arrival and what
happened meanwhile, and the repeated messages by the fault they came after.

Repeated messages are checked as the run went on, too: those that had arrived
before the n-th end of the relay can only come from the ends before it. What a
promotion adds (messages that were appended after the last transaction that
the standby knew of) is counted here and added to the allowance.
"""

import argparse
import bisect
import collections
import json


def read_ledger(path):
    """Return event id -> kind."""
    kinds = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            event, _, _, _, kind, _ = line.rstrip("\n").split("\t")
            kinds[event] = kind
    return kinds


def read_log(path):
    """Return (time, topic, partition, offset, event id) of each record, by time."""
    records = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            message = json.loads(line)
            headers = message.get("headers") or []
            named = dict(zip(headers[0::2], headers[1::2]))
            records.append((message["ts"] / 1000, message["topic"],
                            message["partition"], message["offset"],
                            named.get("ce_id")))
    records.sort()
    return records


def longest_gap(times, began, ended, events):
    """The longest stretch of the load without an arrival."""
    best = (0, began)
    last = began
    for time in [t for t in times if began <= t <= ended] + [ended]:
        if time - last > best[0]:
            best = (time - last, last)
        last = time
    seconds, start = best
    during = [e["text"] for e in events
              if start - 2 <= e["time"] <= start + seconds]
    return {"seconds": seconds, "from": start - began,
            "during": "; ".join(during)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--timeline", required=True)
    options = parser.parse_args()

    with open(options.timeline, encoding="utf-8") as file:
        timeline = json.load(file)
    events = sorted(timeline["events"], key=lambda e: e["time"])
    kinds = read_ledger(options.ledger)
    records = read_log(options.log)
    times = [r[0] for r in records]
    began, ended = timeline["began"], timeline["ended"]

    seen = set()
    repeated = []
    for time, _, _, _, event in records:
        if event in seen:
            repeated.append(time)
        seen.add(event)

    faults = [e for e in events if e.get("kind")]
    fault_times = [e["time"] for e in faults]
    after = collections.Counter()
    for time in repeated:
        place = bisect.bisect_right(fault_times, time) - 1
        after[faults[place]["kind"] if place >= 0 else "nothing"] += 1

    ends = [e for e in events if e.get("ends_relay")]
    lag = 0
    allowed = timeline["allowed"] - 2 * timeline["max_in_flight"] * len(ends)
    too_many = []
    for place, end in enumerate(ends):
        count = bisect.bisect_left(repeated, end["time"])
        if count > allowed:
            too_many.append({"at": round(end["time"] - began, 1),
                             "repeated": count, "allowed": allowed})
        allowed += 2 * timeline["max_in_flight"]
        if end.get("known") is not None:
            lag += (bisect.bisect_right(times, end["time"] + 1)
                    - bisect.bisect_left(times, end["known"]))
            allowed += (bisect.bisect_right(times, end["time"] + 1)
                        - bisect.bisect_left(times, end["known"]))

    print(json.dumps({
        "kinds": collections.Counter(kinds.values()),
        "gap": longest_gap(times, began, ended, events),
        "repeated_after": after,
        "replication_lag": lag,
        "allowed": timeline["allowed"] + lag,
        "too_many": too_many,
    }))


if __name__ == "__main__":
    main()
