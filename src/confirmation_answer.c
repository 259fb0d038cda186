/*
 * confirmation_answer.c
 *	  Answers to messages: outbox.confirm(), outbox.reject(), and the same as
 *	  handlers of subscriptions.
 *
 * The first answer decides, or the deadline: whoever has the row's lock while
 * it is undecided. An answer like the decision is a repetition, which at least
 * once delivery brings, and is counted. An answer unlike it came too late: the
 * first one of those is kept and handed to on_late, further ones are counted.
 *
 * Who may answer: the role that expects, or a member of it. In a handler that
 * is the owner of the subscription, so that messages that somebody else's
 * subscription reads answer nothing of ours; answered_by names the subscriptions
 * when even those of one role are to be told apart. That a message is being
 * handled, and of which subscription, only the inbox worker can say.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "handled_message.h"
#include "message_check.h"
#include "owner_session.h"
#include "wakeup.h"

/* Reasons of messages that are no answer may be of any length. */
#define REASON_MAX_LENGTH 4096

#define CONFIRMED "confirmed"
#define REJECTED "rejected"

/* The function to call for the answer $2. */
#define FUNCTION_OF_ANSWER \
	"CASE $2 WHEN '" CONFIRMED "' THEN c.on_confirmed ELSE c.on_rejected END"

PG_FUNCTION_INFO_V1(outbox_kafka_confirm);
PG_FUNCTION_INFO_V1(outbox_kafka_reject);
PG_FUNCTION_INFO_V1(outbox_kafka_confirm_by_message);
PG_FUNCTION_INFO_V1(outbox_kafka_reject_by_message);

/* Who answers. */
typedef struct Answerer
{
	Oid			role;
	const char *subscription;	/* or NULL: no message is being handled */
	char	   *name;			/* for people */
} Answerer;

static Answerer
who_answers(void)
{
	Answerer	answerer;

	answerer.role = GetUserId();
	answerer.subscription = handled_message_subscription();
	if (answerer.subscription)
		answerer.name = psprintf("subscription %s", answerer.subscription);
	else
		answerer.name = psprintf("role %s", GetUserNameFromId(answerer.role, false));
	return answerer;
}

static bool
is_named(ArrayType *names, const char *name)
{
	Datum	   *elements;
	int			n;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		if (strcmp(TextDatumGetCString(elements[i]), name) == 0)
			return true;
	}
	return false;
}

/* An error unless the expectation in the present SPI result may be answered. */
static void
check_answerer(const Answerer *answerer, const char *correlation_id)
{
	HeapTuple	tuple = SPI_tuptable->vals[0];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	char	   *expected_by = SPI_getvalue(tuple, desc, 2);
	Oid			expected_role = get_role_oid(expected_by, true);
	bool		isnull;
	Datum		answered_by;

	if (!(OidIsValid(expected_role) ? is_member_of_role(answerer->role, expected_role) :
		  superuser_arg(answerer->role)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s may not answer \"%s\"", answerer->name, correlation_id),
				 errdetail("Role \"%s\" waits for that answer, and role \"%s\" is no member of it.",
						   expected_by, GetUserNameFromId(answerer->role, false))));

	answered_by = SPI_getbinval(tuple, desc, 3, &isnull);
	if (!isnull && answerer->subscription != NULL &&
		!is_named(DatumGetArrayTypeP(answered_by), answerer->subscription))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s may not answer \"%s\"", answerer->name, correlation_id),
				 errdetail("It is none of the subscriptions in answered_by.")));
}

/*
 * Store an answer. reason and detail may be NULL. Returns what became of it, a
 * constant, or NULL: nobody waits for that.
 */
static const char *
answer(const Answerer *answerer, const char *correlation_id, const char *given,
	   const char *reason, Jsonb *detail)
{
	static const Oid find_types[] = {TEXTOID};
	static OwnerStatement find = {
		"SELECT c.id, c.expected_by, c.answered_by, c.decision, c.late = 0"
		" FROM outbox.confirmation AS c WHERE c.correlation_id = $1"
		" ORDER BY c.decision IS NOT NULL, c.id DESC LIMIT 1 FOR UPDATE",
		lengthof(find_types), find_types, NULL
	};
	static const Oid store_types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, JSONBOID};
	static OwnerStatement decide = {
		"UPDATE outbox.confirmation AS c SET decision = $2, decided_at = clock_timestamp(),"
		" decided_by = $3, reason = $4, detail = $5,"
		" handler_state = CASE WHEN " FUNCTION_OF_ANSWER " IS NOT NULL THEN 'pending' END,"
		" next_try_at = CASE WHEN " FUNCTION_OF_ANSWER " IS NOT NULL THEN clock_timestamp() END,"
		" completed_at = CASE WHEN " FUNCTION_OF_ANSWER " IS NULL THEN clock_timestamp() END"
		" WHERE c.id = $1",
		lengthof(store_types), store_types, NULL
	};
	static const Oid repeat_types[] = {INT8OID};
	static OwnerStatement repeat = {
		"UPDATE outbox.confirmation AS c SET repeated = c.repeated + 1 WHERE c.id = $1",
		lengthof(repeat_types), repeat_types, NULL
	};

	/* on_late comes after the decision's own function has ended */
	static OwnerStatement first_late = {
		"UPDATE outbox.confirmation AS c SET late = 1, late_answer = $2, late_at = clock_timestamp(),"
		" late_by = $3, late_reason = $4, late_detail = $5,"
		" late_state = CASE WHEN c.on_late IS NOT NULL THEN 'pending' END,"
		" next_try_at = CASE WHEN c.on_late IS NOT NULL AND c.handler_state IS DISTINCT FROM 'pending'"
		"  THEN clock_timestamp() ELSE c.next_try_at END,"
		" completed_at = CASE WHEN c.on_late IS NULL THEN c.completed_at END"
		" WHERE c.id = $1",
		lengthof(store_types), store_types, NULL
	};
	static OwnerStatement further_late = {
		"UPDATE outbox.confirmation AS c SET late = c.late + 1 WHERE c.id = $1",
		lengthof(repeat_types), repeat_types, NULL
	};
	Datum		values[lengthof(store_types)] = {0};
	char		nulls[lengthof(store_types)] = {' ', ' ', ' ', ' ', ' '};
	OwnerSession session;
	const char *result = NULL;

	owner_begin(&session);
	values[0] = CStringGetTextDatum(correlation_id);
	owner_execute(&find, values, NULL);
	if (SPI_processed > 0)
	{
		char	   *decision = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4);
		bool		isnull;
		bool		is_first = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
														  SPI_tuptable->tupdesc, 5, &isnull));

		check_answerer(answerer, correlation_id);
		values[0] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		values[1] = CStringGetTextDatum(given);
		values[2] = CStringGetTextDatum(answerer->name);
		if (reason)
			values[3] = CStringGetTextDatum(reason);
		else
			nulls[3] = 'n';
		if (detail)
			values[4] = JsonbPGetDatum(detail);
		else
			nulls[4] = 'n';

		if (decision == NULL)
		{
			owner_execute(&decide, values, nulls);
			result = "decided";
		}
		else if (strcmp(decision, given) == 0)
		{
			owner_execute(&repeat, values, nulls);
			result = "repeated";
		}
		else
		{
			owner_execute(is_first ? &first_late : &further_late, values, nulls);
			result = "late";
		}
		if (decision == NULL || is_first)
			wakeup_mark_decider();
	}
	owner_end(&session);
	return result;
}

static Datum
return_result(FunctionCallInfo fcinfo, const char *result)
{
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(result));
}

static char *
correlation_id_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("correlation_id must not be NULL")));
	return text_to_cstring(PG_GETARG_TEXT_PP(0));
}

/* Reasons come from others: as much of one as is worth keeping. */
static char *
clip_reason(char *reason)
{
	int			length = strlen(reason);

	if (length > REASON_MAX_LENGTH)
		reason[pg_mbcliplen(reason, length, REASON_MAX_LENGTH)] = '\0';
	return reason;
}

/* confirm(correlation_id, detail) */
Datum
outbox_kafka_confirm(PG_FUNCTION_ARGS)
{
	Answerer	answerer = who_answers();

	message_check_writable("outbox.confirm()");
	return return_result(fcinfo,
						 answer(&answerer, correlation_id_argument(fcinfo), CONFIRMED, NULL,
								PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1)));
}

/* reject(correlation_id, reason, detail) */
Datum
outbox_kafka_reject(PG_FUNCTION_ARGS)
{
	Answerer	answerer = who_answers();

	message_check_writable("outbox.reject()");
	return return_result(fcinfo,
						 answer(&answerer, correlation_id_argument(fcinfo), REJECTED,
								PG_ARGISNULL(1) ? NULL :
								clip_reason(text_to_cstring(PG_GETARG_TEXT_PP(1))),
								PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2)));
}

/* A string that an object has by that name, or NULL. */
static char *
string_of(Jsonb *object, const char *name)
{
	JsonbValue	buffer;
	JsonbValue *value;

	if (object == NULL || !JB_ROOT_IS_OBJECT(object))
		return NULL;
	value = getKeyJsonValueFromContainer(&object->root, name, strlen(name), &buffer);
	if (value == NULL || value->type != jbvString)
		return NULL;
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* The payload as JSON, or NULL. */
static Jsonb *
payload_as_json(Datum payload)
{
	static const Oid types[] = {BYTEAOID};
	static OwnerStatement parse = {
		"SELECT outbox.json_or_null($1)", lengthof(types), types, NULL
	};
	OwnerSession session;
	Jsonb	   *result = NULL;
	bool		isnull;
	Datum		value;

	owner_begin(&session);
	owner_execute(&parse, &payload, NULL);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (!isnull)
	{
		Jsonb	   *source = DatumGetJsonbP(value);

		result = (Jsonb *) SPI_palloc(VARSIZE(source));
		memcpy(result, source, VARSIZE(source));
	}
	owner_end(&session);
	return result;
}

/*
 * The message that is being handled is an answer. One that answers nothing
 * known is not for us: other services may use the topic as well.
 */
static void
answer_by_message(FunctionCallInfo fcinfo, const char *given, const char *function)
{
	HeapTupleHeader message = PG_GETARG_HEAPTUPLEHEADER(0);
	Answerer	answerer = who_answers();
	Jsonb	   *detail = NULL;
	char	   *reason = NULL;
	Datum		value;
	bool		isnull;

	if (answerer.subscription == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s is called by inbox workers only", function),
				 errhint("Name it as handler in inbox.subscribe(), or use outbox.confirm() or outbox.reject().")));

	value = GetAttributeByName(message, "payload", &isnull);
	if (!isnull)
		detail = payload_as_json(value);

	if (strcmp(given, REJECTED) == 0)
	{
		value = GetAttributeByName(message, "headers", &isnull);
		if (!isnull)
			reason = string_of(DatumGetJsonbP(value), "reason");
		if (reason == NULL)
			reason = string_of(detail, "reason");
		if (reason != NULL)
			reason = clip_reason(reason);
	}

	value = GetAttributeByName(message, "correlation_id", &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the message has no correlation id"),
				 errdetail("An answer names what it answers in its header correlation-id.")));
	(void) answer(&answerer, TextDatumGetCString(value), given, reason, detail);
}

Datum
outbox_kafka_confirm_by_message(PG_FUNCTION_ARGS)
{
	answer_by_message(fcinfo, CONFIRMED, "outbox.confirm_by_message()");
	PG_RETURN_VOID();
}

Datum
outbox_kafka_reject_by_message(PG_FUNCTION_ARGS)
{
	answer_by_message(fcinfo, REJECTED, "outbox.reject_by_message()");
	PG_RETURN_VOID();
}
