/*
 * cursor_test.c
 *	  The cursor in the hands of a session, for tests.
 *
 * A session has any number of cursors, each with a name, that live as long as
 * it does. They read as relay_read.c does: a bound, tables opened without
 * waiting, chunks that each have a snapshot of their own. Nothing is stored;
 * what was read counts as delivered. Some variants are wrong on purpose, see
 * wrong_models.c.
 *
 * cursor_test.pause() names a place at which the session waits for an advisory
 * lock, so that a test can let others do something just there. Two places are
 * in the middle of cursor_bound_take(): the linker leads its calls of
 * GetLatestSnapshot() and ReadNextFullTransactionId() through here.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/instrument.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "compat.h"
#include "cursor_test.h"
#include "progress.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(cursor_test_start);
PG_FUNCTION_INFO_V1(cursor_test_open);
PG_FUNCTION_INFO_V1(cursor_test_read);
PG_FUNCTION_INFO_V1(cursor_test_next);
PG_FUNCTION_INFO_V1(cursor_test_pause);
PG_FUNCTION_INFO_V1(cursor_test_buffers);
PG_FUNCTION_INFO_V1(cursor_test_bound);
PG_FUNCTION_INFO_V1(cursor_test_progress);

static List *cursors = NIL;

static const struct
{
	const char *name;
	CursorVariant variant;
}			variants[] = {
	{"right", VARIANT_RIGHT},
	{"xmax", VARIANT_XMAX},
	{"stale_tail", VARIANT_STALE_TAIL},
	{"moving", VARIANT_MOVING},
	{"tables_first", VARIANT_TABLES_FIRST},
	{"late_tail", VARIANT_LATE_TAIL},
	{"expanded", VARIANT_EXPANDED},
	{"id", VARIANT_ID},
	{"xmin", VARIANT_XMIN},
};

typedef enum PausePlace
{
	PAUSE_NOWHERE,
	PAUSE_BEFORE_SNAPSHOT,
	PAUSE_AFTER_SNAPSHOT,
	PAUSE_AFTER_NEXT_XID,
	PAUSE_AFTER_BOUND			/* and before the tables are opened; between
								 * the two, whatever their order */
} PausePlace;

static const char *const pause_names[] = {
	[PAUSE_NOWHERE] = "nowhere",
	[PAUSE_BEFORE_SNAPSHOT] = "before snapshot",
	[PAUSE_AFTER_SNAPSHOT] = "after snapshot",
	[PAUSE_AFTER_NEXT_XID] = "after next xid",
	[PAUSE_AFTER_BOUND] = "after bound",
};

static PausePlace pause_place = PAUSE_NOWHERE;
static int64 pause_lock;
static bool taking_bound = false;
static int	next_xids_read;

static bool
has_bounds(const TestCursor *cursor)
{
	return cursor->variant != VARIANT_ID && cursor->variant != VARIANT_XMIN;
}

static CursorVariant
variant_by_name(const char *name)
{
	for (int i = 0; i < (int) lengthof(variants); i++)
	{
		if (strcmp(variants[i].name, name) == 0)
			return variants[i].variant;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("no such variant: %s", name)));
}

static TestCursor *
find_cursor(const char *name, bool missing_ok)
{
	ListCell   *lc;

	foreach(lc, cursors)
	{
		TestCursor *cursor = (TestCursor *) lfirst(lc);

		if (strcmp(cursor->name, name) == 0)
			return cursor;
	}
	if (!missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_CURSOR),
				 errmsg("no such cursor: %s", name)));
	return NULL;
}

static void
locked_error(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("a table of outbox_kafka is locked")));
}

/* Wait for the lock, once, if this is the place. */
static void
pause_at(PausePlace place)
{
	if (pause_place != place)
		return;
	pause_place = PAUSE_NOWHERE;
	DirectFunctionCall1(pg_advisory_lock_shared_int8, Int64GetDatum(pause_lock));
	DirectFunctionCall1(pg_advisory_unlock_shared_int8, Int64GetDatum(pause_lock));
}

/* What the linker makes of calls of GetLatestSnapshot() in this library. */
extern Snapshot __real_GetLatestSnapshot(void);
extern Snapshot __wrap_GetLatestSnapshot(void);

Snapshot
__wrap_GetLatestSnapshot(void)
{
	Snapshot	snapshot;

	if (taking_bound)
		pause_at(PAUSE_BEFORE_SNAPSHOT);
	snapshot = __real_GetLatestSnapshot();
	if (taking_bound)
		pause_at(PAUSE_AFTER_SNAPSHOT);
	return snapshot;
}

/* The first call widens the snapshot's xids, the second one is the bound's. */
extern FullTransactionId __real_ReadNextFullTransactionId(void);
extern FullTransactionId __wrap_ReadNextFullTransactionId(void);

FullTransactionId
__wrap_ReadNextFullTransactionId(void)
{
	FullTransactionId next = __real_ReadNextFullTransactionId();

	if (taking_bound && ++next_xids_read == 2)
		pause_at(PAUSE_AFTER_NEXT_XID);
	return next;
}

static CursorBound *
take_bound(const TestCursor *cursor)
{
	const OutboxCatalog *catalog = catalog_get(false);
	CursorBound *volatile bound = NULL; /* written between setjmp and longjmp */

	taking_bound = true;
	next_xids_read = 0;
	PG_TRY();
	{
		bound = (cursor->variant == VARIANT_RIGHT) ?
			cursor_bound_take(catalog, CURSOR_WAIT, TopMemoryContext) :
			wrong_bound(cursor->variant, catalog, TopMemoryContext);
	}
	PG_FINALLY();
	{
		taking_bound = false;
	}
	PG_END_TRY();

	if (bound == NULL)
		locked_error();
	return bound;
}

Datum
cursor_test_start(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	CursorVariant variant = variant_by_name(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	TestCursor *cursor = find_cursor(name, true);

	if (cursor == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		cursor = palloc0(sizeof(TestCursor));
		strlcpy(cursor->name, name, sizeof(cursor->name));
		cursors = lappend(cursors, cursor);
		MemoryContextSwitchTo(old);
	}
	if (cursor->done)
		cursor_bound_release(cursor->done);
	if (cursor->batch)
		cursor_bound_release(cursor->batch);
	cursor->done = cursor->batch = NULL;
	cursor->open = false;
	cursor->variant = variant;

	if (has_bounds(cursor))
		cursor->done = take_bound(cursor);
	else
		wrong_start(cursor);
	PG_RETURN_VOID();
}

static void
open_batch(TestCursor *cursor)
{
	if (cursor->open)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_CURSOR_STATE),
				 errmsg("a batch of cursor %s is open", cursor->name)));
	if (has_bounds(cursor))
	{
		cursor->batch = take_bound(cursor);
		cursor->position = 0;
	}
	else
		wrong_open(cursor);
	cursor->open = true;
}

static void
open_tables(CursorTables *tables)
{
	if (!cursor_tables_open(tables, catalog_get(false), CURSOR_WAIT, -1))
		locked_error();
}

static void
put_id(ReturnSetInfo *result, int64 id)
{
	Datum		value = Int64GetDatum(id);
	bool		isnull = false;

	tuplestore_putvalues(result->setResult, result->setDesc, &value, &isnull);
}

/* Put up to rows (0: all) ids of the open batch. True at its end. */
static bool
read_bounded(TestCursor *cursor, const CursorTables *tables, int rows,
			 ReturnSetInfo *result)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	CursorScan *scan;
	CursorRow	row;
	bool		end = false;

	scan = cursor_scan_begin(tables, cursor->done, cursor->batch,
							 cursor->position, snapshot);
	for (int n = 0; rows == 0 || n < rows; n++)
	{
		if (!cursor_scan_next(scan, &row))
		{
			end = true;
			break;
		}
		if (row.id <= cursor->position)
			elog(ERROR, "message " INT64_FORMAT " comes after " INT64_FORMAT,
				 row.id, cursor->position);
		put_id(result, row.id);
		cursor->position = row.id;
	}
	cursor_scan_end(scan);
	UnregisterSnapshot(snapshot);
	return end;
}

/*
 * The same for any variant. tables: opened by the caller, or NULL. At the end
 * of the batch it becomes what is delivered.
 */
static bool
read_chunk(TestCursor *cursor, const CursorTables *tables, int rows,
		   ReturnSetInfo *result)
{
	CursorTables own;
	bool		end;

	if (!has_bounds(cursor))
	{
		for (int n = 0; cursor->next < cursor->nids && (rows == 0 || n < rows); n++)
			put_id(result, cursor->ids[cursor->next++]);
		end = (cursor->next >= cursor->nids);
		if (end)
		{
			pfree(cursor->ids);
			cursor->open = false;
		}
		return end;
	}

	if (cursor->variant == VARIANT_MOVING)
	{
		cursor_bound_release(cursor->batch);
		cursor->batch = take_bound(cursor);
	}
	if (tables == NULL)
		open_tables(&own);
	end = read_bounded(cursor, tables ? tables : &own, rows, result);
	if (tables == NULL)
		cursor_tables_close(&own);
	if (end)
	{
		cursor_bound_release(cursor->done);
		cursor->done = cursor->batch;
		cursor->batch = NULL;
		cursor->open = false;
	}
	return end;
}

Datum
cursor_test_open(PG_FUNCTION_ARGS)
{
	open_batch(find_cursor(text_to_cstring(PG_GETARG_TEXT_PP(0)), false));
	PG_RETURN_VOID();
}

Datum
cursor_test_read(PG_FUNCTION_ARGS)
{
	TestCursor *cursor = find_cursor(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);

	if (!cursor->open)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_CURSOR_STATE),
				 errmsg("no batch of cursor %s is open", cursor->name)));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	(void) read_chunk(cursor, NULL, PG_GETARG_INT32(1),
					  (ReturnSetInfo *) fcinfo->resultinfo);
	return (Datum) 0;
}

Datum
cursor_test_next(PG_FUNCTION_ARGS)
{
	TestCursor *cursor = find_cursor(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	int			rows = PG_GETARG_INT32(1);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	CursorTables tables;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	/* the order of relay_read(): bound, tables, rows */
	if (cursor->variant == VARIANT_TABLES_FIRST)
		open_tables(&tables);
	else
		open_batch(cursor);
	pause_at(PAUSE_AFTER_BOUND);
	if (cursor->variant == VARIANT_TABLES_FIRST)
		open_batch(cursor);
	else
		open_tables(&tables);

	for (;;)
	{
		bool		end = read_chunk(cursor, &tables, rows, result);

		cursor_tables_close(&tables);
		if (end)
			break;
		CHECK_FOR_INTERRUPTS();
		open_tables(&tables);
	}
	return (Datum) 0;
}

Datum
cursor_test_pause(PG_FUNCTION_ARGS)
{
	char	   *place = text_to_cstring(PG_GETARG_TEXT_PP(0));

	for (int i = 0; i < (int) lengthof(pause_names); i++)
	{
		if (strcmp(pause_names[i], place) == 0)
		{
			pause_place = (PausePlace) i;
			pause_lock = PG_GETARG_INT64(1);
			PG_RETURN_VOID();
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("no such place: %s", place)));
}

Datum
cursor_test_buffers(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(pgBufferUsage.shared_blks_hit + pgBufferUsage.shared_blks_read);
}

Datum
cursor_test_bound(PG_FUNCTION_ARGS)
{
	TestCursor *cursor = find_cursor(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};

	if (!has_bounds(cursor))
		elog(ERROR, "cursor %s has no bound", cursor->name);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int32GetDatum(cursor->done->snapshot->nxip);
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(cursor->done->snapshot->xmax));
	values[2] = FullTransactionIdGetDatum(FullTransactionIdFromU64(cursor->done->next_xid));
	values[3] = Int64GetDatum(cursor->done->tail_id);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

static text *
progress_result_name(ProgressResult result)
{
	static const char *const names[] = {
		[PROGRESS_OK] = "ok",
		[PROGRESS_BUSY] = "busy",
		[PROGRESS_MISSING] = "missing",
		[PROGRESS_FOREIGN] = "foreign",
	};

	return cstring_to_text(names[result]);
}

Datum
cursor_test_progress(PG_FUNCTION_ARGS)
{
	Progress	progress;

	PG_RETURN_TEXT_P(progress_result_name(progress_read(catalog_get(false), 0, CURSOR_WAIT, &progress,
														CurrentMemoryContext)));
}
