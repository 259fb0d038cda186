/*
 * wait_published.c
 *	  outbox.wait_published(): wait until a message is acknowledged.
 *
 * The message is looked up by its event id, then the progress on disk is asked
 * again each time the relay has stored some. A waiting backend is counted in
 * the slot, so that the relay stores progress as soon as there is any; it
 * holds no snapshot of its own while it waits.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "storage/condition_variable.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "compat.h"
#include "held.h"
#include "message.h"
#include "progress.h"
#include "shmem.h"

/* Without a relay to be told by, or as a safety net. */
#define LOOK_INTERVAL_MS 1000

PG_FUNCTION_INFO_V1(outbox_kafka_wait_published);

/* A message as found by its event id. */
typedef struct FoundMessage
{
	uint64		xid;
	int64		id;
	TupleTableSlot *slot;		/* a copy of the row, or NULL: not found */
} FoundMessage;

/* Find a message, the last one if the id is not unique. */
static void
find_message(const OutboxCatalog *catalog, Datum event_id, FoundMessage *found)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	memset(found, 0, sizeof(*found));
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	leaf = table_open(catalog->leaf[i], AccessShareLock);
		Relation	index;
		IndexScanDesc scan;
		TupleTableSlot *slot;
		ScanKeyData key;

		if (RelationGetNumberOfBlocks(leaf) == 0)
		{
			table_close(leaf, AccessShareLock);
			continue;
		}
		index = index_open(catalog->leaf_event_index[i], AccessShareLock);
		slot = table_slot_create(leaf, NULL);
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, event_id);
		scan = compat_index_beginscan(leaf, index, snapshot, 1);
		index_rescan(scan, &key, 1, NULL, 0);
		while (index_getnext_slot(scan, ForwardScanDirection, slot))
		{
			bool		isnull;
			int64		id = DatumGetInt64(slot_getattr(slot, Anum_outbox_message_id,
														&isnull));

			if (id < found->id)
				continue;
			found->id = id;
			found->xid = U64FromFullTransactionId(DatumGetFullTransactionId(
																			slot_getattr(slot, Anum_outbox_message_xid, &isnull)));
			if (found->slot == NULL)
				found->slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(leaf)),
													   &TTSOpsHeapTuple);
			ExecCopySlot(found->slot, slot);
		}
		index_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
		index_close(index, AccessShareLock);
		table_close(leaf, AccessShareLock);
	}
	UnregisterSnapshot(snapshot);
}

/*
 * Parked and discarded messages are behind the progress, but Kafka does not
 * have them. table: of those, its first column, the primary key, is the id.
 */
static bool
is_in(Oid table, int64 id)
{
	Relation	rel = table_open(table, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan;
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = systable_beginscan(rel, compat_primary_key_index(rel), true,
							  snapshot, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return found;
}

static bool
is_delivered(const FoundMessage *message, MemoryContext context, bool *discarded)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		covered;
	bool		result;

	/* the progress first: a message is set aside before it is covered */
	covered = held_or_main_delivered(catalog_get(false), message->xid, message->id,
									 message->slot);
	result = covered && !is_in(catalog_get(false)->parked, message->id);
	*discarded = result && is_in(catalog_get(false)->discarded, message->id);
	if (*discarded)
		result = false;
	MemoryContextSwitchTo(old);
	MemoryContextReset(context);
	return result;
}

static void
stop_waiting(int code, Datum arg)
{
	RelaySlot  *slot = (RelaySlot *) DatumGetPointer(arg);

	pg_atomic_fetch_sub_u32(&slot->waiters, 1);
}

/* Poll and sleep until delivered or the end of time. */
static bool
wait_delivered(RelaySlot *slot, const FoundMessage *message, TimestampTz end)
{
	static uint32 wait_event = 0;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "outbox wait", ALLOCSET_SMALL_SIZES);
	bool		result;

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxWaitPublished");

	if (slot != NULL)
	{
		ConditionVariablePrepareToSleep(&slot->progress_cv);
		shmem_set_latch(pg_atomic_read_u32(&slot->worker.procno));
	}
	for (;;)
	{
		long		timeout;
		bool		discarded;

		result = is_delivered(message, context, &discarded);
		if (result || discarded)
			break;
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (timeout <= 0)
			break;
		timeout = Min(timeout, LOOK_INTERVAL_MS);

		if (slot != NULL)
			(void) ConditionVariableTimedSleep(&slot->progress_cv, timeout, wait_event);
		else
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 timeout, wait_event);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
	}
	if (slot != NULL)
		ConditionVariableCancelSleep();
	MemoryContextDelete(context);
	return result;
}

/* The same, counted as a waiter meanwhile, also if it ends by an error. */
static bool
wait_counted(RelaySlot *slot, const FoundMessage *message, TimestampTz end)
{
	volatile bool result = false;

	pg_atomic_fetch_add_u32(&slot->waiters, 1);
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	{
		result = wait_delivered(slot, message, end);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	stop_waiting(0, PointerGetDatum(slot));
	return result;
}

/*
 * True when acknowledged, false at the timeout or when it was discarded, NULL
 * when no such message is retained (not published, rolled back, or retention is over).
 */
Datum
outbox_kafka_wait_published(PG_FUNCTION_ARGS)
{
	Datum		event_id = PG_GETARG_DATUM(0);
	Interval   *timeout = PG_GETARG_INTERVAL_P(1);
	OutboxCatalog catalog = *catalog_get(false);
	TimestampTz end;
	RelaySlot  *slot;
	FoundMessage message;

	end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												  TimestampTzGetDatum(GetCurrentTimestamp()),
												  IntervalPGetDatum(timeout)));

	find_message(&catalog, event_id, &message);
	if (message.slot == NULL)
		PG_RETURN_NULL();

	if (message.xid == U64FromFullTransactionId(GetTopFullTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("outbox.wait_published() cannot be called in the transaction that published the message"),
				 errdetail("A message is sent only after its transaction has committed."),
				 errhint("Commit first, then wait.")));

	slot = shared_state ? shmem_find_slot(MyDatabaseId) : NULL;
	PG_RETURN_BOOL(slot ? wait_counted(slot, &message, end) :
				   wait_delivered(NULL, &message, end));
}
