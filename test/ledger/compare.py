#!/usr/bin/python3
"""Compare the ledger of published messages with what a consumer received.

The ledger is a tab-separated file: event_id, topic, aggregate or \\N, version
or \\N, kind, md5 of the payload (COPY ledger.event TO ...). The log is what
kcat -C -J printed: one JSON object for each record of all partitions.

What must hold:
- every event of the ledger arrived, nothing else did, and topic, key and
  payload are the ones of the ledger;
- in each topic all messages of an aggregate are in one partition, and their
  first arrivals, by offset, are in the order of their versions;
- at most --duplicates messages arrived more than once (each further arrival
  counts).

With --prove, the log is then tampered with in memory in every way that the
comparison must notice; the program fails if one goes unnoticed. Prints totals
as one JSON object; the exit code is 0 if all holds.
"""

import argparse
import collections
import hashlib
import json
import sys

Entry = collections.namedtuple("Entry", "event topic aggregate version digest")
Record = collections.namedtuple("Record",
                                "event topic partition offset key digest")

SHOWN = 10


def read_ledger(path):
    ledger = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            event, topic, aggregate, version, _, digest = line.rstrip("\n").split("\t")
            ledger[event] = Entry(
                event, topic,
                None if aggregate == "\\N" else int(aggregate),
                None if version == "\\N" else int(version), digest)
    return ledger


def read_log(path):
    records = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            message = json.loads(line)
            headers = message.get("headers") or []
            named = dict(zip(headers[0::2], headers[1::2]))
            payload = message.get("payload")
            records.append(Record(
                named.get("ce_id"), message["topic"], message["partition"],
                message["offset"], message.get("key"),
                None if payload is None
                else hashlib.md5(payload.encode("utf-8")).hexdigest()))
    return records


class Problems:
    """Counts of what does not hold, with the first few of each kind."""

    def __init__(self):
        self.counts = collections.Counter()
        self.examples = []

    def add(self, kind, example):
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.examples.append("%s: %s" % (kind, example))


def compare(ledger, records, allowed_duplicates):
    """Return (problems, totals)."""
    problems = Problems()
    seen = set()
    duplicates = 0
    last_version = {}
    partition_of = {}

    for record in sorted(records, key=lambda r: (r.topic, r.partition, r.offset)):
        entry = ledger.get(record.event)
        if entry is None:
            problems.add("extra", record)
            continue
        key = None if entry.aggregate is None else "agg-%d" % entry.aggregate
        if (record.topic, record.key, record.digest) != (entry.topic, key, entry.digest):
            problems.add("different", (record, entry))
        if key is not None:
            lane = (record.topic, entry.aggregate)
            if partition_of.setdefault(lane, record.partition) != record.partition:
                problems.add("two partitions", record)
        if record.event in seen:
            duplicates += 1
            continue
        seen.add(record.event)
        if key is not None:
            if entry.version <= last_version.get(lane, 0):
                problems.add("out of order", "version %d after %d: %s" % (
                    entry.version, last_version[lane], record))
            else:
                last_version[lane] = entry.version

    for event, entry in ledger.items():
        if event not in seen:
            problems.add("lost", entry)
    if duplicates > allowed_duplicates:
        problems.add("duplicates", "%d, allowed are %d" % (
            duplicates, allowed_duplicates))

    totals = {
        "ledger": len(ledger),
        "arrived": len(records),
        "lost": problems.counts["lost"],
        "extra": problems.counts["extra"],
        "different": problems.counts["different"],
        "out_of_order": problems.counts["out of order"],
        "duplicates": duplicates,
        "duplicates_allowed": allowed_duplicates,
        "keys": len(partition_of),
        "keyless": sum(1 for e in ledger.values() if e.aggregate is None),
    }
    return problems, totals


def tamperings(ledger, records, allowed_duplicates):
    """Yield (what was done, the tampered log, the kind it must be seen as)."""
    records = sorted(records, key=lambda r: (r.topic, r.partition, r.offset))

    middle = len(records) // 2
    again = records[middle]._replace(
        offset=max(r.offset for r in records
                   if (r.topic, r.partition) == (records[middle].topic,
                                                 records[middle].partition)) + 1)
    yield ("too many twice",
           records + [again._replace(offset=again.offset + i)
                      for i in range(allowed_duplicates + 1)], "duplicates")

    previous = {}
    for place, record in enumerate(records):
        entry = ledger[record.event]
        if entry.aggregate is None:
            continue
        lane = (record.topic, entry.aggregate)
        before = previous.get(lane)
        if before is not None and records[before].event != record.event:
            swapped = list(records)
            swapped[before] = record._replace(offset=records[before].offset)
            swapped[place] = records[before]._replace(offset=record.offset)
            yield ("two of one key swapped", swapped, "out of order")
            break
        previous[lane] = place

    stranger = "00000000-0000-7000-8000-000000000000"
    yield ("an unknown one added",
           records + [records[-1]._replace(event=stranger, offset=1 << 60)],
           "extra")
    yield ("one without an id",
           records + [records[-1]._replace(event=None, offset=1 << 60)], "extra")
    yield ("another payload",
           [records[0]._replace(digest="0" * 32)] + records[1:], "different")
    yield ("another key",
           [records[0]._replace(key="nobody")] + records[1:], "different")

    keyed = next(i for i, r in enumerate(records)
                 if ledger[r.event].aggregate is not None
                 and sum(1 for s in records[:i] if s.topic == r.topic and s.key == r.key))
    yield ("another partition",
           records[:keyed] + [records[keyed]._replace(partition=1 << 20)]
           + records[keyed + 1:], "two partitions")

    victim = records[middle].event
    yield ("one dropped",
           [r for r in records if r.event != victim], "lost")


def prove(ledger, records, allowed_duplicates):
    """Return the number of tamperings and those that went unnoticed."""
    done = 0
    unnoticed = []
    for what, tampered, kind in tamperings(ledger, records, allowed_duplicates):
        done += 1
        problems, _ = compare(ledger, tampered, allowed_duplicates)
        if not problems.counts[kind]:
            unnoticed.append(what)
    return done, unnoticed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--duplicates", type=int, default=0)
    parser.add_argument("--prove", action="store_true")
    options = parser.parse_args()

    ledger = read_ledger(options.ledger)
    records = read_log(options.log)
    problems, totals = compare(ledger, records, options.duplicates)
    failed = bool(problems.counts)
    for example in problems.examples:
        print("# %s" % example, file=sys.stderr)
    if not ledger:
        print("# the ledger is empty", file=sys.stderr)
        failed = True
    if options.prove and not failed:
        done, unnoticed = prove(ledger, records, options.duplicates)
        totals["tamperings"] = done
        totals["tamperings_unnoticed"] = unnoticed
        failed = bool(unnoticed)
    print(json.dumps(totals))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
