/*
 * decider_store.c
 *	  What the decider asks and writes, see decider.h.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "decider.h"
#include "fault.h"
#include "guc.h"
#include "wakeup.h"

/* Rows of one transaction. */
#define ACKNOWLEDGE_ROWS 1000
#define EXPIRE_ROWS 100
#define REMOVE_ROWS 1000

#define TEXT_OF(number) CppAsString2(number)

/* Where the caller was: transactions change it. */
static MemoryContext caller_context;

/*
 * Lock all that a statement may touch, without waiting: who drops the extension
 * holds one table and wants the others.
 */
static bool
lock_tables(void)
{
	static const struct
	{
		const char *name;
		LOCKMODE	mode;
	}			tables[] =
	{
		{"message", AccessShareLock},
		{"relay_state", AccessShareLock},
		{"relay_position", AccessShareLock},
		{"held_lane", AccessShareLock},
		{"parked_message", RowExclusiveLock},
		{"discarded_message", RowExclusiveLock},
		{"discard_request", RowExclusiveLock},
		{"confirmation", RowExclusiveLock},
	};
	const OutboxCatalog *catalog = catalog_get(true);
	OutboxCatalog copy;

	if (catalog == NULL)
		return false;
	copy = *catalog;
	for (size_t i = 0; i < lengthof(tables); i++)
	{
		Oid			table = get_relname_relid(tables[i].name, copy.schema);

		if (!OidIsValid(table) || !ConditionalLockRelationOid(table, tables[i].mode))
			return false;
	}
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (!ConditionalLockRelationOid(copy.leaf[i], AccessShareLock))
			return false;
	}
	return true;
}

bool
decider_begin(void)
{
	caller_context = CurrentMemoryContext;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!lock_tables())
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(caller_context);
		return false;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	pgstat_report_activity(STATE_RUNNING, "deciding about confirmations");
	return true;
}

void
decider_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller_context);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* A value of the only row of the result; 0 for NULL. */
static int64
result_int64(int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									  column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

void
decider_execute(const char *text, int nargs, const Oid *types, Datum *values)
{
	int			result = SPI_execute_with_args(text, nargs, unconstify(Oid *, types),
											   values, NULL, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute a statement about outbox.confirmation: %s",
			 SPI_result_code_string(result));
}

bool
decider_due(DeciderDue *due)
{
	bool		isnull;

	memset(due, 0, sizeof(*due));
	if (!decider_begin())
		return false;
	decider_execute("SELECT EXISTS (SELECT FROM outbox.confirmation WHERE NOT restored),"
					" EXISTS (SELECT FROM outbox.confirmation"
					"  WHERE decision IS NULL AND deadline IS NULL AND NOT restored),"
					" (SELECT min(deadline) FROM outbox.confirmation"
					"  WHERE decision IS NULL AND deadline IS NOT NULL AND NOT restored),"
					" (SELECT min(next_try_at) FROM outbox.confirmation"
					"  WHERE next_try_at IS NOT NULL AND NOT restored),"
					" (SELECT min(completed_at) FROM outbox.confirmation"
					"  WHERE completed_at IS NOT NULL)", 0, NULL, NULL);
	due->any = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
										  1, &isnull));
	due->unacknowledged = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
													 SPI_tuptable->tupdesc, 2, &isnull));
	due->expire_at = result_int64(3);
	due->call_at = result_int64(4);
	due->remove_at = result_int64(5);
	if (due->remove_at != 0)
		due->remove_at += (int64) guc_confirmation_retention * USECS_PER_SEC;
	decider_commit();
	return true;
}

/*
 * A message that is not retained any more was delivered. One that was given up
 * is not waited for any longer.
 */
uint64
decider_acknowledge(void)
{
	static const Oid types[] = {INT8OID};
	int64		after = 0;
	uint64		total = 0;

	for (;;)
	{
		Datum		values[] = {Int64GetDatum(after)};
		int64		last;

		if (!decider_begin())
			return total;
		decider_execute("WITH waiting AS MATERIALIZED ("
						"  SELECT c.id, c.event_id FROM outbox.confirmation AS c"
						"  WHERE c.decision IS NULL AND c.deadline IS NULL AND NOT c.restored"
						"  AND c.id > $1 ORDER BY c.id LIMIT " TEXT_OF(ACKNOWLEDGE_ROWS) "),"
						" found AS MATERIALIZED ("
						"  SELECT w.id, coalesce((SELECT v.status FROM outbox.message_status AS v"
						"   WHERE v.id = w.id AND v.event_id = w.event_id), 'published') AS status"
						"  FROM waiting AS w),"
						" ready AS MATERIALIZED ("
						"  SELECT c.id, f.status FROM outbox.confirmation AS c, found AS f"
						"  WHERE c.id = f.id AND f.status IN ('published', 'discarded')"
						"  AND c.decision IS NULL FOR UPDATE OF c SKIP LOCKED),"
						" done AS ("
						"  UPDATE outbox.confirmation AS c SET deadline = clock_timestamp() +"
						"   CASE r.status WHEN 'published' THEN c.within ELSE interval '0' END"
						"  FROM ready AS r WHERE r.id = c.id RETURNING 1)"
						" SELECT (SELECT max(id) FROM waiting), (SELECT count(*) FROM done),"
						"  (SELECT count(*) FROM waiting)",
						lengthof(types), types, values);
		last = result_int64(1);
		total += result_int64(2);
		if (result_int64(3) < ACKNOWLEDGE_ROWS)
			last = 0;
		decider_commit();
		if (last == 0)
			return total;
		after = last;
		CHECK_FOR_INTERRUPTS();
	}
}

/* What had to be sent by then and was not is withdrawn. */
uint64
decider_expire(bool *full)
{
	uint64		count;

	*full = false;
	if (!decider_begin())
		return 0;
	decider_execute("WITH due AS MATERIALIZED ("
					"  SELECT c.id FROM outbox.confirmation AS c"
					"  WHERE c.decision IS NULL AND c.deadline IS NOT NULL AND NOT c.restored"
					"  AND c.deadline <= clock_timestamp() ORDER BY c.deadline"
					"  LIMIT " TEXT_OF(EXPIRE_ROWS) " FOR UPDATE SKIP LOCKED),"
					" expired AS ("
					"  UPDATE outbox.confirmation AS c SET decision = 'expired', decided_at = clock_timestamp(),"
					"   reason = CASE WHEN EXISTS (SELECT FROM outbox.discarded_message AS d WHERE d.id = c.id"
					"    AND d.event_id = c.event_id) THEN 'discarded' END,"
					"   handler_state = CASE WHEN c.on_expired IS NOT NULL THEN 'pending' END,"
					"   next_try_at = CASE WHEN c.on_expired IS NOT NULL THEN clock_timestamp() END,"
					"   completed_at = CASE WHEN c.on_expired IS NULL THEN clock_timestamp() END"
					"  FROM due WHERE due.id = c.id RETURNING c.id, c.counts_from, c.expected_by)"
					" SELECT CASE WHEN e.counts_from = 'publishing'"
					"  THEN outbox.withdraw(e.id, e.expected_by) END FROM expired AS e",
					0, NULL, NULL);
	count = SPI_processed;
	*full = count == EXPIRE_ROWS;
	if (count > 0)
		wakeup_mark_decider();
	FAULT_POINT("expiring");
	decider_commit();
	FAULT_POINT("expired");
	return count;
}

uint64
decider_remove(bool *full)
{
	static const Oid types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(guc_confirmation_retention)};
	uint64		count;

	*full = false;
	if (!decider_begin())
		return 0;
	decider_execute("DELETE FROM outbox.confirmation AS c WHERE c.id IN ("
					"  SELECT o.id FROM outbox.confirmation AS o"
					"  WHERE o.completed_at <= clock_timestamp() - make_interval(secs => $1)"
					"  ORDER BY o.completed_at LIMIT " TEXT_OF(REMOVE_ROWS) " FOR UPDATE SKIP LOCKED)",
					lengthof(types), types, values);
	count = SPI_processed;
	*full = count == REMOVE_ROWS;
	decider_commit();
	return count;
}
