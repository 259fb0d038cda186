/*
 * decider_call.c
 *	  Calling the functions that were named for a decision.
 *
 * The new state of the row is written first, then the function is called as the
 * role that expected the answer, all in one transaction: what the function did
 * and that it did commit together, so it takes effect once, wherever the
 * decider is killed. When it fails, all of that is rolled back and the failure
 * stands in a transaction of its own, with the time of the next attempt.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/elog.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "decider.h"
#include "fault.h"
#include "handler.h"

/* The longest pause between two attempts. */
#define BACKOFF_MAX "1 hour"

typedef struct Call
{
	int64		id;
	char	   *correlation_id;
	char	   *owner;
	char	   *function;
	Oid			argument_type;
	Datum		argument;
} Call;

/*
 * Pick the call that is due longest and write that it was made, in the present
 * transaction. False: there is none. What is returned lives in context.
 */
static bool
take(Call *call, MemoryContext context)
{
	MemoryContext old;
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;

	/*
	 * The function of the decision comes first; then, at once, that of a late
	 * answer, should there be one by then.
	 */
	decider_execute("WITH due AS MATERIALIZED ("
					"  SELECT c.id FROM outbox.confirmation AS c"
					"  WHERE c.next_try_at IS NOT NULL AND NOT c.restored"
					"  AND c.next_try_at <= clock_timestamp()"
					"  ORDER BY c.next_try_at LIMIT 1 FOR UPDATE SKIP LOCKED),"
					" what AS MATERIALIZED ("
					"  SELECT c.id, c.handler_state IS NOT DISTINCT FROM 'pending' AS is_decision,"
					"   CASE WHEN c.handler_state IS DISTINCT FROM 'pending' THEN c.on_late"
					"    WHEN c.decision = 'confirmed' THEN c.on_confirmed"
					"    WHEN c.decision = 'rejected' THEN c.on_rejected"
					"    ELSE c.on_expired END AS function"
					"  FROM outbox.confirmation AS c, due WHERE c.id = due.id)"
					" UPDATE outbox.confirmation AS c SET"
					"  handler_state = CASE WHEN w.is_decision THEN 'done' ELSE c.handler_state END,"
					"  late_state = CASE WHEN w.is_decision THEN c.late_state ELSE 'done' END,"
					"  attempts = 0, error = CASE WHEN c.handler_state = 'failed' THEN c.error END,"
					"  next_try_at = CASE WHEN w.is_decision AND c.late_state = 'pending'"
					"   THEN clock_timestamp() END,"
					"  completed_at = CASE WHEN w.is_decision THEN"
					"    CASE WHEN c.late_state IS NULL OR c.late_state = 'done' THEN clock_timestamp() END"
					"   WHEN c.handler_state IS NULL OR c.handler_state = 'done' THEN clock_timestamp() END"
					" FROM what AS w WHERE w.id = c.id"
					" RETURNING c.id, c.correlation_id, c.expected_by, w.function,"
					"  (c.correlation_id, c.event_id, c.topic, c.decision,"
					"   CASE WHEN NOT w.is_decision THEN c.late_answer"
					"    WHEN c.decision <> 'expired' THEN c.decision END,"
					"   CASE WHEN w.is_decision THEN c.reason ELSE c.late_reason END,"
					"   CASE WHEN w.is_decision THEN c.detail ELSE c.late_detail END,"
					"   c.context,"
					"   CASE WHEN w.is_decision THEN c.decided_at ELSE c.late_at END)::outbox.decision",
					0, NULL, NULL);
	if (SPI_processed == 0)
		return false;

	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	old = MemoryContextSwitchTo(context);
	call->id = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
	call->correlation_id = TextDatumGetCString(SPI_getbinval(tuple, desc, 2, &isnull));
	call->owner = TextDatumGetCString(SPI_getbinval(tuple, desc, 3, &isnull));
	call->function = TextDatumGetCString(SPI_getbinval(tuple, desc, 4, &isnull));
	call->argument_type = SPI_gettypeid(desc, 5);
	call->argument = datumCopy(SPI_getbinval(tuple, desc, 5, &isnull), false, -1);
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * The call has failed. Whether it was the last attempt: *last. Not stored when
 * somebody has locked the row: then it is simply due again.
 */
static void
store_failure(const Call *call, const ErrorData *error, bool *last)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {
		Int64GetDatum(call->id),
		CStringGetTextDatum(error->message ? error->message : "unknown error"),
	};
	bool		isnull;

	*last = false;
	if (!decider_begin())
		return;

	/* late_state has its turn when handler_state has had its own */
	decider_execute("WITH failed AS MATERIALIZED ("
					"  SELECT c.id, c.attempts + 1 >= c.max_attempts AS is_last,"
					"   c.handler_state IS NOT DISTINCT FROM 'pending' AS is_decision,"
					"   least(least(c.retry_backoff, interval '" BACKOFF_MAX "') * power(2, least(c.attempts, 20)),"
					"    interval '" BACKOFF_MAX "') AS pause"
					"  FROM outbox.confirmation AS c"
					"  WHERE c.id = $1 AND c.next_try_at IS NOT NULL FOR UPDATE SKIP LOCKED)"
					" UPDATE outbox.confirmation AS c SET"
					"  handler_state = CASE WHEN f.is_last AND f.is_decision THEN 'failed' ELSE c.handler_state END,"
					"  late_state = CASE WHEN f.is_last AND NOT f.is_decision THEN 'failed' ELSE c.late_state END,"
					"  attempts = CASE WHEN f.is_last AND f.is_decision AND c.late_state = 'pending' THEN 0"
					"   ELSE c.attempts + 1 END,"
					"  error = $2,"
					"  next_try_at = CASE WHEN NOT f.is_last THEN clock_timestamp() + f.pause"
					"   WHEN f.is_decision AND c.late_state = 'pending' THEN clock_timestamp() END"
					" FROM failed AS f WHERE f.id = c.id RETURNING f.is_last",
					lengthof(types), types, values);
	if (SPI_processed > 0)
		*last = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
										   1, &isnull));
	decider_commit();
}

static void
report_failure(const Call *call, const ErrorData *error, bool last)
{
	ereport(last ? WARNING : LOG,
			(errmsg("outbox_kafka: function %s for the answer \"%s\" has failed: %s",
					call->function, call->correlation_id,
					error->message ? error->message : "unknown error"),
			 last ? errdetail("It is not called again.") : 0,
			 last ? errhint("See outbox.confirmations; outbox.retry_confirmation() has it called again.") : 0));
}

bool
decider_call(SideSlot *slot)
{
	MemoryContext context = CurrentMemoryContext;
	Call		call = {0};
	ErrorData  *volatile error = NULL;
	bool		last;

	if (!decider_begin())
		return false;
	if (!take(&call, context))
	{
		decider_commit();
		return false;
	}
	SPI_finish();
	PopActiveSnapshot();
	pgstat_report_activity(STATE_RUNNING, call.function);

	PG_TRY();
	{
		HandlerFunction *function;

		handler_begin(call.owner);
		function = handler_lookup(call.function, call.argument_type);
		FAULT_POINT("calling");
		handler_call(function, call.argument);
		handler_finish();
		FAULT_POINT("called");
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		error = handler_caught(context);
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	handler_end();
	MemoryContextSwitchTo(context);
	pgstat_report_activity(STATE_IDLE, NULL);
	FAULT_POINT("call committed");

	if (error != NULL)
	{
		pg_atomic_fetch_add_u64(&slot->failed, 1);
		store_failure(&call, error, &last);
		report_failure(&call, error, last);
	}
	return true;
}
