/*
 * progress.c
 *	  What is delivered, on disk: outbox.relay_state and outbox.relay_position.
 *
 * Both hold one row a cursor and are written some ten times a second while
 * messages flow, also while another session holds back the vacuum horizon for
 * hours. So a row is not looked for, it is updated where it was last written
 * (its TID is remembered as long as the table's file stays the same), and the
 * page is pruned in passing.
 *
 * Why a row that is on disk can be trusted after a crash.  Its transaction
 * draws an xid after the bound was taken, so that once the row is durable the
 * next xid is above the bound's next_xid: xids that were running when the
 * bound was taken, and left no trace in the WAL, are not given out again to
 * become "already delivered".
 *
 * Why it can be told from a copy.  The row names the (sub)transaction that
 * wrote it. That equals the row's raw xmin through freezing, pg_upgrade,
 * promotion and recovery to a point in time, but not after a logical copy; and
 * a copy of the files (CREATE DATABASE ... TEMPLATE) has another database OID.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "progress.h"

#define Natts_relay_state 10
#define Anum_relay_state_cursor_id 1
#define Anum_relay_state_writer_xid 2
#define Anum_relay_state_database_oid 3
#define Anum_relay_state_done 4
#define Anum_relay_state_done_next_xid 5
#define Anum_relay_state_tail_id 6
#define Anum_relay_state_batch 7
#define Anum_relay_state_batch_next_xid 8
#define Anum_relay_state_batch_tail_id 9
#define Anum_relay_state_batch_max_id 10

#define Natts_relay_position 2
#define Anum_relay_position_cursor_id 1
#define Anum_relay_position_position 2

/* Copy of a cursor's row, in the current context, or NULL. */
static HeapTuple
find_row(Relation rel, int cursor_id, Snapshot snapshot)
{
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	HeapTuple	tuple;
	HeapTuple	result = NULL;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		bool		isnull;

		/* cursor_id is the first column of both tables */
		if (DatumGetInt32(heap_getattr(tuple, 1, RelationGetDescr(rel),
									   &isnull)) == cursor_id)
		{
			result = heap_copytuple(tuple);
			break;
		}
	}
	table_endscan(scan);
	return result;
}

static Relation
open_table(Oid relation, LOCKMODE mode, CursorLocking locking)
{
	return cursor_lock(relation, mode, locking) ? table_open(relation, NoLock) : NULL;
}

static uint64
xid8_attribute(HeapTuple tuple, TupleDesc desc, int attribute, bool *isnull)
{
	Datum		value = heap_getattr(tuple, attribute, desc, isnull);

	return *isnull ? 0 : U64FromFullTransactionId(DatumGetFullTransactionId(value));
}

static int64
int64_attribute(HeapTuple tuple, TupleDesc desc, int attribute, bool *isnull)
{
	Datum		value = heap_getattr(tuple, attribute, desc, isnull);

	return *isnull ? 0 : DatumGetInt64(value);
}

/* The bound stored from column first on: snapshot, next xid, tail id. */
static CursorBound *
read_bound(HeapTuple tuple, TupleDesc desc, int first, int64 max_id,
		   MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	CursorBound *result = NULL;
	bool		isnull;
	Datum		snapshot = heap_getattr(tuple, first, desc, &isnull);

	if (!isnull)
	{
		uint64		next_xid = xid8_attribute(tuple, desc, first + 1, &isnull);
		int64		tail_id = int64_attribute(tuple, desc, first + 2, &isnull);

		result = cursor_bound_make(xid_snapshot_from_datum(snapshot),
								   next_xid, tail_id, max_id, context);
	}
	MemoryContextSwitchTo(old);
	return result;
}

ProgressResult
progress_read(const OutboxCatalog *catalog, int cursor_id,
			  CursorLocking locking, Progress *progress, MemoryContext context)
{
	Relation	states = open_table(catalog->relay_state, AccessShareLock, locking);
	Relation	positions;
	Snapshot	snapshot;
	HeapTuple	state;
	HeapTuple	position;
	ProgressResult result = PROGRESS_OK;
	bool		isnull;

	if (states == NULL)
		return PROGRESS_BUSY;
	positions = open_table(catalog->relay_position, AccessShareLock, locking);
	if (positions == NULL)
	{
		table_close(states, NoLock);
		return PROGRESS_BUSY;
	}

	/* one snapshot for both: a position means nothing in another batch */
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	position = find_row(positions, cursor_id, snapshot);
	state = find_row(states, cursor_id, snapshot);
	UnregisterSnapshot(snapshot);

	if (state == NULL || position == NULL)
		result = PROGRESS_MISSING;
	else
	{
		TupleDesc	desc = RelationGetDescr(states);
		TransactionId writer;
		Oid			database;

		writer = DatumGetTransactionId(heap_getattr(state, Anum_relay_state_writer_xid,
													desc, &isnull));
		database = DatumGetObjectId(heap_getattr(state, Anum_relay_state_database_oid,
												 desc, &isnull));
		if (writer != HeapTupleHeaderGetRawXmin(state->t_data) ||
			database != MyDatabaseId)
			result = PROGRESS_FOREIGN;

		progress->done = read_bound(state, desc, Anum_relay_state_done, 0, context);
		progress->batch = read_bound(state, desc, Anum_relay_state_batch,
									 int64_attribute(state, desc,
													 Anum_relay_state_batch_max_id,
													 &isnull),
									 context);
		progress->position = int64_attribute(position, RelationGetDescr(positions),
											 Anum_relay_position_position, &isnull);
		if (progress->batch == NULL)
			progress->position = 0;
	}

	table_close(positions, NoLock);
	table_close(states, NoLock);
	return result;
}

void
progress_raise_missing(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the relay's row in outbox.relay_state or outbox.relay_position is gone")));
}

bool
progress_covers(const Progress *progress, uint64 xid, int64 id)
{
	if (xid_snapshot_sees(progress->done->snapshot, xid))
		return true;
	return progress->batch != NULL && id <= progress->position &&
		xid_snapshot_sees(progress->batch->snapshot, xid);
}

/* Make sure place says where the cursor's row is. False: there is none. */
static bool
locate(Relation rel, RowPlace *place, int cursor_id)
{
	Snapshot	snapshot;
	HeapTuple	tuple;

	if (place->file == rel->rd_rel->relfilenode)
		return true;

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	tuple = find_row(rel, cursor_id, snapshot);
	UnregisterSnapshot(snapshot);
	if (tuple == NULL)
		return false;
	place->file = rel->rd_rel->relfilenode;
	place->tid = tuple->t_self;
	return true;
}

/* Update the row at place, remove what it leaves behind, remember the new one. */
static void
replace_row(Relation rel, RowPlace *place, HeapTuple tuple)
{
	ItemPointerData old = place->tid;
	Buffer		buffer;

	/* should this transaction fail, the place is not to be trusted */
	place->file = InvalidOid;

	buffer = ReadBuffer(rel, ItemPointerGetBlockNumber(&old));
	heap_page_prune_opt(rel, buffer);
	ReleaseBuffer(buffer);

	CatalogTupleUpdate(rel, &old, tuple);
	place->tid = tuple->t_self;
	place->file = rel->rd_rel->relfilenode;
	heap_freetuple(tuple);
}

static void
write_bound(const CursorBound *bound, Datum *values, bool *nulls, int first)
{
	for (int i = 0; i < 3; i++)
		nulls[first - 1 + i] = (bound == NULL);
	if (bound == NULL)
		return;
	values[first - 1] = xid_snapshot_to_datum(bound->snapshot);
	values[first] = FullTransactionIdGetDatum(FullTransactionIdFromU64(bound->next_xid));
	values[first + 1] = Int64GetDatum(bound->tail_id);
}

static HeapTuple
form_position(Relation rel, int cursor_id, const Progress *progress)
{
	Datum		values[Natts_relay_position];
	bool		nulls[Natts_relay_position] = {false};

	values[Anum_relay_position_cursor_id - 1] = Int32GetDatum(cursor_id);
	values[Anum_relay_position_position - 1] =
		Int64GetDatum(progress->batch ? progress->position : 0);
	return heap_form_tuple(RelationGetDescr(rel), values, nulls);
}

static HeapTuple
form_state(Relation rel, int cursor_id, const Progress *progress)
{
	Datum		values[Natts_relay_state];
	bool		nulls[Natts_relay_state] = {false};

	values[Anum_relay_state_cursor_id - 1] = Int32GetDatum(cursor_id);
	values[Anum_relay_state_writer_xid - 1] =
		TransactionIdGetDatum(GetCurrentTransactionId());
	values[Anum_relay_state_database_oid - 1] = ObjectIdGetDatum(MyDatabaseId);
	write_bound(progress->done, values, nulls, Anum_relay_state_done);
	write_bound(progress->batch, values, nulls, Anum_relay_state_batch);
	nulls[Anum_relay_state_batch_max_id - 1] = (progress->batch == NULL);
	if (progress->batch)
		values[Anum_relay_state_batch_max_id - 1] =
			Int64GetDatum(progress->batch->max_id);
	return heap_form_tuple(RelationGetDescr(rel), values, nulls);
}

ProgressResult
progress_write(const OutboxCatalog *catalog, int cursor_id, ProgressPlace *place,
			   const Progress *progress, bool state)
{
	Relation	positions;
	Relation	states = NULL;
	ProgressResult result = PROGRESS_OK;

	positions = open_table(catalog->relay_position, RowExclusiveLock, CURSOR_NO_WAIT);
	if (positions == NULL)
		return PROGRESS_BUSY;
	if (state)
	{
		states = open_table(catalog->relay_state, RowExclusiveLock, CURSOR_NO_WAIT);
		if (states == NULL)
		{
			table_close(positions, NoLock);
			return PROGRESS_BUSY;
		}
	}

	if (!locate(positions, &place->position, cursor_id) ||
		(state && !locate(states, &place->state, cursor_id)))
		result = PROGRESS_MISSING;
	else
	{
		replace_row(positions, &place->position,
					form_position(positions, cursor_id, progress));
		if (state)
			replace_row(states, &place->state,
						form_state(states, cursor_id, progress));
	}

	if (states)
		table_close(states, NoLock);
	table_close(positions, NoLock);
	return result;
}

void
progress_insert(const OutboxCatalog *catalog, int cursor_id, const Progress *progress)
{
	Relation	positions = table_open(catalog->relay_position, NoLock);
	Relation	states = table_open(catalog->relay_state, NoLock);

	CatalogTupleInsert(positions, form_position(positions, cursor_id, progress));
	CatalogTupleInsert(states, form_state(states, cursor_id, progress));
	table_close(states, NoLock);
	table_close(positions, NoLock);
}

static void
delete_row(Relation rel, int cursor_id)
{
	RowPlace	place = {0};

	if (!locate(rel, &place, cursor_id))
		progress_raise_missing();
	CatalogTupleDelete(rel, &place.tid);
}

void
progress_delete(const OutboxCatalog *catalog, int cursor_id)
{
	Relation	positions = table_open(catalog->relay_position, NoLock);
	Relation	states = table_open(catalog->relay_state, NoLock);

	delete_row(positions, cursor_id);
	delete_row(states, cursor_id);
	table_close(states, NoLock);
	table_close(positions, NoLock);
}
