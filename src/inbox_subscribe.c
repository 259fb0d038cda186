/*
 * inbox_subscribe.c
 *	  Making, changing and ending subscriptions in SQL.
 *
 * All that can be known is checked here, so that a subscription that is stored
 * can work. Whoever calls inbox.subscribe() is the role that the handler will
 * run as.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/syscache.h"

#include "argument_check.h"
#include "catalog.h"
#include "handler.h"
#include "inbox_control.h"
#include "message_check.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(outbox_kafka_inbox_subscribe);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_alter);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_unsubscribe);

/* It is part of the group's name in Kafka. */
#define NAME_MAX_LENGTH 100

#define WORKERS_MAX 64
#define BATCH_SIZE_MAX 100000
#define ATTEMPTS_MAX 1000000

/* What both functions take; a NULL changes nothing, no dedupe_window is 0. */
typedef struct Options
{
	Datum		topics;
	Datum		handler;		/* text */
	Datum		max_attempts;
	Datum		retry_backoff;
	Datum		dedupe_window;
	Datum		on_failure;
	Datum		workers;
	Datum		batch_size;
	char		nulls[8];		/* in that order, as SPI has it */
} Options;

enum
{
	OPTION_TOPICS, OPTION_HANDLER, OPTION_MAX_ATTEMPTS, OPTION_RETRY_BACKOFF,
	OPTION_DEDUPE_WINDOW, OPTION_ON_FAILURE, OPTION_WORKERS, OPTION_BATCH_SIZE
};

static void
check_name(const char *name)
{
	if (name[0] == '\0' || strlen(name) > NAME_MAX_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the name of a subscription must have 1 to %d bytes, \"%s\" has %d",
						NAME_MAX_LENGTH, name, (int) strlen(name))));
	for (const char *c = name; *c != '\0'; c++)
	{
		if ((unsigned char) *c <= ' ' || (unsigned char) *c >= 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the name of a subscription must consist of printable ASCII characters without spaces, it is \"%s\"",
							name)));
	}
}

/* Names by Kafka's rule, or ^ and a regular expression. */
static void
check_topics(ArrayType *topics)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(topics, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	if (ARR_NDIM(topics) != 1 || count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("topics must be a non-empty array")));
	for (int i = 0; i < count; i++)
	{
		char	   *topic;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("topics must not have NULL elements")));
		topic = TextDatumGetCString(elements[i]);
		if (topic[0] == '^')
			(void) DirectFunctionCall2Coll(textregexeq, C_COLLATION_OID,
										   CStringGetTextDatum(""), elements[i]);
		else
			message_check_topic(topic, (int) strlen(topic));
	}
}

static void
check_range(int value, int max, const char *what)
{
	if (value < 1 || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 1 and %d, it is %d", what, max, value)));
}

static char *
check_start(const char *start_from)
{
	if (strcmp(start_from, "earliest") == 0 || strcmp(start_from, "latest") == 0)
		return pstrdup(start_from);
	/* whatever TimeZone and DateStyle are where it is read again */
	return pstrdup(timestamptz_to_str(inbox_control_time(start_from, "start_from")));
}

/* Which argument each option is; those that are not NULL are checked. */
static void
get_options(FunctionCallInfo fcinfo, const int *arguments, Options *options)
{
	Datum	   *values = &options->topics;

	for (int i = 0; i <= OPTION_BATCH_SIZE; i++)
	{
		int			argument = arguments[i];

		options->nulls[i] = PG_ARGISNULL(argument) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(argument);
		if (PG_ARGISNULL(argument))
			continue;
		switch (i)
		{
			case OPTION_TOPICS:
				check_topics(DatumGetArrayTypeP(values[i]));
				break;
			case OPTION_HANDLER:
				values[i] = CStringGetTextDatum(handler_stored_name(DatumGetObjectId(values[i]),
																	catalog_type(get_namespace_oid(INBOX_SCHEMA, false), "message"), "handler"));
				break;
			case OPTION_MAX_ATTEMPTS:
				check_range(DatumGetInt32(values[i]), ATTEMPTS_MAX, "max_attempts");
				break;
			case OPTION_RETRY_BACKOFF:
				argument_check_positive(DatumGetIntervalP(values[i]), "retry_backoff");
				break;
			case OPTION_DEDUPE_WINDOW:
				if (!argument_is_zero(DatumGetIntervalP(values[i])))
					argument_check_positive(DatumGetIntervalP(values[i]), "dedupe_window");
				break;
			case OPTION_ON_FAILURE:
				{
					char	   *action = TextDatumGetCString(values[i]);

					if (strcmp(action, "skip") != 0 && strcmp(action, "stop_partition") != 0)
						ereport(ERROR,
								(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
								 errmsg("on_failure must be \"skip\" or \"stop_partition\", it is \"%s\"", action)));
				}
				break;
			case OPTION_WORKERS:
				check_range(DatumGetInt32(values[i]), WORKERS_MAX, "workers");
				break;
			case OPTION_BATCH_SIZE:
				check_range(DatumGetInt32(values[i]), BATCH_SIZE_MAX, "batch_size");
				break;
		}
	}
}

Datum
outbox_kafka_inbox_subscribe(PG_FUNCTION_ARGS)
{
	static const int arguments[] = {1, 2, 4, 5, 6, 7, 8, 9};
	static const char *const names[] = {
		"name", "topics", "handler", "start_from", "max_attempts", "retry_backoff",
		NULL, "on_failure", "workers", "batch_size"
	};
	static const Oid types[] = {
		TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTOID, INT4OID, INTERVALOID,
		TEXTOID, INT4OID, INT4OID, INTERVALOID
	};
	static OwnerStatement insert = {
		"INSERT INTO inbox.subscription AS s"
		" (name, owner, topics, handler, start_from, max_attempts, retry_backoff,"
		"  on_failure, workers, batch_size, dedupe_window)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11, interval '0'))"
		" ON CONFLICT (name) DO NOTHING RETURNING s.id",
		lengthof(types), types, NULL
	};
	Options		options;
	OwnerSession session;
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	char	   *name;
	bool		isnull;

	message_check_writable("inbox.subscribe()");
	for (int i = 0; i < (int) lengthof(names); i++)
	{
		if (names[i] != NULL)
			argument_check_not_null(fcinfo, i, names[i]);
	}
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	check_name(name);
	get_options(fcinfo, arguments, &options);

	memset(nulls, ' ', sizeof(nulls));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[2] = options.topics;
	values[3] = options.handler;
	values[4] = CStringGetTextDatum(check_start(text_to_cstring(PG_GETARG_TEXT_PP(3))));
	values[5] = options.max_attempts;
	values[6] = options.retry_backoff;
	values[7] = options.on_failure;
	values[8] = options.workers;
	values[9] = options.batch_size;
	values[10] = options.dedupe_window;
	nulls[10] = options.nulls[OPTION_DEDUPE_WINDOW];

	owner_begin(&session);
	owner_execute(&insert, values, nulls);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("subscription \"%s\" already exists", name),
				 errhint("Use inbox.alter_subscription() to change it, or inbox.unsubscribe().")));
	wakeup_mark_inbox(DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)));
	owner_end(&session);
	wakeup_mark_control();
	PG_RETURN_VOID();
}

/* The owner stays; so it is its right to the handler that counts. */
static void
check_owner(const char *name)
{
	static const Oid types[] = {TEXTOID};
	static OwnerStatement find = {
		"SELECT s.owner FROM inbox.subscription AS s WHERE s.name = $1",
		lengthof(types), types, NULL
	};
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerSession session;
	char	   *owner = NULL;

	owner_begin(&session);
	owner_execute(&find, values, NULL);
	if (SPI_processed > 0)
		owner = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (owner != NULL && get_role_oid(owner, true) != session.role)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only role \"%s\", as which it runs, can set the handler of subscription \"%s\"",
						owner, name)));
	owner_end(&session);
}

/*
 * Event ids that a subscription has seen and does not look at any more. Where
 * no other has a window, nothing else would ever remove them; and a window that
 * is set again later would find those of long ago.
 */
static void
forget_seen(Datum *id)
{
	static const Oid types[] = {INT4OID};
#define FORGET(table) \
	{ \
		"DELETE FROM inbox." table " AS t WHERE t.subscription = $1 AND NOT EXISTS" \
		" (SELECT FROM inbox.subscription AS s WHERE s.id = $1 AND s.dedupe_window IS NOT NULL)", \
		lengthof(types), types, NULL \
	}
	static OwnerStatement deletes[] = {
		FORGET("seen_0"), FORGET("seen_1"), FORGET("seen_2"), FORGET("seen_3")
	};
#undef FORGET

	for (int i = 0; i < (int) lengthof(deletes); i++)
		owner_execute(&deletes[i], id, NULL);
}

Datum
outbox_kafka_inbox_alter(PG_FUNCTION_ARGS)
{
	static const int arguments[] = {1, 2, 3, 4, 5, 6, 7, 8};
	static const Oid types[] = {
		INT4OID, TEXTARRAYOID, TEXTOID, INT4OID, INTERVALOID, INTERVALOID,
		TEXTOID, INT4OID, INT4OID
	};
	static OwnerStatement update = {
		"UPDATE inbox.subscription AS s SET"
		" topics = coalesce($2, s.topics), handler = coalesce($3, s.handler),"
		" max_attempts = coalesce($4, s.max_attempts),"
		" retry_backoff = coalesce($5, s.retry_backoff),"
		" dedupe_window = nullif(coalesce($6, s.dedupe_window), interval '0'),"
		" on_failure = coalesce($7, s.on_failure),"
		" workers = coalesce($8, s.workers), batch_size = coalesce($9, s.batch_size)"
		" WHERE s.id = $1",
		lengthof(types), types, NULL
	};
	Options		options;
	OwnerSession session;
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	char	   *name;

	argument_check_not_null(fcinfo, 0, "name");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	get_options(fcinfo, arguments, &options);
	if (options.nulls[OPTION_HANDLER] == ' ')
		check_owner(name);
	nulls[0] = ' ';
	memcpy(nulls + 1, options.nulls, sizeof(options.nulls));
	memcpy(values + 1, &options.topics, sizeof(Datum) * 8);
	values[0] = Int32GetDatum(inbox_control_begin(&session, name));
	owner_execute(&update, values, nulls);
	forget_seen(values);
	owner_end(&session);
	wakeup_mark_control();
	PG_RETURN_VOID();
}

Datum
outbox_kafka_inbox_unsubscribe(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID};
	static OwnerStatement deletes[] = {
		{"DELETE FROM inbox.\"offset\" AS o WHERE o.subscription = $1", lengthof(types), types, NULL},
		{"DELETE FROM inbox.request AS r WHERE r.subscription = $1", lengthof(types), types, NULL},
		{"DELETE FROM inbox.worker_problem AS p WHERE p.subscription = $1", lengthof(types), types, NULL},
		{"DELETE FROM inbox.subscription AS s WHERE s.id = $1", lengthof(types), types, NULL},
	};
	OwnerSession session;
	Datum		values[] = {Int32GetDatum(inbox_control_begin(&session, text_to_cstring(PG_GETARG_TEXT_PP(0))))};

	for (int i = 0; i < (int) lengthof(deletes); i++)
		owner_execute(&deletes[i], values, NULL);
	forget_seen(values);
	owner_end(&session);
	wakeup_mark_control();
	PG_RETURN_VOID();
}
