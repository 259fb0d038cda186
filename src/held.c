/*
 * held.c
 *	  Lanes that are held, as they stand in outbox.held_lane.
 *
 * Anybody may read the table; the relay alone writes it, in the transactions
 * in which it also writes its progress. So whoever reads the main cursor's
 * progress first and this table afterwards is not misled: a message that the
 * main cursor has passed over is either in a lane that is still held, or was
 * delivered by that lane's cursor in between.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "held.h"
#include "lane.h"
#include "message.h"

#define Anum_held_lane_cursor_id 1
#define Anum_held_lane_topic 2
#define Anum_held_lane_partition 3
#define Anum_held_lane_partitions 4
#define Anum_held_lane_since 5
#define Anum_held_lane_reason 6
#define Anum_held_lane_error 7
#define Anum_held_lane_waiting 8

/* By HeldReason; the table has a check on them. */
static const char *const reasons[] = {"no answer", "refused", "paused", "isolated"};

static HeldReason
reason_by_name(const char *name)
{
	for (int i = 0; i < (int) lengthof(reasons); i++)
	{
		if (strcmp(reasons[i], name) == 0)
			return (HeldReason) i;
	}
	elog(ERROR, "unexpected reason \"%s\" in outbox.held_lane", name);
}

static HeldLane *
lane_from_tuple(HeapTuple tuple, TupleDesc desc)
{
	HeldLane   *lane = palloc0(sizeof(HeldLane));
	bool		isnull;
	Datum		value;

	lane->cursor_id = DatumGetInt32(heap_getattr(tuple, Anum_held_lane_cursor_id,
												 desc, &isnull));
	strlcpy(lane->topic,
			TextDatumGetCString(heap_getattr(tuple, Anum_held_lane_topic, desc, &isnull)),
			sizeof(lane->topic));
	value = heap_getattr(tuple, Anum_held_lane_partition, desc, &isnull);
	lane->partition = isnull ? HELD_WHOLE_TOPIC : DatumGetInt32(value);
	value = heap_getattr(tuple, Anum_held_lane_partitions, desc, &isnull);
	lane->partitions = isnull ? 0 : DatumGetInt32(value);
	lane->since = DatumGetTimestampTz(heap_getattr(tuple, Anum_held_lane_since,
												   desc, &isnull));
	lane->reason = reason_by_name(TextDatumGetCString(heap_getattr(tuple,
																   Anum_held_lane_reason,
																   desc, &isnull)));
	value = heap_getattr(tuple, Anum_held_lane_error, desc, &isnull);
	if (!isnull)
		strlcpy(lane->error, TextDatumGetCString(value), sizeof(lane->error));
	lane->waiting = DatumGetInt64(heap_getattr(tuple, Anum_held_lane_waiting,
											   desc, &isnull));
	return lane;
}

bool
held_read(const OutboxCatalog *catalog, CursorLocking locking, List **lanes,
		  MemoryContext context)
{
	MemoryContext old;
	Relation	rel;
	Snapshot	snapshot;
	TableScanDesc scan;
	HeapTuple	tuple;

	*lanes = NIL;
	if (!cursor_lock(catalog->held_lane, AccessShareLock, locking))
		return false;
	rel = table_open(catalog->held_lane, NoLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		old = MemoryContextSwitchTo(context);
		*lanes = lappend(*lanes, lane_from_tuple(tuple, RelationGetDescr(rel)));
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	return true;
}

bool
held_contains(const HeldLane *lane, TupleTableSlot *slot)
{
	return lane->partition == HELD_WHOLE_TOPIC ||
		lane_of_message(slot, lane->partitions) == lane->partition;
}

HeldLane *
held_find(List *lanes, TupleTableSlot *slot)
{
	HeldLane   *whole = NULL;
	ListCell   *lc;
	bool		isnull;
	text	   *topic;

	if (lanes == NIL)
		return NULL;
	topic = DatumGetTextPP(slot_getattr(slot, Anum_outbox_message_topic, &isnull));
	foreach(lc, lanes)
	{
		HeldLane   *lane = (HeldLane *) lfirst(lc);

		if (strlen(lane->topic) != VARSIZE_ANY_EXHDR(topic) ||
			memcmp(lane->topic, VARDATA_ANY(topic), VARSIZE_ANY_EXHDR(topic)) != 0)
			continue;
		if (lane->partition == HELD_WHOLE_TOPIC)
			whole = lane;
		else if (held_contains(lane, slot))
			return lane;
	}
	return whole;
}

bool
held_or_main_delivered(const OutboxCatalog *catalog, uint64 xid, int64 id,
					   TupleTableSlot *slot)
{
	OutboxCatalog copy = *catalog;
	Progress	progress = {0};
	List	   *lanes;
	HeldLane   *lane;

	/* in this order, see above */
	if (progress_read(&copy, 0, CURSOR_WAIT, &progress, CurrentMemoryContext) != PROGRESS_OK ||
		!progress_covers(&progress, xid, id))
		return false;
	if (!held_read(&copy, CURSOR_WAIT, &lanes, CurrentMemoryContext))
		return false;
	lane = held_find(lanes, slot);
	if (lane == NULL)
		return true;

	/* gone by now: it has caught up */
	memset(&progress, 0, sizeof(progress));
	switch (progress_read(&copy, lane->cursor_id, CURSOR_WAIT, &progress,
						  CurrentMemoryContext))
	{
		case PROGRESS_OK:
			return progress_covers(&progress, xid, id);
		case PROGRESS_MISSING:
			return true;
		default:
			return false;
	}
}

/* ---- for the relay ---- */

static void
execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
		int expected)
{
	SPI_connect();
	if (SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0) != expected)
		elog(ERROR, "unexpected result of a statement on outbox.held_lane");
	SPI_finish();
}

bool
held_lock(const OutboxCatalog *catalog)
{
	return ConditionalLockRelationOid(catalog->held_lane, RowExclusiveLock) &&
		ConditionalLockRelationOid(catalog->relay_state, RowExclusiveLock) &&
		ConditionalLockRelationOid(catalog->relay_position, RowExclusiveLock);
}

bool
held_insert(const OutboxCatalog *catalog, const HeldLane *lane, const Progress *start)
{
	Oid			types[] = {INT4OID, TEXTOID, INT4OID, INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	OutboxCatalog copy = *catalog;

	if (!held_lock(&copy))
		return false;
	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(lane->cursor_id);
	values[1] = CStringGetTextDatum(lane->topic);
	values[2] = Int32GetDatum(lane->partition);
	values[3] = Int32GetDatum(lane->partitions);
	if (lane->partition == HELD_WHOLE_TOPIC)
		nulls[2] = nulls[3] = 'n';
	values[4] = TimestampTzGetDatum(lane->since);
	values[5] = CStringGetTextDatum(reasons[lane->reason]);
	values[6] = CStringGetTextDatum(lane->error);
	values[7] = Int64GetDatum(lane->waiting);
	execute("INSERT INTO outbox.held_lane"
			" (cursor_id, topic, partition, partitions, since, reason, error, waiting)"
			" VALUES ($1, $2, $3, $4, $5, $6, nullif($7, ''), $8)",
			lengthof(types), types, values, nulls, SPI_OK_INSERT);
	progress_insert(&copy, lane->cursor_id, start);
	return true;
}

bool
held_delete(const OutboxCatalog *catalog, const HeldLane *lane)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(lane->cursor_id)};
	OutboxCatalog copy = *catalog;

	if (!held_lock(&copy))
		return false;
	execute("DELETE FROM outbox.held_lane WHERE cursor_id = $1",
			1, types, values, NULL, SPI_OK_DELETE);
	progress_delete(&copy, lane->cursor_id);
	return true;
}

bool
held_update(const OutboxCatalog *catalog, const HeldLane *lane)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[] = {
		Int32GetDatum(lane->cursor_id), CStringGetTextDatum(reasons[lane->reason]),
		CStringGetTextDatum(lane->error), Int64GetDatum(lane->waiting)
	};

	if (!ConditionalLockRelationOid(catalog->held_lane, RowExclusiveLock))
		return false;
	execute("UPDATE outbox.held_lane SET reason = $2, error = nullif($3, ''), waiting = $4"
			" WHERE cursor_id = $1",
			lengthof(types), types, values, NULL, SPI_OK_UPDATE);
	return true;
}
