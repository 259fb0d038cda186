/*
 * inbox_control.c
 *	  Deciding about subscriptions in SQL: who may, the lock that keeps the
 *	  workers away meanwhile, and what concerns positions and dead letters.
 *
 * Positions are the workers' to write. What is decided about them becomes a row
 * of inbox.request, which they follow before they handle anything else.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "argument_check.h"
#include "catalog.h"
#include "inbox_control.h"
#include "inbox_lock.h"
#include "message_check.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(outbox_kafka_inbox_pause);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_resume);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_seek_text);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_seek_time);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_seek_offset);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_retry_partition);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_retry_all);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_retry_one);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_skip_partition);
PG_FUNCTION_INFO_V1(outbox_kafka_inbox_skip_one);

/* The id of a subscription and whose it is. False: there is none. */
static bool
find_subscription(const char *name, int *id, char **owner)
{
	static const Oid types[] = {TEXTOID};
	static OwnerStatement find = {
		"SELECT s.id, s.owner FROM inbox.subscription AS s WHERE s.name = $1",
		lengthof(types), types, NULL
	};
	Datum		values[] = {CStringGetTextDatum(name)};
	bool		isnull;

	owner_execute(&find, values, NULL);
	if (SPI_processed == 0)
		return false;
	*id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*owner = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	return true;
}

static bool
may_decide(Oid role, const char *owner)
{
	Oid			owner_role = get_role_oid(owner, true);

	return superuser_arg(role) || has_privs_of_role(role, catalog_get(false)->owner) ||
		(OidIsValid(owner_role) && has_privs_of_role(role, owner_role));
}

int
inbox_control_begin(OwnerSession *session, const char *name)
{
	int			id = 0;
	char	   *owner;
	bool		found;

	message_check_writable("a change of a subscription");
	owner_begin(session);
	found = find_subscription(name, &id, &owner);
	if (found && !may_decide(session->role, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be a member of role \"%s\" to decide about subscription \"%s\"",
						owner, name)));
	if (found)
	{
		/* as long as a batch takes; then it may be gone */
		(void) inbox_lock(id, ExclusiveLock, false);
		found = find_subscription(name, &id, &owner);
	}
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" does not exist", name)));
	wakeup_mark_inbox(id);
	return id;
}

int64
inbox_control(const char *name, OwnerStatement *statement, Datum *values, const char *nulls)
{
	OwnerSession session;
	int64		count;

	values[0] = Int32GetDatum(inbox_control_begin(&session, name));
	owner_execute(statement, values, nulls);
	count = (int64) SPI_processed;
	owner_end(&session);
	return count;
}

TimestampTz
inbox_control_time(const char *text, const char *what)
{
	TimestampTz time = DT_NOEND;

	/* a word is none, and its error would not tell what could stand there */
	if (strpbrk(text, "0123456789") != NULL)
		time = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
													   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	if (TIMESTAMP_NOT_FINITE(time))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be \"earliest\", \"latest\" or a time, it is \"%s\"", what, text)));
	return time;
}

/* ---- pause ---- */

static void
set_paused(const char *name, bool paused)
{
	static const Oid types[] = {INT4OID, BOOLOID};
	static OwnerStatement update = {
		"UPDATE inbox.subscription AS s SET paused = $2 WHERE s.id = $1 AND s.paused <> $2",
		lengthof(types), types, NULL
	};
	Datum		values[] = {(Datum) 0, BoolGetDatum(paused)};

	(void) inbox_control(name, &update, values, NULL);
	wakeup_mark_control();
}

Datum
outbox_kafka_inbox_pause(PG_FUNCTION_ARGS)
{
	set_paused(text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	PG_RETURN_VOID();
}

Datum
outbox_kafka_inbox_resume(PG_FUNCTION_ARGS)
{
	set_paused(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	PG_RETURN_VOID();
}

/* ---- seek ---- */

/* Arguments: name, to, topic, partition; the latter two NULL for all. */
static Datum
seek(FunctionCallInfo fcinfo, const char *kind, int64 offset, TimestampTz time)
{
	static const Oid types[] = {INT4OID, TEXTOID, INT4OID, TEXTOID, INT8OID, TIMESTAMPTZOID};
	static OwnerStatement insert = {
		"INSERT INTO inbox.request AS r (subscription, topic, partition, kind, to_offset, to_time, requested_at, requested_by)"
		" SELECT o.subscription, o.topic, o.partition, $4, $5, $6, clock_timestamp(), session_user"
		" FROM inbox.\"offset\" AS o"
		" WHERE o.subscription = $1 AND ($2 IS NULL OR o.topic = $2) AND ($3 IS NULL OR o.partition = $3)"
		" ON CONFLICT (subscription, topic, partition) DO UPDATE"
		" SET kind = excluded.kind, to_offset = excluded.to_offset, to_time = excluded.to_time,"
		"  requested_at = excluded.requested_at, requested_by = excluded.requested_by",
		lengthof(types), types, NULL
	};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)] = {' ', ' ', ' ', ' ', ' ', ' '};
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int64		count;

	nulls[1] = PG_ARGISNULL(2) ? 'n' : ' ';
	values[1] = PG_GETARG_DATUM(2);
	nulls[2] = PG_ARGISNULL(3) ? 'n' : ' ';
	values[2] = PG_GETARG_DATUM(3);
	values[3] = CStringGetTextDatum(kind);
	nulls[4] = strcmp(kind, "offset") == 0 ? ' ' : 'n';
	values[4] = Int64GetDatum(offset);
	nulls[5] = strcmp(kind, "time") == 0 ? ' ' : 'n';
	values[5] = TimestampTzGetDatum(time);

	count = inbox_control(name, &insert, values, nulls);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 PG_ARGISNULL(2) ?
				 errmsg("no partition of subscription \"%s\" is known yet", name) :
				 PG_ARGISNULL(3) ?
				 errmsg("no partition of topic \"%s\" is known to subscription \"%s\"",
						text_to_cstring(PG_GETARG_TEXT_PP(2)), name) :
				 errmsg("partition %d of topic \"%s\" is not known to subscription \"%s\"",
						PG_GETARG_INT32(3), text_to_cstring(PG_GETARG_TEXT_PP(2)), name),
				 errhint("See inbox.subscription_status.")));
	PG_RETURN_INT64(count);
}

Datum
outbox_kafka_inbox_seek_text(PG_FUNCTION_ARGS)
{
	char	   *to;

	argument_check_not_null(fcinfo, 0, "name");
	argument_check_not_null(fcinfo, 1, "to");
	to = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (strcmp(to, "earliest") == 0 || strcmp(to, "latest") == 0)
		return seek(fcinfo, to, 0, 0);
	return seek(fcinfo, "time", 0, inbox_control_time(to, "to"));
}

Datum
outbox_kafka_inbox_seek_time(PG_FUNCTION_ARGS)
{
	argument_check_not_null(fcinfo, 0, "name");
	argument_check_not_null(fcinfo, 1, "to");
	if (TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the time to seek must be finite"),
				 errhint("Use 'earliest' or 'latest'.")));
	return seek(fcinfo, "time", 0, PG_GETARG_TIMESTAMPTZ(1));
}

Datum
outbox_kafka_inbox_seek_offset(PG_FUNCTION_ARGS)
{
	argument_check_not_null(fcinfo, 0, "name");
	argument_check_not_null(fcinfo, 1, "to");
	argument_check_not_null(fcinfo, 2, "topic");
	argument_check_not_null(fcinfo, 3, "partition");
	if (PG_GETARG_INT64(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an offset must not be negative, it is " INT64_FORMAT, PG_GETARG_INT64(1))));
	return seek(fcinfo, "offset", PG_GETARG_INT64(1), 0);
}

/* ---- failed messages ---- */

static Datum
decide_partition(FunctionCallInfo fcinfo, const char *kind)
{
	static const Oid types[] = {INT4OID, TEXTOID, INT4OID, TEXTOID};
	static OwnerStatement insert = {
		"INSERT INTO inbox.request AS r (subscription, topic, partition, kind, requested_at, requested_by)"
		" SELECT o.subscription, o.topic, o.partition, $4, clock_timestamp(), session_user"
		" FROM inbox.\"offset\" AS o"
		" WHERE o.subscription = $1 AND o.topic = $2 AND o.partition = $3 AND o.failing_offset IS NOT NULL"
		" ON CONFLICT (subscription, topic, partition) DO UPDATE"
		" SET kind = excluded.kind, requested_at = excluded.requested_at, requested_by = excluded.requested_by"
		" WHERE r.kind IN ('retry', 'skip')",
		lengthof(types), types, NULL
	};
	Datum		values[lengthof(types)];

	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_GETARG_DATUM(2);
	values[3] = CStringGetTextDatum(kind);
	PG_RETURN_INT64(inbox_control(text_to_cstring(PG_GETARG_TEXT_PP(0)), &insert, values, NULL));
}

Datum
outbox_kafka_inbox_retry_partition(PG_FUNCTION_ARGS)
{
	return decide_partition(fcinfo, "retry");
}

Datum
outbox_kafka_inbox_skip_partition(PG_FUNCTION_ARGS)
{
	return decide_partition(fcinfo, "skip");
}

Datum
outbox_kafka_inbox_retry_all(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID};
	static OwnerStatement update = {
		"UPDATE inbox.dead_letter AS d SET retry_at = clock_timestamp() WHERE d.subscription = $1",
		lengthof(types), types, NULL
	};
	Datum		values[lengthof(types)];

	PG_RETURN_INT64(inbox_control(text_to_cstring(PG_GETARG_TEXT_PP(0)), &update, values, NULL));
}

/*
 * One dead letter, of whatever subscription it is. If that one is gone, its id
 * is 0 for the statement, and the letter is the extension's owner's to decide.
 */
static int64
decide_letter(int64 id, OwnerStatement *statement)
{
	static const Oid types[] = {INT8OID};
	static OwnerStatement find = {
		"SELECT s.name, d.subscription_name FROM inbox.dead_letter AS d"
		" LEFT JOIN inbox.subscription AS s ON s.id = d.subscription WHERE d.id = $1",
		lengthof(types), types, NULL
	};
	Datum		values[2] = {Int64GetDatum(id)};
	MemoryContext context = CurrentMemoryContext;
	OwnerSession session;
	char	   *name = NULL;
	int64		count = 0;

	owner_begin(&session);
	owner_execute(&find, values, NULL);
	if (SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];

		name = SPI_getvalue(row, SPI_tuptable->tupdesc, 1);
		if (name != NULL)
			name = MemoryContextStrdup(context, name);
		else if (!may_decide(session.role, ""))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("subscription \"%s\" of dead letter " INT64_FORMAT " does not exist any more",
							SPI_getvalue(row, SPI_tuptable->tupdesc, 2), id)));
		else
		{
			values[0] = Int32GetDatum(0);
			values[1] = Int64GetDatum(id);
			owner_execute(statement, values, NULL);
			count = (int64) SPI_processed;
		}
	}
	owner_end(&session);
	if (name == NULL)
		return count;
	values[1] = Int64GetDatum(id);
	return inbox_control(name, statement, values, NULL);
}

Datum
outbox_kafka_inbox_retry_one(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, INT8OID};
	static OwnerStatement update = {
		"UPDATE inbox.dead_letter AS d SET retry_at = clock_timestamp()"
		" WHERE d.subscription = $1 AND d.id = $2",
		lengthof(types), types, NULL
	};

	PG_RETURN_INT64(decide_letter(PG_GETARG_INT64(0), &update));
}

Datum
outbox_kafka_inbox_skip_one(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, INT8OID};
	static OwnerStatement delete = {
		"DELETE FROM inbox.dead_letter AS d WHERE (d.subscription = $1 OR $1 = 0) AND d.id = $2",
		lengthof(types), types, NULL
	};

	PG_RETURN_INT64(decide_letter(PG_GETARG_INT64(0), &delete));
}
