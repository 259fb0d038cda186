/*
 * wrong_models.c
 *	  What looks like a cursor and loses messages, or their order.
 *
 * Each stands for a mistake that is easy to make; the tests show what becomes
 * of it, next to the cursor that is used. The header comment of cursor.c says
 * why that one is different.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/memutils.h"
#include "utils/xid8.h"

#include "compat.h"
#include "cursor_test.h"

/* last_value of the sequence, whether or not it was drawn. */
static int64
last_value(const OutboxCatalog *catalog)
{
	int64		highest = cursor_highest_id(catalog);

	/* a fresh one says 1, is_called = false */
	return Max(highest, 1);
}

/* The list of running xids followed by all from xmax up to the next one. */
static XidSnapshot *
expand(const XidSnapshot *snapshot, uint64 next_xid, MemoryContext context)
{
	Size		nxip = snapshot->nxip + (next_xid - snapshot->xmax);
	XidSnapshot *result = MemoryContextAllocHuge(context,
												 offsetof(XidSnapshot, xip) +
												 sizeof(uint64) * nxip);

	result->xmin = snapshot->xmin;
	result->xmax = next_xid;
	memcpy(result->xip, snapshot->xip, sizeof(uint64) * snapshot->nxip);
	result->nxip = snapshot->nxip;
	for (uint64 xid = snapshot->xmax; xid < next_xid; xid++)
		result->xip[result->nxip++] = xid;
	return result;
}

CursorBound *
wrong_bound(CursorVariant variant, const OutboxCatalog *catalog,
			MemoryContext context)
{
	CursorBound *bound;
	XidSnapshot *expanded;
	int64		stale = 0;

	if (variant == VARIANT_STALE_TAIL)
		stale = last_value(catalog);

	bound = cursor_bound_take(catalog, CURSOR_WAIT, context);
	if (bound == NULL)
		return NULL;
	switch (variant)
	{
		case VARIANT_XMAX:
			bound->next_xid = bound->snapshot->xmax;
			break;
		case VARIANT_STALE_TAIL:
			bound->tail_id = stale;
			break;
		case VARIANT_LATE_TAIL:
			bound->tail_id = cursor_highest_id(catalog);
			break;
		case VARIANT_EXPANDED:
			expanded = expand(bound->snapshot, bound->next_xid, context);
			pfree(bound->snapshot);
			bound->snapshot = expanded;
			break;
		default:
			break;
	}
	return bound;
}

/* One bigint or xid8 of the first row; 0 for NULL or none. */
static uint64
query_number(const char *query)
{
	uint64		result = 0;
	bool		isnull;

	SPI_connect();
	if (SPI_execute(query, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "query failed: %s", query);
	if (SPI_processed == 1)
		result = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return result;
}

static int64
highest_visible_id(void)
{
	return (int64) query_number("SELECT coalesce(max(id), 0) FROM outbox.message");
}

static uint64
oldest_running_xid(void)
{
	return query_number("SELECT pg_snapshot_xmin(pg_current_snapshot())");
}

void
wrong_start(TestCursor *cursor)
{
	cursor->done_id = 0;
	cursor->done_xid = 0;
	if (cursor->variant == VARIANT_ID)
		cursor->done_id = highest_visible_id();
	else
		cursor->done_xid = oldest_running_xid();
}

/*
 * All ids of the batch are read at once, whatever the size of the pieces: these
 * models go wrong without help.
 */
void
wrong_open(TestCursor *cursor)
{
	const char *query = (cursor->variant == VARIANT_ID) ?
		"SELECT id, xid FROM outbox.message WHERE id > $2 ORDER BY id" :
		"SELECT id, xid FROM outbox.message WHERE (xid, id) > ($1, $2)"
		" AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, id";
	Oid			types[] = {XID8OID, INT8OID};
	Datum		values[] = {
		FullTransactionIdGetDatum(FullTransactionIdFromU64(cursor->done_xid)),
		Int64GetDatum(cursor->done_id)
	};

	SPI_connect();
	if (SPI_execute_with_args(query, 2, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "query failed: %s", query);

	cursor->nids = (int) SPI_processed;
	cursor->next = 0;
	cursor->ids = MemoryContextAlloc(TopMemoryContext,
									 sizeof(int64) * Max(cursor->nids, 1));
	for (int i = 0; i < cursor->nids; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		Datum		xid = SPI_getbinval(tuple, desc, 2, &isnull);

		cursor->ids[i] = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
		cursor->done_id = cursor->ids[i];
		if (cursor->variant == VARIANT_XMIN)
			cursor->done_xid = U64FromFullTransactionId(DatumGetFullTransactionId(xid));
	}
	SPI_finish();
}
