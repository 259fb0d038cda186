/*
 * progress.c
 *	  What is delivered, on disk: outbox.relay_state and outbox.relay_position.
 *
 * Both hold one row a cursor and are written some ten times a second while
 * messages flow, also while another session holds back the vacuum horizon for
 * hours: see row_place.h.
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

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "progress.h"

#define Natts_relay_state 11
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
#define Anum_relay_state_nonce 11

#define Natts_relay_position 2
#define Anum_relay_position_cursor_id 1
#define Anum_relay_position_position 2

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
	position = row_place_read(positions, cursor_id, snapshot);
	state = row_place_read(states, cursor_id, snapshot);
	UnregisterSnapshot(snapshot);

	if (state == NULL || position == NULL)
		result = PROGRESS_MISSING;
	else
	{
		TupleDesc	desc = RelationGetDescr(states);
		TransactionId writer;
		Oid			database;
		Datum		value;

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
		value = heap_getattr(state, Anum_relay_state_nonce, desc, &isnull);
		progress->has_nonce = !isnull && progress->batch != NULL;
		if (progress->has_nonce)
			progress->nonce = *DatumGetUUIDP(value);
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
	nulls[Anum_relay_state_nonce - 1] = (progress->batch == NULL || !progress->has_nonce);
	values[Anum_relay_state_nonce - 1] = UUIDPGetDatum(&progress->nonce);
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

	if (!row_place_find(positions, &place->position, cursor_id) ||
		(state && !row_place_find(states, &place->state, cursor_id)))
		result = PROGRESS_MISSING;
	else
	{
		row_place_replace(positions, &place->position,
						  form_position(positions, cursor_id, progress));
		if (state)
			row_place_replace(states, &place->state,
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

	if (!row_place_find(rel, &place, cursor_id))
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
