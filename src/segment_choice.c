/*
 * segment_choice.c
 *	  Which segment of the ring new messages are written to.
 *
 * The relay turns the ring and says so in two places: in shared memory, for
 * publishers, and in outbox.segment, for a server without the preload and for
 * the time before the relay has started.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "outbox_kafka.h"
#include "segment_choice.h"
#include "shmem.h"

/* Columns of outbox.segment, in the order of the install script */
#define Anum_outbox_segment_segment 1
#define Anum_outbox_segment_is_current 2

PG_FUNCTION_INFO_V1(outbox_kafka_current_segment);

/*
 * The current segment according to the table. Without a current one (it was
 * changed by hand), the first of the ring.
 */
static int
segment_on_disk(void)
{
	Relation	rel;
	Snapshot	snapshot;
	TableScanDesc scan;
	HeapTuple	tuple;
	int			segment = 0;

	rel = table_open(catalog_get(false)->segment, AccessShareLock);
	snapshot = RegisterSnapshot(ActiveSnapshotSet() ? GetActiveSnapshot() : GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		bool		isnull;

		if (DatumGetBool(heap_getattr(tuple, Anum_outbox_segment_is_current,
									  RelationGetDescr(rel), &isnull)))
		{
			segment = DatumGetInt16(heap_getattr(tuple, Anum_outbox_segment_segment,
												 RelationGetDescr(rel), &isnull));
			break;
		}
	}

	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);

	if (segment < 0 || segment >= OUTBOX_SEGMENTS)
		segment = 0;

	return segment;
}

int
segment_current(void)
{
	RelaySlot  *slot = shared_state != NULL ? shmem_find_slot(MyDatabaseId) : NULL;

	if (slot != NULL)
	{
		uint32		segment = pg_atomic_read_u32(&slot->current_segment);

		if (segment < OUTBOX_SEGMENTS)
			return (int) segment;
	}

	return segment_on_disk();
}

Datum
outbox_kafka_current_segment(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT16((int16) segment_current());
}
