/*
 * pending.c
 *	  Messages that are committed and not known to be delivered, in the order
 *	  they go out: outbox.pending.
 *
 * Reads as the relay does, from the progress on disk, so the cost is that of
 * the rows that are asked for; for a held lane also of the rows of others among
 * them. Held lanes come first, then what the main cursor has before it. The
 * function is called in a target list, a row a call, and reads ahead a few
 * hundred rows at a time; between these chunks no scan is open, so a LIMIT may
 * end it anywhere.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "compat.h"
#include "cursor.h"
#include "held.h"
#include "message.h"
#include "pending.h"
#include "progress.h"

#define FIRST_CHUNK_ROWS 20
#define CHUNK_ROWS 500
#define PENDING_COLUMNS 7

PG_FUNCTION_INFO_V1(outbox_kafka_pending);

/* Between the calls of one query. */
typedef struct PendingScan
{
	MemoryContext context;
	MemoryContext chunk_context;
	List	   *lanes;			/* of HeldLane */
	int			source;			/* index in lanes; after them the main cursor */
	const HeldLane *lane;		/* being read, or NULL */
	Progress	progress;		/* of the cursor that is read */
	Progress	main_progress;	/* read before the lanes, see held.c */
	CursorBound *now;
	int			stage;			/* 0: the rest of progress.batch; 1: up to now */
	int64		position;
	PendingMessage *rows;
	int			nrows;
	int			next;
	int			chunk_rows;
	bool		finished;
} PendingScan;

/* Length of key or payload as published; their values are not fetched. */
static int
raw_length(TupleTableSlot *slot, int attribute)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, attribute, &isnull);

	return isnull ? 0 : (int) (toast_raw_datum_size(value) - VARHDRSZ);
}

static void
fill(PendingMessage *message, const CursorRow *row)
{
	bool		isnull;

	message->id = row->id;
	message->xid = row->xid;
	message->segment = row->segment;
	message->event_id = *DatumGetUUIDP(slot_getattr(row->slot,
													Anum_outbox_message_event_id,
													&isnull));
	message->topic = TextDatumGetCString(slot_getattr(row->slot,
													  Anum_outbox_message_topic,
													  &isnull));
	message->bytes = raw_length(row->slot, Anum_outbox_message_key) +
		raw_length(row->slot, Anum_outbox_message_payload);
	message->created_at = DatumGetTimestampTz(slot_getattr(row->slot,
														   Anum_outbox_message_created_at,
														   &isnull));
}

/* After waiting for a lock on it the extension may be gone. */
static void
gone_error(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a table of outbox_kafka was dropped or replaced just now"),
			 errhint("Try again.")));
}

/* False: the cursor is gone. */
static bool
read_progress(const OutboxCatalog *catalog, int cursor_id, Progress *progress,
			  MemoryContext context)
{
	memset(progress, 0, sizeof(*progress));
	switch (progress_read(catalog, cursor_id, CURSOR_WAIT, progress, context))
	{
		case PROGRESS_BUSY:
			gone_error();
			break;
		case PROGRESS_MISSING:
			return false;
		case PROGRESS_OK:
		case PROGRESS_FOREIGN:
			break;
	}
	return true;
}

/* Begin with the source that scan->source says, or the next one that is there. */
static void
begin_source(PendingScan *scan, const OutboxCatalog *catalog)
{
	scan->lane = NULL;
	for (; scan->source < list_length(scan->lanes); scan->source++)
	{
		const HeldLane *lane = (const HeldLane *) list_nth(scan->lanes, scan->source);

		/* one that has caught up meanwhile is delivered */
		if (!read_progress(catalog, lane->cursor_id, &scan->progress, scan->context))
			continue;
		scan->lane = lane;
		break;
	}
	if (scan->lane == NULL)
		scan->progress = scan->main_progress;
	scan->stage = scan->progress.batch ? 0 : 1;
	scan->position = scan->progress.position;
}

static void
start(PendingScan *scan, const OutboxCatalog *catalog, bool main_only)
{
	if (!read_progress(catalog, 0, &scan->main_progress, scan->context))
		progress_raise_missing();
	if (!held_read(catalog, CURSOR_WAIT, &scan->lanes, scan->context))
		gone_error();
	if (main_only)
		scan->source = list_length(scan->lanes);
	begin_source(scan, catalog);
	scan->chunk_rows = FIRST_CHUNK_ROWS;
}

/* Read the next rows into scan->rows. */
static void
read_chunk(PendingScan *scan, const OutboxCatalog *catalog)
{
	MemoryContext old;
	CursorTables tables;
	CursorScan *rows;
	CursorRow	row;
	Snapshot	snapshot;
	const CursorBound *lower;
	const CursorBound *upper;
	bool		more = true;
	uint64		own_xid = U64FromFullTransactionId(GetTopFullTransactionIdIfAny());

	/* the bound first: tables that are empty then are left out */
	if (scan->now == NULL)
		scan->now = cursor_bound_take(catalog, CURSOR_WAIT, scan->context);
	if (scan->now == NULL || !cursor_tables_open(&tables, catalog, CURSOR_WAIT, -1))
		gone_error();

	if (scan->stage == 0)
	{
		lower = scan->progress.done;
		upper = scan->progress.batch;
	}
	else
	{
		lower = scan->progress.batch ? scan->progress.batch : scan->progress.done;
		upper = scan->now;
	}

	MemoryContextReset(scan->chunk_context);
	old = MemoryContextSwitchTo(scan->chunk_context);
	scan->rows = palloc(sizeof(PendingMessage) * scan->chunk_rows);
	scan->nrows = scan->next = 0;

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	rows = cursor_scan_begin(&tables, lower, upper, scan->position, snapshot);
	while (scan->nrows < scan->chunk_rows && (more = cursor_scan_next(rows, &row)))
	{
		CHECK_FOR_INTERRUPTS();
		scan->position = row.id;

		/* what this transaction published itself is not committed */
		if (row.xid != own_xid && held_find(scan->lanes, row.slot) == scan->lane)
			fill(&scan->rows[scan->nrows++], &row);
	}
	cursor_scan_end(rows);
	UnregisterSnapshot(snapshot);
	cursor_tables_close(&tables);
	MemoryContextSwitchTo(old);

	if (!more)
	{
		if (scan->stage == 0)
		{
			scan->stage = 1;
			scan->position = 0;
		}
		else if (scan->lane != NULL)
		{
			scan->source++;
			begin_source(scan, catalog);
		}
		else
			scan->finished = true;
	}
	scan->chunk_rows = CHUNK_ROWS;
}

static PendingScan *
create_scan(MemoryContext parent)
{
	PendingScan *scan = MemoryContextAllocZero(parent, sizeof(PendingScan));

	scan->context = parent;
	scan->chunk_context = AllocSetContextCreate(parent, "outbox pending rows",
												ALLOCSET_DEFAULT_SIZES);
	return scan;
}

bool
pending_first(const OutboxCatalog *catalog, PendingMessage *message)
{
	OutboxCatalog copy = *catalog;
	PendingScan *scan = create_scan(CurrentMemoryContext);

	start(scan, &copy, true);
	while (!scan->finished)
	{
		scan->chunk_rows = 1;
		read_chunk(scan, &copy);
		if (scan->nrows > 0)
		{
			*message = scan->rows[0];
			return true;
		}
	}
	return false;
}

Datum
outbox_kafka_pending(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	PendingScan *scan;
	PendingMessage *message;
	OutboxCatalog catalog = *catalog_get(false);
	Datum		values[PENDING_COLUMNS];
	bool		nulls[PENDING_COLUMNS] = {false};

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;
		TupleDesc	desc;

		funcctx = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		funcctx->tuple_desc = BlessTupleDesc(desc);
		scan = create_scan(funcctx->multi_call_memory_ctx);
		funcctx->user_fctx = scan;
		start(scan, &catalog, false);
		MemoryContextSwitchTo(old);
	}

	funcctx = SRF_PERCALL_SETUP();
	scan = (PendingScan *) funcctx->user_fctx;
	while (scan->next >= scan->nrows && !scan->finished)
	{
		CHECK_FOR_INTERRUPTS();
		read_chunk(scan, &catalog);
	}
	if (scan->next >= scan->nrows)
		SRF_RETURN_DONE(funcctx);

	message = &scan->rows[scan->next++];
	values[0] = Int64GetDatum(message->id);
	values[1] = UUIDPGetDatum(&message->event_id);
	values[2] = CStringGetTextDatum(message->topic);
	values[3] = FullTransactionIdGetDatum(FullTransactionIdFromU64(message->xid));
	values[4] = Int16GetDatum((int16) message->segment);
	values[5] = Int32GetDatum(message->bytes);
	values[6] = TimestampTzGetDatum(message->created_at);
	SRF_RETURN_NEXT(funcctx,
					HeapTupleGetDatum(heap_form_tuple(funcctx->tuple_desc,
													  values, nulls)));
}
