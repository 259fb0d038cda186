/*
 * inbox_dedupe.c
 *	  Event ids that were handled, for subscriptions with a dedupe_window.
 *
 * A producer that is not exact writes a message twice, at two offsets. The
 * second one is passed over if its event id is known. A message that is read
 * again at the same place, after inbox.seek(), is not a second one.
 *
 * The ids stand in a ring of tables. The current one is left for the next after
 * half of the longest window, and what is in that one then is older than one and
 * a half windows: it gets new, empty files, without a row being deleted.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "inbox_internal.h"

#define RING_TABLES 4

/* Columns of inbox.seen_N */
enum
{
	SEEN_SUBSCRIPTION = 1, SEEN_EVENT_ID, SEEN_TOPIC, SEEN_PARTITION,
	SEEN_OFFSET,
	SEEN_COLUMNS = SEEN_OFFSET
};

/* How often the ring is looked at, in ms. */
#define LOOK_MIN_MS 200
#define LOOK_MAX_MS 60000

static int	current = 0;
static TimestampTz look_at = 0;

static Relation
open_seen(int number, LOCKMODE mode)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "seen_%d", number);
	return inbox_store_open(name, mode);
}

/* 0: not there; 1: as this very message; 2: as another one. */
static int
look_up(Inbox *inbox, Relation rel, const InboxPartition *partition, const KafkaItem *item,
		const pg_uuid_t *event_id)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	int			result = 0;

	ScanKeyInit(&keys[0], SEEN_SUBSCRIPTION, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(inbox->subscription->id));
	ScanKeyInit(&keys[1], SEEN_EVENT_ID, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(event_id));
	scan = systable_beginscan(rel, compat_primary_key_index(rel), true, SnapshotSelf, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[SEEN_COLUMNS + 1];
		bool		nulls[SEEN_COLUMNS + 1];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values + 1, nulls + 1);
		result = DatumGetInt64(values[SEEN_OFFSET]) == item->offset &&
			DatumGetInt32(values[SEEN_PARTITION]) == partition->number &&
			strcmp(TextDatumGetCString(values[SEEN_TOPIC]), partition->topic) == 0 ? 1 : 2;
	}
	systable_endscan(scan);
	return result;
}

bool
inbox_is_duplicate(Inbox *inbox, const InboxPartition *partition,
				   const KafkaItem *item, const pg_uuid_t *event_id)
{
	Relation	rel;
	Datum		values[SEEN_COLUMNS + 1];
	bool		nulls[SEEN_COLUMNS + 1] = {false};

	for (int i = 0; i < RING_TABLES; i++)
	{
		int			found;

		rel = open_seen(i, AccessShareLock);
		found = look_up(inbox, rel, partition, item, event_id);
		table_close(rel, NoLock);
		if (found != 0)
			return found == 2;
	}
	rel = open_seen(current, RowExclusiveLock);
	values[SEEN_SUBSCRIPTION] = Int32GetDatum(inbox->subscription->id);
	values[SEEN_EVENT_ID] = UUIDPGetDatum(event_id);
	values[SEEN_TOPIC] = CStringGetTextDatum(partition->topic);
	values[SEEN_PARTITION] = Int32GetDatum(partition->number);
	values[SEEN_OFFSET] = Int64GetDatum(item->offset);
	CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values + 1, nulls + 1));
	table_close(rel, NoLock);
	return false;
}

/* Which table is current, since when, and half of the longest window in ms. */
static bool
read_ring(TimestampTz *since, int64 *half)
{
	bool		isnull;
	bool		found;

	if (SPI_execute("SELECT r.number::pg_catalog.int4, r.turned_at,"
					" (SELECT (pg_catalog.max(pg_catalog.date_part('epoch', s.dedupe_window))"
					" OPERATOR(pg_catalog.*) 500)::pg_catalog.int8 FROM inbox.subscription AS s)"
					" FROM inbox.seen_ring AS r WHERE r.is_current", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.seen_ring");
	found = SPI_processed == 1;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		current = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		*since = DatumGetTimestampTz(SPI_getbinval(row, desc, 2, &isnull));
		*half = DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
		found = !isnull && current >= 0 && current < RING_TABLES;
	}
	return found;
}

/* Empty a table that no session uses at the moment. */
static bool
empty(int number)
{
	char		name[NAMEDATALEN];
	Oid			relation;
	Relation	rel;
	Oid			toast;

	snprintf(name, sizeof(name), "seen_%d", number);
	relation = inbox_store_relation(name);
	if (!ConditionalLockRelationOid(relation, AccessExclusiveLock))
		return false;
	rel = table_open(relation, NoLock);
	toast = rel->rd_rel->reltoastrelid;
	if (OidIsValid(toast))
	{
		Relation	toast_rel;

		if (!ConditionalLockRelationOid(toast, AccessExclusiveLock))
		{
			table_close(rel, NoLock);
			return false;
		}
		toast_rel = table_open(toast, NoLock);
		compat_new_relfilenumber(toast_rel);
		table_close(toast_rel, NoLock);
	}
	compat_new_relfilenumber(rel);
	pgstat_count_truncate(rel);
	table_close(rel, NoLock);
	(void) compat_reindex_relation(relation, REINDEX_REL_PROCESS_TOAST);
	return true;
}

static void
turn(int next)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(next)};

	if (SPI_execute_with_args("UPDATE inbox.seen_ring SET is_current = (number OPERATOR(pg_catalog.=) $1),"
							  " turned_at = pg_catalog.clock_timestamp()"
							  " WHERE is_current OR number OPERATOR(pg_catalog.=) $1",
							  1, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write inbox.seen_ring");
	current = next;
}

void
inbox_dedupe_load(void)
{
	look_at = 0;
}

TimestampTz
inbox_dedupe_due(const Inbox *inbox)
{
	return inbox->subscription != NULL && inbox->subscription->dedupe_ms > 0 ? look_at : 0;
}

/* Whether there is anything to forget. */
static bool
has_ids(void)
{
	bool		found = false;

	for (int i = 0; i < RING_TABLES && !found; i++)
	{
		Relation	rel = open_seen(i, AccessShareLock);

		found = RelationGetNumberOfBlocks(rel) > 0;
		table_close(rel, NoLock);
	}
	return found;
}

void
inbox_dedupe_rotate(Inbox *inbox, TimestampTz now)
{
	TimestampTz since;
	int64		half;
	bool		abandon = false;

	if (inbox->subscription->dedupe_ms == 0 || look_at > now)
		return;
	look_at = TimestampTzPlusMilliseconds(now, LOOK_MAX_MS);

	inbox_begin();
	SPI_connect();
	if (read_ring(&since, &half))
	{
		TimestampTz due = TimestampTzPlusMilliseconds(since, half);

		look_at = TimestampTzPlusMilliseconds(now, Max(Min(TimestampDifferenceMilliseconds(now, due),
														   LOOK_MAX_MS), LOOK_MIN_MS));
		if (due <= now && !has_ids())
			look_at = TimestampTzPlusMilliseconds(now, LOOK_MAX_MS);
		else if (due <= now &&
				 ConditionalLockRelationOid(inbox_store_relation("seen_ring"), ExclusiveLock))
		{
			/* somebody else may have been faster */
			PushActiveSnapshot(GetLatestSnapshot());
			if (read_ring(&since, &half) && TimestampTzPlusMilliseconds(since, half) <= now)
			{
				int			next = (current + 1) % RING_TABLES;

				if (empty(next))
					turn(next);
				else
					abandon = true;
			}
			PopActiveSnapshot();
		}
	}
	SPI_finish();
	if (abandon)
	{
		/* the table may be renewed when its TOAST table could not be */
		PopActiveSnapshot();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(inbox->loop_context);
		return;
	}
	inbox_commit(inbox);
}
