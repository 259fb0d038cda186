/*
 * cursor.c
 *	  Which messages are next, and in which order.
 *
 * The rule.  Take a snapshot; what it shows and the previous one did not is
 * the next batch; within a batch, order by id. If a transaction B could see
 * A's commit when it published, then A's id was drawn before B's, and every
 * snapshot that shows B shows A: so A is in an earlier batch, or earlier in
 * the same one. It does not matter how transactions overlap, in which order
 * they commit, which sequence values are skipped or how long one stays open:
 * a late one is simply in a later batch, and delays nobody.
 *
 * What looks simpler is wrong.  "id > last sent" loses a message whose id was
 * drawn early and committed late. "xid below the oldest running one" waits
 * for the slowest writer of the whole server. Ordering by xid sends an effect
 * before its cause: T2 takes its xid first, T1 takes the next one, publishes
 * and commits, T2 then sees that and publishes.
 *
 * Finding the rows without reading the backlog.  A bound is taken in this
 * order: (1) t, the highest id drawn; (2) the snapshot s; (3) n, the next
 * xid; (4) m, the highest id drawn. As a row's xid is always assigned before
 * its id is drawn, a row with an id up to t has an xid below n; so rows with
 * xid >= n have ids above t (the tail), and rows with a lower xid are either
 * visible in s or stragglers: their xid is listed as running in s, or lies in
 * [xmax(s), n). That last range matters: xmax is the last *completed* xid + 1
 * and a transaction running above it may own a low id. Relative to the lower
 * bound, then, the batch is
 *	- the tail: index (id), above t, rows with xid >= n seen by the upper bound;
 *	- for each straggler the upper bound sees: index (xid, id).
 * The range [xmax, n) is never expanded (a transaction with 200,000
 * subtransactions makes it that long): the index on (xid, id) is skipped
 * through, reading index entries only, so that only xids that own rows cost
 * anything. All streams are in id order and are merged with a heap.
 *
 * The upper bound's own snapshot can be hours older than the one the rows are
 * read with. Both are asked: the reading snapshot for what committed (and for
 * subtransactions that rolled back), the upper bound for what belongs to this
 * batch.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "lib/binaryheap.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

#include "compat.h"
#include "cursor.h"
#include "message.h"

/* Rows of one leaf in id order: its tail, or one straggler's rows. */
typedef struct Stream
{
	int			segment;
	uint64		straggler;		/* 0: the tail */
	IndexScanDesc scan;
	TupleTableSlot *slot;
	int64		id;				/* of the row in slot */
	uint64		xid;
} Stream;

struct CursorScan
{
	const CursorTables *tables;
	const CursorBound *lower;
	const CursorBound *upper;
	int64		position;
	Snapshot	snapshot;
	List	   *streams;
	binaryheap *heap;
	Stream	   *last;			/* the stream whose row the caller holds */
};

bool
cursor_lock(Oid relation, LOCKMODE mode, CursorLocking locking)
{
	if (locking == CURSOR_WAIT)
		LockRelationOid(relation, mode);
	else if (!ConditionalLockRelationOid(relation, mode))
		return false;
	return SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relation));
}

/* ---- bounds ---- */

CursorBound *
cursor_bound_make(XidSnapshot *snapshot, uint64 next_xid, int64 tail_id,
				  int64 max_id, MemoryContext context)
{
	CursorBound *bound = MemoryContextAlloc(context, sizeof(CursorBound));

	bound->snapshot = snapshot;
	bound->next_xid = next_xid;
	bound->tail_id = tail_id;
	bound->max_id = max_id;
	bound->references = 1;
	return bound;
}

CursorBound *
cursor_bound_take(const OutboxCatalog *catalog, CursorLocking locking,
				  MemoryContext context)
{
	MemoryContext old;
	XidSnapshot *snapshot;
	uint64		next_xid;
	int64		tail_id;
	int64		max_id;

	if (!cursor_lock(catalog->sequence, AccessShareLock, locking))
		return NULL;
	old = MemoryContextSwitchTo(context);

	/* the order of these four is the cursor's foundation, see above */
	tail_id = cursor_highest_id(catalog);
	snapshot = xid_snapshot_from(GetLatestSnapshot());
	next_xid = U64FromFullTransactionId(ReadNextFullTransactionId());
	max_id = cursor_highest_id(catalog);

	MemoryContextSwitchTo(old);
	return cursor_bound_make(snapshot, next_xid, tail_id, max_id, context);
}

CursorBound *
cursor_bound_share(CursorBound *bound)
{
	bound->references++;
	return bound;
}

void
cursor_bound_release(CursorBound *bound)
{
	Assert(bound->references > 0);
	if (--bound->references == 0)
	{
		pfree(bound->snapshot);
		pfree(bound);
	}
}

/*
 * The sequence's only tuple is read as nextval() would, but without its lock
 * on the relation waiting behind anybody: a share lock on the buffer is
 * enough to see a value that was really drawn. A sequence that has not been
 * used yet says last_value = 1, is_called = false: nothing has been drawn.
 */
int64
cursor_highest_id(const OutboxCatalog *catalog)
{
	Relation	sequence = relation_open(catalog->sequence, AccessShareLock);
	Buffer		buffer = ReadBuffer(sequence, 0);
	Page		page;
	Form_pg_sequence_data data;
	int64		result;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	data = (Form_pg_sequence_data)
		((char *) PageGetItem(page, PageGetItemId(page, FirstOffsetNumber)) +
		 ((HeapTupleHeader) PageGetItem(page, PageGetItemId(page, FirstOffsetNumber)))->t_hoff);
	result = data->is_called ? data->last_value : data->last_value - 1;
	UnlockReleaseBuffer(buffer);
	relation_close(sequence, NoLock);
	return result;
}

/* ---- tables ---- */

/*
 * NULL also when the index has had its place taken by REINDEX CONCURRENTLY
 * after we learnt its OID: such a one gets no new entries.
 */
static Relation
open_index(Oid relation, CursorLocking locking)
{
	Relation	index;

	if (!cursor_lock(relation, AccessShareLock, locking))
		return NULL;
	index = index_open(relation, NoLock);
	if (index->rd_index->indisvalid && index->rd_index->indisready)
		return index;
	index_close(index, NoLock);
	return NULL;
}

bool
cursor_tables_open(CursorTables *tables, const OutboxCatalog *catalog,
				   CursorLocking locking, int only_segment)
{
	memset(tables, 0, sizeof(*tables));

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	leaf;

		if (only_segment >= 0 && i != only_segment)
			continue;

		if (!cursor_lock(catalog->leaf[i], AccessShareLock, locking))
		{
			cursor_tables_close(tables);
			return false;
		}
		leaf = table_open(catalog->leaf[i], NoLock);
		if (RelationGetNumberOfBlocks(leaf) == 0)
		{
			table_close(leaf, NoLock);
			continue;
		}
		tables->leaf[i] = leaf;
		tables->id_index[i] = open_index(catalog->leaf_id_index[i], locking);
		tables->xid_index[i] = open_index(catalog->leaf_xid_index[i], locking);
		if (tables->id_index[i] == NULL || tables->xid_index[i] == NULL)
		{
			cursor_tables_close(tables);
			return false;
		}
	}
	return true;
}

void
cursor_tables_close(CursorTables *tables)
{
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (tables->leaf[i] == NULL)
			continue;
		if (tables->xid_index[i])
			index_close(tables->xid_index[i], NoLock);
		if (tables->id_index[i])
			index_close(tables->id_index[i], NoLock);
		table_close(tables->leaf[i], NoLock);
		tables->leaf[i] = NULL;
	}
}

/* ---- streams ---- */

/* Move a stream to its next row of the batch. False at its end. */
static bool
stream_advance(CursorScan *scan, Stream *stream)
{
	while (index_getnext_slot(stream->scan, ForwardScanDirection, stream->slot))
	{
		bool		isnull;

		stream->xid = U64FromFullTransactionId(DatumGetFullTransactionId(
																		 slot_getattr(stream->slot, Anum_outbox_message_xid, &isnull)));
		stream->id = DatumGetInt64(slot_getattr(stream->slot,
												Anum_outbox_message_id, &isnull));

		if (stream->straggler == 0 &&
			(stream->xid < scan->lower->next_xid ||
			 !xid_snapshot_sees(scan->upper->snapshot, stream->xid)))
			continue;
		return true;
	}
	return false;
}

static void
stream_end(Stream *stream)
{
	index_endscan(stream->scan);
	ExecDropSingleTupleTableSlot(stream->slot);
}

/*
 * Add the stream of one leaf for the tail (straggler 0) or a straggler; drop
 * it at once if it has no row.
 */
static void
stream_add(CursorScan *scan, int segment, uint64 straggler)
{
	const CursorTables *tables = scan->tables;
	Stream	   *stream = palloc0(sizeof(Stream));
	ScanKeyData keys[3];
	int			nkeys = 0;
	int			id_column = 1;
	int64		after = scan->position;

	stream->segment = segment;
	stream->straggler = straggler;
	stream->slot = table_slot_create(tables->leaf[segment], NULL);

	if (straggler != 0)
	{
		ScanKeyInit(&keys[nkeys++], 1, BTEqualStrategyNumber, F_XID8EQ,
					FullTransactionIdGetDatum(FullTransactionIdFromU64(straggler)));
		id_column = 2;
	}
	else
		after = Max(after, scan->lower->tail_id);

	ScanKeyInit(&keys[nkeys++], id_column, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	ScanKeyInit(&keys[nkeys++], id_column, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(scan->upper->max_id));

	stream->scan = compat_index_beginscan(tables->leaf[segment],
										  straggler != 0 ?
										  tables->xid_index[segment] :
										  tables->id_index[segment],
										  scan->snapshot, nkeys);
	index_rescan(stream->scan, keys, nkeys, NULL, 0);

	if (stream_advance(scan, stream))
		scan->streams = lappend(scan->streams, stream);
	else
	{
		stream_end(stream);
		pfree(stream);
	}
}

/*
 * The lowest xid in [from, below) that has an entry in the index, whether or
 * not its rows are visible, or 0. Reads the index only.
 */
static uint64
next_indexed_xid(IndexScanDesc scan, uint64 from, uint64 below)
{
	ScanKeyData keys[2];
	bool		isnull;

	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_XID8GE,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(from)));
	ScanKeyInit(&keys[1], 1, BTLessStrategyNumber, F_XID8LT,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(below)));
	index_rescan(scan, keys, 2, NULL, 0);
	if (index_getnext_tid(scan, ForwardScanDirection) == NULL)
		return 0;
	return U64FromFullTransactionId(DatumGetFullTransactionId(
															  index_getattr(scan->xs_itup, 1, scan->xs_itupdesc, &isnull)));
}

/* Streams for the xids in [xmax(lower), next_xid(lower)) that own rows. */
static void
add_unlisted_stragglers(CursorScan *scan, int segment)
{
	uint64		from = scan->lower->snapshot->xmax;
	uint64		below = scan->lower->next_xid;
	IndexScanDesc walk;
	uint64		xid;

	if (from >= below)
		return;

	walk = compat_index_beginscan(scan->tables->leaf[segment],
								  scan->tables->xid_index[segment],
								  scan->snapshot, 2);
	walk->xs_want_itup = true;
	while ((xid = next_indexed_xid(walk, from, below)) != 0)
	{
		if (xid_snapshot_sees(scan->upper->snapshot, xid))
			stream_add(scan, segment, xid);
		CHECK_FOR_INTERRUPTS();
		from = xid + 1;
	}
	index_endscan(walk);
}

/* Reversed: binaryheap keeps the greatest first, we want the lowest id. */
static int
compare_streams(Datum a, Datum b, void *arg)
{
	int64		ia = ((Stream *) DatumGetPointer(a))->id;
	int64		ib = ((Stream *) DatumGetPointer(b))->id;

	return ia < ib ? 1 : (ia > ib ? -1 : 0);
}

/* ---- scan ---- */

CursorScan *
cursor_scan_begin(const CursorTables *tables, const CursorBound *lower,
				  const CursorBound *upper, int64 position, Snapshot snapshot)
{
	CursorScan *scan = palloc0(sizeof(CursorScan));
	ListCell   *lc;

	scan->tables = tables;
	scan->lower = lower;
	scan->upper = upper;
	scan->position = position;
	scan->snapshot = snapshot;

	for (int segment = 0; segment < OUTBOX_SEGMENTS; segment++)
	{
		if (tables->leaf[segment] == NULL)
			continue;

		stream_add(scan, segment, 0);
		for (int i = 0; i < lower->snapshot->nxip; i++)
		{
			uint64		xid = lower->snapshot->xip[i];

			if (xid_snapshot_sees(upper->snapshot, xid))
				stream_add(scan, segment, xid);
		}
		add_unlisted_stragglers(scan, segment);
	}

	scan->heap = binaryheap_allocate(Max(list_length(scan->streams), 1),
									 compare_streams, NULL);
	foreach(lc, scan->streams)
		binaryheap_add_unordered(scan->heap, PointerGetDatum(lfirst(lc)));
	binaryheap_build(scan->heap);
	return scan;
}

bool
cursor_scan_next(CursorScan *scan, CursorRow *row)
{
	Stream	   *stream;

	if (scan->last != NULL)
	{
		if (stream_advance(scan, scan->last))
			binaryheap_replace_first(scan->heap, PointerGetDatum(scan->last));
		else
			(void) binaryheap_remove_first(scan->heap);
		scan->last = NULL;
	}
	if (binaryheap_empty(scan->heap))
		return false;

	stream = (Stream *) DatumGetPointer(binaryheap_first(scan->heap));
	scan->last = stream;
	row->id = stream->id;
	row->xid = stream->xid;
	row->segment = stream->segment;
	row->slot = stream->slot;
	return true;
}

void
cursor_scan_end(CursorScan *scan)
{
	ListCell   *lc;

	foreach(lc, scan->streams)
	{
		stream_end((Stream *) lfirst(lc));
		pfree(lfirst(lc));
	}
	list_free(scan->streams);
	binaryheap_free(scan->heap);
	pfree(scan);
}
