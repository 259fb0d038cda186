/*
 * message_trigger.c
 *	  The triggers of outbox.message and its leaves.
 *
 * A raw INSERT goes through the same checks as outbox.publish(), and what only
 * the extension may say (xid, id, time) is filled in here. Two kinds of rows
 * are not for this outbox: those that a dump brings back, which are parked
 * until somebody decides, and those that logical replication brings from
 * another database's outbox, which are dropped.
 *
 * The triggers are ENABLE ALWAYS, so session_replication_role does not turn
 * them off, and they sit on the leaves too, where pg_restore and logical
 * replication write. The extension's other tables have a trigger that does
 * nothing but drop replicated rows.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "replication/logicalworker.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "backlog.h"
#include "catalog.h"
#include "handled_message.h"
#include "message.h"
#include "message_check.h"
#include "message_id.h"
#include "publish_grant.h"
#include "topic_limit.h"
#include "uuid7.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(outbox_kafka_message_before_insert);
PG_FUNCTION_INFO_V1(outbox_kafka_message_refuse_change);
PG_FUNCTION_INFO_V1(outbox_kafka_ignore_replicated);

/*
 * The row's place in values[] and nulls[]
 */
#define FIELD(name) (Anum_outbox_message_##name - 1)

static bool
is_leaf(Oid relid)
{
	const OutboxCatalog *catalog = catalog_get(false);

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (catalog->leaf[i] == relid)
			return true;
	}

	return false;
}

/*
 * What outbox.publish() takes from the message that is being handled.
 */
static void
fill_from_handled(Datum *values, bool *nulls)
{
	Jsonb	   *given = nulls[FIELD(headers)] ? NULL : DatumGetJsonbP(values[FIELD(headers)]);
	Jsonb	   *headers = handled_message_headers(given);

	if (headers != given)
	{
		values[FIELD(headers)] = JsonbPGetDatum(headers);
		nulls[FIELD(headers)] = false;
	}
	if (nulls[FIELD(correlation_id)] && handled_message_correlation_id() != NULL)
	{
		values[FIELD(correlation_id)] = CStringGetTextDatum(handled_message_correlation_id());
		nulls[FIELD(correlation_id)] = false;
	}
}

/*
 * All checks of outbox.publish(), on a row.
 */
static void
check_row(const Datum *values, const bool *nulls)
{
	MessageFields fields = {0};
	Size		least_bytes;

	if (!nulls[FIELD(topic)])
	{
		text	   *topic = DatumGetTextPP(values[FIELD(topic)]);

		fields.topic = VARDATA_ANY(topic);
		fields.topic_length = VARSIZE_ANY_EXHDR(topic);
	}
	fields.has_key = !nulls[FIELD(key)];
	if (fields.has_key)
		fields.key_length = toast_raw_datum_size(values[FIELD(key)]) - VARHDRSZ;
	fields.has_payload = !nulls[FIELD(payload)];
	if (fields.has_payload)
		fields.payload_length = toast_raw_datum_size(values[FIELD(payload)]) - VARHDRSZ;
	if (!nulls[FIELD(headers)])
		fields.headers = DatumGetJsonbP(values[FIELD(headers)]);
	fields.has_partition = !nulls[FIELD(partition)];
	if (fields.has_partition)
		fields.partition = DatumGetInt32(values[FIELD(partition)]);
	if (!nulls[FIELD(correlation_id)])
	{
		text	   *correlation_id = DatumGetTextPP(values[FIELD(correlation_id)]);

		fields.correlation_id = VARDATA_ANY(correlation_id);
		fields.correlation_id_length = VARSIZE_ANY_EXHDR(correlation_id);
	}

	least_bytes = message_check(&fields);
	publish_grant_check(fields.topic, fields.topic_length);
	topic_limit_check(fields.topic, fields.topic_length, least_bytes);
	backlog_check();
}

/*
 * A row of a dump: put it aside under its own id. The statement names nothing
 * that a search_path could redirect, and has no operator to be shadowed.
 */
static void
park_restored(const Datum *row, const bool *row_nulls)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {
		INT8OID, UUIDOID, TEXTOID, BYTEAOID, BYTEAOID, JSONBOID, INT4OID,
		TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID
	};
	static const int fields[] = {
		FIELD(id), FIELD(event_id), FIELD(topic), FIELD(key), FIELD(payload),
		FIELD(headers), FIELD(partition), FIELD(correlation_id),
		FIELD(created_at)
	};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < (int) lengthof(fields); i++)
	{
		values[i] = row[fields[i]];
		nulls[i] = row_nulls[fields[i]] ? 'n' : ' ';
	}
	values[lengthof(fields)] = TimestampTzGetDatum(now);
	nulls[lengthof(fields)] = ' ';

	SPI_connect();

	if (plan == NULL)
	{
		SPIPlanPtr	prepared;

		prepared = SPI_prepare("INSERT INTO outbox.parked_message"
							   " (id, event_id, topic, key, payload, headers,"
							   " partition, correlation_id, created_at,"
							   " reason, parked_at)"
							   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,"
							   " 'restored', $10)"
							   " ON CONFLICT (id) DO NOTHING",
							   lengthof(types), types);
		if (prepared == NULL || SPI_keepplan(prepared) != 0)
			elog(ERROR, "could not prepare the statement that parks a message: %s",
				 SPI_result_code_string(SPI_result));
		plan = prepared;
	}

	if (SPI_execute_plan(plan, values, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not park a message: %s",
			 SPI_result_code_string(SPI_result));
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("message %lld is already in outbox.parked_message",
						(long long) DatumGetInt64(row[FIELD(id)])),
				 errhint("Restore a dump into a database only once.")));

	SPI_finish();
}

/*
 * The row is one that only a restore brings: with an xid and an id of its own.
 * An error if it has one of them alone, or the right to both is missing.
 */
static bool
is_restored(const bool *nulls)
{
	bool		has_xid = !nulls[FIELD(xid)];
	bool		has_id = !nulls[FIELD(id)];

	if (has_xid && has_id)
	{
		if (!publish_grant_is_administrator())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to restore messages into outbox.message"),
					 errdetail("A row with xid and id comes from a dump."),
					 errhint("To publish, leave out xid, id and created_at.")));
		return true;
	}

	if (has_xid || has_id || !nulls[FIELD(created_at)])
		ereport(ERROR,
				(errcode(ERRCODE_GENERATED_ALWAYS),
				 errmsg("column \"%s\" of outbox.message cannot be given",
						has_xid ? "xid" : has_id ? "id" : "created_at"),
				 errdetail("The extension sets xid, id and created_at.")));

	return false;
}

/*
 * BEFORE INSERT trigger of each leaf.
 */
Datum
outbox_kafka_message_before_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	Datum		values[Natts_outbox_message];
	bool		nulls[Natts_outbox_message];
	FullTransactionId xid;
	pg_uuid_t	event_id;
	TimestampTz now;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
		!is_leaf(RelationGetRelid(trigger->tg_relation)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.message_before_insert() is the insert trigger of outbox.message")));

	if (IsLogicalWorker())
		return PointerGetDatum(NULL);

	desc = RelationGetDescr(trigger->tg_relation);
	message_check_columns(desc);
	heap_deform_tuple(trigger->tg_trigtuple, desc, values, nulls);

	if (is_restored(nulls))
	{
		park_restored(values, nulls);
		return PointerGetDatum(NULL);
	}

	if (handled_message_subscription() != NULL)
		fill_from_handled(values, nulls);
	check_row(values, nulls);

	now = GetCurrentTimestamp();
	if (nulls[FIELD(event_id)])
	{
		uuid7_generate(now, &event_id);
		values[FIELD(event_id)] = UUIDPGetDatum(&event_id);
		nulls[FIELD(event_id)] = false;
	}

	values[FIELD(id)] = Int64GetDatum(message_next_id(catalog_get(false)->sequence, &xid));
	nulls[FIELD(id)] = false;
	values[FIELD(xid)] = FullTransactionIdGetDatum(xid);
	nulls[FIELD(xid)] = false;
	values[FIELD(created_at)] = TimestampTzGetDatum(now);
	nulls[FIELD(created_at)] = false;

	wakeup_mark_published();

	return PointerGetDatum(heap_form_tuple(desc, values, nulls));
}

/*
 * BEFORE UPDATE, DELETE and TRUNCATE trigger of outbox.message and its leaves.
 */
Datum
outbox_kafka_message_refuse_change(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.message_refuse_change() is a trigger function")));

	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("messages in outbox.message cannot be changed, deleted or truncated"),
			 errdetail("What is committed is sent; the relay empties a segment when all in it is delivered and retention is over.")));

	PG_RETURN_NULL();
}

/*
 * BEFORE INSERT, UPDATE or DELETE trigger of the extension's other tables,
 * fired where session_replication_role is replica.
 */
Datum
outbox_kafka_ignore_replicated(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.ignore_replicated() is a row trigger")));

	if (IsLogicalWorker())
		return PointerGetDatum(NULL);

	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						   trigger->tg_newtuple : trigger->tg_trigtuple);
}
