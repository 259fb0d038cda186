/*
 * wait_decided.c
 *	  outbox.wait_decided(): wait until an expectation is decided.
 *
 * Who decides, by an answer or for the deadline, broadcasts at commit what the
 * relay broadcasts when it has stored progress (see wakeup.c), and a waiting
 * backend looks again. It holds no snapshot of its own while it waits.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "compat.h"
#include "confirmation.h"
#include "shmem.h"

/* Without shared memory to be told by, or as a safety net. */
#define LOOK_INTERVAL_MS 1000

/* Columns of outbox.confirmation */
#define ANUM_XID 2
#define ANUM_CORRELATION_ID 5
#define ANUM_EXPECTED_BY 6
#define ANUM_DECISION 20

PG_FUNCTION_INFO_V1(outbox_kafka_wait_decided);

static void
check_may_look(const char *expected_by)
{
	Oid			role = get_role_oid(expected_by, true);

	if (OidIsValid(role) ? is_member_of_role(GetUserId(), role) :
		superuser_arg(GetUserId()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to wait for an answer that role \"%s\" waits for",
					expected_by)));
}

/*
 * The decision as committed now: awaiting if there is none, NULL without such
 * an expectation. The last one counts. Palloc'd.
 */
static char *
look(text *correlation_id)
{
	Oid			schema = catalog_get(false)->schema;
	Oid			table = get_relname_relid("confirmation", schema);
	Oid			index = get_relname_relid("confirmation_correlation_id", schema);
	Relation	rel = table_open(table, AccessShareLock);
	Relation	index_rel = index_open(index, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	char	   *result = NULL;

	ScanKeyInit(&key, ANUM_CORRELATION_ID, BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(correlation_id));
	key.sk_collation = index_rel->rd_indcollation[0];
	scan = systable_beginscan_ordered(rel, index_rel, snapshot, 1, &key);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	if (HeapTupleIsValid(tuple))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		Datum		value;

		value = heap_getattr(tuple, ANUM_EXPECTED_BY, desc, &isnull);
		check_may_look(TextDatumGetCString(value));
		value = heap_getattr(tuple, ANUM_XID, desc, &isnull);
		if (U64FromFullTransactionId(DatumGetFullTransactionId(value)) ==
			U64FromFullTransactionId(GetTopFullTransactionIdIfAny()))
			ereport(ERROR,
					(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
					 errmsg("outbox.wait_decided() cannot be called in the transaction that expects the answer"),
					 errdetail("The message is sent only after its transaction has committed."),
					 errhint("Commit first, then wait.")));
		value = heap_getattr(tuple, ANUM_DECISION, desc, &isnull);
		result = isnull ? pstrdup("awaiting") : TextDatumGetCString(value);
	}
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index_rel, AccessShareLock);
	table_close(rel, AccessShareLock);
	return result;
}

static bool
is_awaiting(const char *decision)
{
	return decision != NULL && strcmp(decision, "awaiting") == 0;
}

static char *
wait_decided(RelaySlot *slot, text *correlation_id, TimestampTz end)
{
	static uint32 wait_event = 0;
	char	   *result;

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxWaitDecided");
	if (slot != NULL)
		ConditionVariablePrepareToSleep(&slot->progress_cv);
	for (;;)
	{
		long		timeout;

		result = look(correlation_id);
		if (!is_awaiting(result))
			break;
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (timeout <= 0)
			break;
		pfree(result);
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
	return result;
}

static void
stop_waiting(int code, Datum arg)
{
	RelaySlot  *slot = (RelaySlot *) DatumGetPointer(arg);

	pg_atomic_fetch_sub_u32(&slot->waiters, 1);
}

/* The same, counted as a waiter meanwhile, also if it ends by an error. */
static char *
wait_counted(RelaySlot *slot, text *correlation_id, TimestampTz end)
{
	char	   *volatile result = NULL;

	pg_atomic_fetch_add_u32(&slot->waiters, 1);
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	{
		result = wait_decided(slot, correlation_id, end);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	stop_waiting(0, PointerGetDatum(slot));
	return result;
}

Datum
outbox_kafka_wait_decided(PG_FUNCTION_ARGS)
{
	text	   *correlation_id = PG_GETARG_TEXT_PP(0);
	Interval   *timeout = PG_GETARG_INTERVAL_P(1);
	TimestampTz end;
	RelaySlot  *slot = shared_state ? shmem_find_slot(MyDatabaseId) : NULL;
	char	   *result;

	end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												  TimestampTzGetDatum(GetCurrentTimestamp()),
												  IntervalPGetDatum(timeout)));
	result = slot ? wait_counted(slot, correlation_id, end) :
		wait_decided(NULL, correlation_id, end);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(result));
}
