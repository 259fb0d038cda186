/*
 * segment_ring.c
 *	  Moving publishing on to the next segment, and emptying delivered ones.
 *
 * Rows are never deleted; a segment is emptied as a whole, when every row in
 * it is delivered and outbox_kafka.retention has passed since that was first
 * seen. Retention counts from delivery, never from a row's clock: a message
 * that waited a week for a broker is kept as long as any other.
 *
 * Emptying takes the lock that truncation needs, but never waits for it: a
 * waiting ACCESS EXCLUSIVE lock would make every publisher of that segment
 * queue behind it. Under the lock no transaction with rows in the segment is
 * still running, so a snapshot taken then shows all that will ever be there;
 * if it shows a row that is not delivered (a publisher that chose this segment
 * long ago and committed late), the segment is left alone.
 *
 * The segment gets new, empty files, as TRUNCATE would give it, but without
 * TRUNCATE's record in logical decoding: a subscription to all tables would
 * otherwise empty the subscriber's own outbox.
 *
 * While room is scarce (outbox_kafka.max_backlog), delivered messages are not
 * kept, and the current segment is left however little it holds: with what is
 * delivered in it, it could not be emptied.
 *
 * When the next segment is not empty yet, publishing stays where it is, and
 * the current segment just grows.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "due.h"
#include "guc.h"
#include "segment_ring.h"

/* How soon to look again at a segment that could not be emptied now. */
#define RETRY_MS 5000

/* The same while room is scarce. */
#define HURRY_MS 500

/* A segment that holds anything is left behind after this time at the latest. */
#define MIN_TURN_INTERVAL_MS (5 * 60 * 1000)

typedef struct Segment
{
	TimestampTz turned_at;
	TimestampTz delivered_at;	/* 0: not seen delivered */
	BlockNumber blocks;			/* when last looked at */
	TimestampTz retry_at;
} Segment;

struct SegmentRing
{
	Oid			extension;		/* whose ring this is */
	int			current;
	bool		hurry;
	uint64		emptied;		/* how many, so far */
	Segment		segments[OUTBOX_SEGMENTS];
};

SegmentRing *
segment_ring_load(const OutboxCatalog *catalog, MemoryContext context)
{
	SegmentRing *ring = MemoryContextAllocZero(context, sizeof(SegmentRing));

	ring->extension = catalog->extension;
	SPI_connect();
	if (SPI_execute("SELECT segment, is_current, turned_at, delivered_at"
					" FROM outbox.segment", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.segment");

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int			number = DatumGetInt16(SPI_getbinval(tuple, desc, 1, &isnull));
		Datum		value;

		if (number < 0 || number >= OUTBOX_SEGMENTS)
			elog(ERROR, "unexpected segment %d", number);
		if (DatumGetBool(SPI_getbinval(tuple, desc, 2, &isnull)))
			ring->current = number;
		value = SPI_getbinval(tuple, desc, 3, &isnull);
		ring->segments[number].turned_at = isnull ? 0 : DatumGetTimestampTz(value);
		value = SPI_getbinval(tuple, desc, 4, &isnull);
		ring->segments[number].delivered_at = isnull ? 0 : DatumGetTimestampTz(value);
	}
	SPI_finish();
	return ring;
}

int
segment_ring_current(const SegmentRing *ring)
{
	return ring->current;
}

uint64
segment_ring_emptied(const SegmentRing *ring)
{
	return ring->emptied;
}

void
segment_ring_hurry(SegmentRing *ring, bool hurry)
{
	ring->hurry = hurry;
}

static void
commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * Begin a transaction that may write outbox.segment. That lock comes first and
 * is not waited for, nor is any other: waiting with locks held could become
 * half of a deadlock with DROP EXTENSION. False: not now.
 */
static bool
begin(const SegmentRing *ring, OutboxCatalog *catalog)
{
	const OutboxCatalog *found;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetLatestSnapshot());

	found = catalog_get(true);
	if (found == NULL || found->extension != ring->extension)
	{
		commit();
		return false;
	}
	*catalog = *found;
	if (!ConditionalLockRelationOid(catalog->segment, RowExclusiveLock))
	{
		commit();
		return false;
	}
	return true;
}

/* Store what memory says of one segment. Inside a transaction. */
static void
store(const SegmentRing *ring, int number)
{
	const Segment *segment = &ring->segments[number];
	Oid			types[4] = {INT2OID, BOOLOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[4] = {
		Int16GetDatum((int16) number),
		BoolGetDatum(number == ring->current),
		TimestampTzGetDatum(segment->turned_at),
		TimestampTzGetDatum(segment->delivered_at)
	};
	char		nulls[5] = {' ', ' ',
		segment->turned_at == 0 ? 'n' : ' ',
	segment->delivered_at == 0 ? 'n' : ' ', '\0'};

	SPI_connect();
	if (SPI_execute_with_args("UPDATE outbox.segment SET is_current = $2,"
							  " turned_at = $3, delivered_at = $4"
							  " WHERE segment OPERATOR(pg_catalog.=) $1",
							  4, types, values, nulls, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not update outbox.segment");
	SPI_finish();
}

static void
measure(SegmentRing *ring, const OutboxCatalog *catalog)
{
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	leaf;

		if (!ConditionalLockRelationOid(catalog->leaf[i], AccessShareLock))
			continue;
		leaf = try_table_open(catalog->leaf[i], NoLock);
		if (leaf == NULL)
			continue;
		ring->segments[i].blocks = RelationGetNumberOfBlocks(leaf);
		table_close(leaf, NoLock);
	}
}

/*
 * Whether the segment holds a committed row that done does not cover; true
 * also when that could not be found out. Inside a transaction.
 */
static bool
has_undelivered(const OutboxCatalog *catalog, int number, const CursorBound *done)
{
	CursorTables tables;
	CursorBound *now;
	CursorScan *scan;
	CursorRow	row;
	Snapshot	snapshot;
	bool		found;

	now = cursor_bound_take(catalog, CURSOR_NO_WAIT, CurrentMemoryContext);
	if (now == NULL || !cursor_tables_open(&tables, catalog, CURSOR_NO_WAIT, number))
		return true;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = cursor_scan_begin(&tables, done, now, 0, snapshot);
	found = cursor_scan_next(scan, &row);
	cursor_scan_end(scan);
	UnregisterSnapshot(snapshot);
	cursor_bound_release(now);
	cursor_tables_close(&tables);
	return found;
}

static void
turn(SegmentRing *ring, TimestampTz now)
{
	OutboxCatalog catalog;
	int			old = ring->current;

	if (!begin(ring, &catalog))
		return;
	ring->current = (old + 1) % OUTBOX_SEGMENTS;
	ring->segments[ring->current].turned_at = now;
	ring->segments[ring->current].delivered_at = 0;
	store(ring, old);
	store(ring, ring->current);
	commit();
	elog(DEBUG1, "publishing moves on to segment %d", ring->current);
}

/* Give a locked relation new, empty files. */
static bool
renew_files(Oid relation)
{
	Relation	rel;
	Oid			toast;

	if (!ConditionalLockRelationOid(relation, AccessExclusiveLock))
		return false;
	rel = table_open(relation, NoLock);
	toast = rel->rd_rel->reltoastrelid;
	if (OidIsValid(toast) && !renew_files(toast))
	{
		table_close(rel, NoLock);
		return false;
	}
	compat_new_relfilenumber(rel);
	pgstat_count_truncate(rel);
	table_close(rel, NoLock);
	return true;
}

/* Note whether all that is in a segment is delivered, and since when. */
static void
check_delivered(SegmentRing *ring, int number, const CursorBound *done,
				TimestampTz now)
{
	OutboxCatalog catalog;
	Segment    *segment = &ring->segments[number];

	segment->retry_at = TimestampTzPlusMilliseconds(now,
													ring->hurry ? HURRY_MS : RETRY_MS);
	if (!begin(ring, &catalog))
		return;
	if (!has_undelivered(&catalog, number, done))
	{
		segment->delivered_at = now;
		store(ring, number);
	}
	commit();
}

/* Empty a delivered segment. False: not now. */
static bool
empty(SegmentRing *ring, int number, const CursorBound *done)
{
	OutboxCatalog catalog;
	Segment    *segment = &ring->segments[number];
	Oid			leaf;

	if (!begin(ring, &catalog))
		return false;
	leaf = catalog.leaf[number];
	if (!ConditionalLockRelationOid(leaf, AccessExclusiveLock))
	{
		commit();
		return false;
	}
	if (has_undelivered(&catalog, number, done))
	{
		/* a late one: its retention counts from its own delivery */
		segment->delivered_at = 0;
		store(ring, number);
		commit();
		return false;
	}
	if (!renew_files(leaf))
	{
		/* the table may be renewed when its TOAST table could not be */
		PopActiveSnapshot();
		AbortCurrentTransaction();
		return false;
	}
	compat_reindex_relation(leaf, REINDEX_REL_PROCESS_TOAST);
	segment->delivered_at = 0;
	segment->blocks = 0;
	store(ring, number);
	commit();
	ring->emptied++;
	elog(DEBUG1, "emptied segment %d", number);
	return true;
}

/* Whether, or when, the current segment is to be left; 0: not foreseeable. */
static TimestampTz
turn_due(const SegmentRing *ring, TimestampTz now)
{
	const Segment *current = &ring->segments[ring->current];
	const Segment *next = &ring->segments[(ring->current + 1) % OUTBOX_SEGMENTS];
	uint64		limit = (uint64) guc_segment_size * 1024 * 1024;

	if (current->blocks == 0 || next->blocks != 0)
		return 0;
	if (ring->hurry)
		return now;
	if ((uint64) current->blocks * BLCKSZ >= limit)
		return now;
	return TimestampTzPlusMilliseconds(current->turned_at,
									   Max((int64) guc_retention * 1000 / 2,
										   MIN_TURN_INTERVAL_MS));
}

TimestampTz
segment_ring_maintain(SegmentRing *ring, const CursorBound *done)
{
	OutboxCatalog catalog;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = 0;
	TimestampTz turn_at;

	if (!begin(ring, &catalog))
		return TimestampTzPlusMilliseconds(now, RETRY_MS);
	measure(ring, &catalog);
	commit();

	turn_at = turn_due(ring, now);
	if (turn_at != 0 && turn_at <= now)
	{
		turn(ring, now);
		turn_at = turn_due(ring, now);
		if (turn_at != 0 && turn_at <= now)
			turn_at = TimestampTzPlusMilliseconds(now, RETRY_MS);
	}
	due = due_sooner(due, turn_at);

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Segment    *segment = &ring->segments[i];
		TimestampTz empty_at;

		if (i == ring->current || segment->blocks == 0)
			continue;

		if (segment->delivered_at == 0 && segment->retry_at <= now)
			check_delivered(ring, i, done, now);
		if (segment->delivered_at == 0)
		{
			due = due_sooner(due, segment->retry_at);
			continue;
		}

		empty_at = TimestampTzPlusMilliseconds(segment->delivered_at,
											   ring->hurry ? 0 : (int64) guc_retention * 1000);
		if (empty_at <= now)
		{
			if (empty(ring, i, done))
				continue;
			empty_at = TimestampTzPlusMilliseconds(now, RETRY_MS);
		}
		due = due_sooner(due, empty_at);
	}
	return due;
}
