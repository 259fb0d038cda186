/*
 * wait_decided.c
 *	  outbox.wait_decided(): wait until an expectation is decided.
 *
 * The row is looked at again each time something was decided (progress_wait.c),
 * with a snapshot that is not held in between.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
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
#include "progress_wait.h"

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

/* What is waited for, and what was found last. */
typedef struct Waiting
{
	text	   *correlation_id;
	char	   *decision;
} Waiting;

static bool
is_over(void *arg)
{
	Waiting    *waiting = (Waiting *) arg;

	if (waiting->decision != NULL)
		pfree(waiting->decision);
	waiting->decision = look(waiting->correlation_id);
	return waiting->decision == NULL || strcmp(waiting->decision, "awaiting") != 0;
}

Datum
outbox_kafka_wait_decided(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	Waiting		waiting = {.correlation_id = PG_GETARG_TEXT_PP(0)};

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxWaitDecided");
	progress_wait(is_over, &waiting, progress_wait_end(PG_GETARG_INTERVAL_P(1)), wait_event);
	if (waiting.decision == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(waiting.decision));
}
