/*
 * wait_published.c
 *	  outbox.wait_published(): wait until a message is acknowledged.
 *
 * The message is looked up by its event id, then the progress on disk is asked
 * again each time the relay has stored some (progress_wait.c), with snapshots
 * that are not held in between.
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
#include "progress_wait.h"

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

/* What is waited for. */
typedef struct Waiting
{
	const FoundMessage *message;
	MemoryContext context;		/* reset after each look */
	bool		delivered;
} Waiting;

/* It is delivered, or will not be: it was discarded. */
static bool
is_over(void *arg)
{
	Waiting    *waiting = (Waiting *) arg;
	const FoundMessage *message = waiting->message;
	MemoryContext old = MemoryContextSwitchTo(waiting->context);
	bool		covered;
	bool		discarded = false;

	/* the progress first: a message is set aside before it is covered */
	covered = held_or_main_delivered(catalog_get(false), message->xid, message->id,
									 message->slot) &&
		!is_in(catalog_get(false)->parked, message->id);
	if (covered)
		discarded = is_in(catalog_get(false)->discarded, message->id);
	waiting->delivered = covered && !discarded;
	MemoryContextSwitchTo(old);
	MemoryContextReset(waiting->context);
	return covered;
}

/*
 * True when acknowledged, false at the timeout or when it was discarded, NULL
 * when no such message is retained (not published, rolled back, or retention is over).
 */
Datum
outbox_kafka_wait_published(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	TimestampTz end = progress_wait_end(PG_GETARG_INTERVAL_P(1));
	OutboxCatalog catalog = *catalog_get(false);
	FoundMessage message;
	Waiting		waiting = {.message = &message};

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxWaitPublished");

	find_message(&catalog, PG_GETARG_DATUM(0), &message);
	if (message.slot == NULL)
		PG_RETURN_NULL();

	if (message.xid == U64FromFullTransactionId(GetTopFullTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("outbox.wait_published() cannot be called in the transaction that published the message"),
				 errdetail("A message is sent only after its transaction has committed."),
				 errhint("Commit first, then wait.")));

	waiting.context = AllocSetContextCreate(CurrentMemoryContext, "outbox wait",
											ALLOCSET_SMALL_SIZES);
	progress_wait(is_over, &waiting, end, wait_event);
	PG_RETURN_BOOL(waiting.delivered);
}
