/*
 * confirmation.c
 *	  outbox.expect_confirmation(): that a message has to be answered.
 *
 * The expectation stands in the transaction that publishes the message, which
 * is checked: an answer cannot come before it is known that one is waited for,
 * and nobody can wait for an answer to somebody else's message.
 *
 * Its functions are stored by name, with the role that expects; the decider
 * calls them as that role. So they are checked here for a first time, where
 * the error meets who made the mistake.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "argument_check.h"
#include "catalog.h"
#include "handler.h"
#include "message_check.h"
#include "owner_session.h"
#include "wakeup.h"

#define ARG_EVENT_ID 0
#define ARG_WITHIN 1
#define ARG_ON_CONFIRMED 2
#define ARG_ON_REJECTED 3
#define ARG_ON_EXPIRED 4
#define ARG_ON_LATE 5
#define ARG_ANSWERED_BY 6
#define ARG_CONTEXT 7
#define ARG_COUNTS_FROM 8
#define ARG_MAX_ATTEMPTS 9
#define ARG_RETRY_BACKOFF 10

#define COUNTS_FROM_ACKNOWLEDGEMENT "acknowledgement"
#define COUNTS_FROM_PUBLISHING "publishing"

/*
 * The row that is being made. A dump may bring one with the xid of the very
 * transaction that restores it, but not with this id as well.
 */
static int64 making_id = 0;

/* In outbox.confirmation, id is the first, xid is the second column, restored the twelfth. */
#define ANUM_ID 1
#define ANUM_XID 2
#define ANUM_RESTORED 12

PG_FUNCTION_INFO_V1(outbox_kafka_expect_confirmation);
PG_FUNCTION_INFO_V1(outbox_kafka_confirmation_before_insert);
PG_FUNCTION_INFO_V1(outbox_kafka_wake_decider);

static void
check_answered_by(ArrayType *names)
{
	if (ARR_NDIM(names) != 1 || array_contains_nulls(names))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("answered_by must be a non-empty array of names of subscriptions without NULL"),
				 errhint("Without answered_by, any subscription of the current role may answer.")));
}

/* The message of this transaction with that event id. */
static void
find_message(Datum event_id, int64 *id, char **topic, char **correlation_id)
{
	static const Oid types[] = {UUIDOID, XID8OID};
	static OwnerStatement find = {
		"SELECT m.id, m.topic, coalesce(m.correlation_id, m.event_id::text)"
		" FROM outbox.message AS m WHERE m.event_id = $1 AND m.xid = $2"
		" ORDER BY m.id DESC LIMIT 1",
		lengthof(types), types, NULL
	};
	FullTransactionId xid = GetTopFullTransactionIdIfAny();
	Datum		values[] = {event_id, FullTransactionIdGetDatum(xid)};
	bool		isnull;

	SPI_processed = 0;
	if (FullTransactionIdIsValid(xid))
		owner_execute(&find, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this transaction has published no message with event id %s",
						DatumGetCString(DirectFunctionCall1(uuid_out, event_id))),
				 errhint("Call outbox.expect_confirmation() in the transaction that publishes the message.")));
	*id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*topic = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	*correlation_id = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3);
}

/* A function given as argument, as the text to store. */
static void
store_handler(FunctionCallInfo fcinfo, int argument, const char *what,
			  Datum *value, char *null)
{
	*null = PG_ARGISNULL(argument) ? 'n' : ' ';
	if (*null == ' ')
		*value = CStringGetTextDatum(handler_stored_name(PG_GETARG_OID(argument),
														 catalog_type(catalog_get(false)->schema, "decision"), what));
}

Datum
outbox_kafka_expect_confirmation(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {
		INT8OID, XID8OID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID,
		INTERVALOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID,
		INT4OID, INTERVALOID
	};

	/* the deadline that counts from publishing is known at once */
	static OwnerStatement insert = {
		"INSERT INTO outbox.confirmation AS c"
		" (id, xid, event_id, topic, correlation_id, expected_by, answered_by,"
		"  expected_at, within, counts_from, deadline,"
		"  on_confirmed, on_rejected, on_expired, on_late, context,"
		"  max_attempts, retry_backoff)"
		" SELECT $1, $2, $3, $4, $5, $6, $7, n.now, $8, $9,"
		"  CASE WHEN $9 = '" COUNTS_FROM_PUBLISHING "' THEN n.now + $8 END,"
		"  $10, $11, $12, $13, $14, $15, $16"
		" FROM clock_timestamp() AS n (now)"
		" ON CONFLICT DO NOTHING",
		lengthof(types), types, NULL
	};
	Datum		values[lengthof(types)] = {0};
	char		nulls[lengthof(types)];
	OwnerSession session;
	char	   *counts_from;
	int64		id;
	char	   *topic;
	char	   *correlation_id;
	text	   *result;

	message_check_writable("outbox.expect_confirmation()");
	argument_check_not_null(fcinfo, ARG_EVENT_ID, "event_id");
	argument_check_not_null(fcinfo, ARG_WITHIN, "within");
	argument_check_not_null(fcinfo, ARG_COUNTS_FROM, "counts_from");
	argument_check_not_null(fcinfo, ARG_MAX_ATTEMPTS, "max_attempts");
	argument_check_not_null(fcinfo, ARG_RETRY_BACKOFF, "retry_backoff");
	argument_check_positive(PG_GETARG_INTERVAL_P(ARG_WITHIN), "within");
	argument_check_positive(PG_GETARG_INTERVAL_P(ARG_RETRY_BACKOFF), "retry_backoff");
	if (PG_GETARG_INT32(ARG_MAX_ATTEMPTS) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_attempts must be at least 1, it is %d",
						PG_GETARG_INT32(ARG_MAX_ATTEMPTS))));
	counts_from = text_to_cstring(PG_GETARG_TEXT_PP(ARG_COUNTS_FROM));
	if (strcmp(counts_from, COUNTS_FROM_ACKNOWLEDGEMENT) != 0 &&
		strcmp(counts_from, COUNTS_FROM_PUBLISHING) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("counts_from must be \"%s\" or \"%s\", it is \"%s\"",
						COUNTS_FROM_ACKNOWLEDGEMENT, COUNTS_FROM_PUBLISHING, counts_from)));
	if (!PG_ARGISNULL(ARG_ANSWERED_BY))
		check_answered_by(PG_GETARG_ARRAYTYPE_P(ARG_ANSWERED_BY));

	memset(nulls, ' ', sizeof(nulls));
	store_handler(fcinfo, ARG_ON_CONFIRMED, "on_confirmed", &values[9], &nulls[9]);
	store_handler(fcinfo, ARG_ON_REJECTED, "on_rejected", &values[10], &nulls[10]);
	store_handler(fcinfo, ARG_ON_EXPIRED, "on_expired", &values[11], &nulls[11]);
	store_handler(fcinfo, ARG_ON_LATE, "on_late", &values[12], &nulls[12]);
	values[5] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[6] = PG_GETARG_DATUM(ARG_ANSWERED_BY);
	nulls[6] = PG_ARGISNULL(ARG_ANSWERED_BY) ? 'n' : ' ';
	values[7] = PG_GETARG_DATUM(ARG_WITHIN);
	values[8] = PG_GETARG_DATUM(ARG_COUNTS_FROM);
	values[13] = PG_GETARG_DATUM(ARG_CONTEXT);
	nulls[13] = PG_ARGISNULL(ARG_CONTEXT) ? 'n' : ' ';
	values[14] = PG_GETARG_DATUM(ARG_MAX_ATTEMPTS);
	values[15] = PG_GETARG_DATUM(ARG_RETRY_BACKOFF);

	owner_begin(&session);
	find_message(PG_GETARG_DATUM(ARG_EVENT_ID), &id, &topic, &correlation_id);
	values[0] = Int64GetDatum(id);
	values[1] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[2] = PG_GETARG_DATUM(ARG_EVENT_ID);
	values[3] = CStringGetTextDatum(topic);
	values[4] = CStringGetTextDatum(correlation_id);
	making_id = id;
	owner_execute(&insert, values, nulls);
	making_id = 0;
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("an answer with correlation id \"%s\" is waited for already",
						correlation_id),
				 errhint("Give the message a correlation_id of its own.")));
	result = (text *) SPI_palloc(VARSIZE_ANY(DatumGetPointer(values[4])));
	memcpy(result, DatumGetPointer(values[4]), VARSIZE_ANY(DatumGetPointer(values[4])));
	owner_end(&session);

	wakeup_mark_decider();
	PG_RETURN_TEXT_P(result);
}

/*
 * BEFORE INSERT trigger of outbox.confirmation: what outbox.expect_confirmation()
 * has not made is what a dump brings.
 */
Datum
outbox_kafka_confirmation_before_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	Datum		id;
	Datum		xid;
	bool		no_id;
	bool		no_xid;
	int			column = ANUM_RESTORED;
	Datum		restored = BoolGetDatum(true);
	bool		null = false;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.confirmation_before_insert() is the insert trigger of outbox.confirmation")));

	if (IsLogicalWorker())
		return PointerGetDatum(NULL);

	desc = RelationGetDescr(trigger->tg_relation);
	id = heap_getattr(trigger->tg_trigtuple, ANUM_ID, desc, &no_id);
	xid = heap_getattr(trigger->tg_trigtuple, ANUM_XID, desc, &no_xid);
	if (!no_id && DatumGetInt64(id) == making_id && !no_xid &&
		FullTransactionIdEquals(DatumGetFullTransactionId(xid),
								GetTopFullTransactionId()))
		return PointerGetDatum(trigger->tg_trigtuple);
	return PointerGetDatum(heap_modify_tuple_by_cols(trigger->tg_trigtuple, desc, 1,
													 &column, &restored, &null));
}

/* For what is decided about expectations in SQL. */
Datum
outbox_kafka_wake_decider(PG_FUNCTION_ARGS)
{
	wakeup_mark_decider();
	PG_RETURN_VOID();
}
