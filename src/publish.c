/*
 * publish.c
 *	  outbox.publish() in its typed forms.
 *
 * A message is checked, gets its id, and is put straight into the leaf table
 * of the current segment: no partition routing, no planner, no trigger. The
 * row trigger of outbox.message does for a raw INSERT what happens here.
 *
 * What is stored is what goes to Kafka: keys and payloads as bytes, text in
 * UTF-8. A value that came out of another table compressed or out of line is
 * handed on as it is, so that a large payload is not unpacked to be packed
 * again.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
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
#include "segment_choice.h"
#include "topic_limit.h"
#include "uuid7.h"
#include "wakeup.h"

/* Arguments, in the same places in all forms */
#define ARG_TOPIC 0
#define ARG_PAYLOAD 1
#define ARG_KEY 2
#define ARG_HEADERS 3
#define ARG_PARTITION 4
#define ARG_EVENT_ID 5
#define ARG_CORRELATION_ID 6

PG_FUNCTION_INFO_V1(outbox_kafka_publish_jsonb);
PG_FUNCTION_INFO_V1(outbox_kafka_publish_text);
PG_FUNCTION_INFO_V1(outbox_kafka_publish_bytea_text);
PG_FUNCTION_INFO_V1(outbox_kafka_publish_bytea);

/*
 * The bytes of a text (or json) value in UTF-8, as a bytea: the value itself
 * where nothing has to be converted, since both types are stored alike.
 */
static Datum
text_as_bytes(Datum value)
{
	text	   *source;
	char	   *utf8;
	int			length;
	bytea	   *result;

	if (GetDatabaseEncoding() == PG_UTF8)
		return value;

	source = DatumGetTextPP(value);
	utf8 = message_to_utf8(VARDATA_ANY(source), VARSIZE_ANY_EXHDR(source), &length);

	result = (bytea *) palloc(VARHDRSZ + length);
	SET_VARSIZE(result, VARHDRSZ + length);
	memcpy(VARDATA(result), utf8, length);

	return PointerGetDatum(result);
}

/*
 * The text of a jsonb value in UTF-8, as a bytea.
 */
static Datum
jsonb_as_bytes(Datum value)
{
	Jsonb	   *source = DatumGetJsonbP(value);
	StringInfoData buffer;

	/* leave room for the length word, and write the text behind it */
	initStringInfo(&buffer);
	appendStringInfoSpaces(&buffer, VARHDRSZ);
	(void) JsonbToCString(&buffer, &source->root, VARSIZE(source));
	SET_VARSIZE(buffer.data, buffer.len);

	return text_as_bytes(PointerGetDatum(buffer.data));
}

/*
 * Whether the leaf has just what the install script gave it: our indexes and
 * no constraint of somebody else's.
 */
static bool
is_as_installed(Relation leaf, int segment)
{
	const OutboxCatalog *catalog = catalog_get(false);
	TupleConstr *constraints = RelationGetDescr(leaf)->constr;
	List	   *indexes;
	ListCell   *cell;
	bool		result;

	if (constraints != NULL &&
		(constraints->num_check > 0 || constraints->has_generated_stored))
		return false;

	indexes = RelationGetIndexList(leaf);
	result = list_length(indexes) == 3;
	foreach(cell, indexes)
	{
		Oid			index = lfirst_oid(cell);

		if (index != catalog->leaf_id_index[segment] &&
			index != catalog->leaf_xid_index[segment] &&
			index != catalog->leaf_event_index[segment])
			result = false;
	}
	list_free(indexes);

	return result;
}

/*
 * Put an entry for the row into one of our own indexes. The lock is kept to
 * the end of the transaction, as the leaf's is.
 */
static void
insert_index_entry(Oid relid, Relation leaf, ItemPointer tid,
				   Datum first, Datum second)
{
	Relation	index = index_open(relid, RowExclusiveLock);
	Datum		values[2] = {first, second};
	bool		nulls[2] = {false, false};

	(void) index_insert(index, values, nulls, tid, leaf,
						UNIQUE_CHECK_NO, false, NULL);
	index_close(index, NoLock);
}

/*
 * Put the row into a leaf that is as installed. The executor would set itself
 * up and take itself down for each row, for a sixth of the time of a row in
 * bulk.
 */
static void
insert_directly(Relation leaf, int segment, Datum *values, bool *nulls)
{
	const OutboxCatalog *catalog;
	HeapTuple	tuple;
	Datum		id = values[Anum_outbox_message_id - 1];

	tuple = heap_form_tuple(RelationGetDescr(leaf), values, nulls);
	simple_heap_insert(leaf, tuple);

	catalog = catalog_get(false);
	insert_index_entry(catalog->leaf_id_index[segment], leaf, &tuple->t_self,
					   id, (Datum) 0);
	insert_index_entry(catalog->leaf_xid_index[segment], leaf, &tuple->t_self,
					   values[Anum_outbox_message_xid - 1], id);
	insert_index_entry(catalog->leaf_event_index[segment], leaf, &tuple->t_self,
					   values[Anum_outbox_message_event_id - 1], (Datum) 0);
	heap_freetuple(tuple);
}

/*
 * Put the row into a leaf to which somebody has added indexes or constraints.
 */
static void
insert_by_executor(Relation leaf, Datum *values, bool *nulls)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *target = makeNode(ResultRelInfo);
	TupleTableSlot *slot;

	InitResultRelInfo(target, leaf, 0, NULL, 0);
	target->ri_TrigDesc = NULL; /* what they check has been checked */
	ExecOpenIndices(target, false);

	slot = ExecInitExtraTupleSlot(estate, RelationGetDescr(leaf), &TTSOpsVirtual);
	memcpy(slot->tts_values, values, Natts_outbox_message * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, Natts_outbox_message * sizeof(bool));
	ExecStoreVirtualTuple(slot);

	ExecSimpleRelationInsert(target, estate, slot);

	ExecCloseIndices(target);
	ExecResetTupleTable(estate->es_tupleTable, false);
	FreeExecutorState(estate);
}

/*
 * The leaf of the current segment, locked for writing. If the extension is
 * dropped meanwhile, the error says so.
 */
static Relation
open_leaf(int *segment)
{
	Relation	leaf;

	*segment = segment_current();
	leaf = try_table_open(catalog_get(false)->leaf[*segment], RowExclusiveLock);
	if (leaf == NULL)
		leaf = table_open(catalog_get(false)->leaf[*segment], RowExclusiveLock);

	message_check_columns(RelationGetDescr(leaf));

	return leaf;
}

/*
 * Check and store one message. key and payload are bytea values, each looked
 * at only if not NULL; the rest is taken from the arguments. Returns the event
 * id.
 */
static Datum
publish(FunctionCallInfo fcinfo, Datum key, Datum payload)
{
	Datum		values[Natts_outbox_message] = {0};
	bool		nulls[Natts_outbox_message] = {0};
	MessageFields fields = {0};
	Size		least_bytes;
	text	   *correlation_id = NULL;
	FullTransactionId xid;
	Relation	leaf;
	int			segment;
	pg_uuid_t  *event_id;
	TimestampTz now;

	message_check_writable("outbox.publish()");

	if (!PG_ARGISNULL(ARG_TOPIC))
	{
		text	   *topic = PG_GETARG_TEXT_PP(ARG_TOPIC);

		fields.topic = VARDATA_ANY(topic);
		fields.topic_length = VARSIZE_ANY_EXHDR(topic);
		values[Anum_outbox_message_topic - 1] = PointerGetDatum(topic);
	}
	fields.has_key = !PG_ARGISNULL(ARG_KEY);
	if (fields.has_key)
		fields.key_length = toast_raw_datum_size(key) - VARHDRSZ;
	fields.has_payload = !PG_ARGISNULL(ARG_PAYLOAD);
	if (fields.has_payload)
		fields.payload_length = toast_raw_datum_size(payload) - VARHDRSZ;
	if (!PG_ARGISNULL(ARG_HEADERS))
		fields.headers = PG_GETARG_JSONB_P(ARG_HEADERS);
	fields.headers = handled_message_headers(fields.headers);
	fields.has_partition = !PG_ARGISNULL(ARG_PARTITION);
	if (fields.has_partition)
		fields.partition = PG_GETARG_INT32(ARG_PARTITION);
	if (!PG_ARGISNULL(ARG_CORRELATION_ID))
		correlation_id = PG_GETARG_TEXT_PP(ARG_CORRELATION_ID);
	else if (handled_message_correlation_id() != NULL)
		correlation_id = cstring_to_text(handled_message_correlation_id());
	if (correlation_id != NULL)
	{
		fields.correlation_id = VARDATA_ANY(correlation_id);
		fields.correlation_id_length = VARSIZE_ANY_EXHDR(correlation_id);
	}

	least_bytes = message_check(&fields);
	publish_grant_check(fields.topic, fields.topic_length);
	topic_limit_check(fields.topic, fields.topic_length, least_bytes);
	backlog_check();

	now = GetCurrentTimestamp();

	if (PG_ARGISNULL(ARG_EVENT_ID))
	{
		event_id = (pg_uuid_t *) palloc(sizeof(pg_uuid_t));
		uuid7_generate(now, event_id);
	}
	else
		event_id = PG_GETARG_UUID_P(ARG_EVENT_ID);

	/*
	 * The sequence is locked before the leaf, as by INSERT and by DROP
	 * EXTENSION (see the install script): in another order they could wait
	 * for each other.
	 */
	values[Anum_outbox_message_id - 1] =
		Int64GetDatum(message_next_id(catalog_get(false)->sequence, &xid));
	leaf = open_leaf(&segment);
	values[Anum_outbox_message_xid - 1] = FullTransactionIdGetDatum(xid);
	values[Anum_outbox_message_segment - 1] = Int16GetDatum((int16) segment);
	values[Anum_outbox_message_event_id - 1] = UUIDPGetDatum(event_id);
	values[Anum_outbox_message_key - 1] = key;
	nulls[Anum_outbox_message_key - 1] = !fields.has_key;
	values[Anum_outbox_message_payload - 1] = payload;
	nulls[Anum_outbox_message_payload - 1] = !fields.has_payload;
	values[Anum_outbox_message_headers - 1] = PointerGetDatum(fields.headers);
	nulls[Anum_outbox_message_headers - 1] = fields.headers == NULL;
	values[Anum_outbox_message_partition - 1] = Int32GetDatum(fields.partition);
	nulls[Anum_outbox_message_partition - 1] = !fields.has_partition;
	values[Anum_outbox_message_correlation_id - 1] = PointerGetDatum(correlation_id);
	nulls[Anum_outbox_message_correlation_id - 1] = correlation_id == NULL;
	values[Anum_outbox_message_created_at - 1] = TimestampTzGetDatum(now);

	if (is_as_installed(leaf, segment))
		insert_directly(leaf, segment, values, nulls);
	else
		insert_by_executor(leaf, values, nulls);
	table_close(leaf, NoLock);

	wakeup_mark_published();

	return UUIDPGetDatum(event_id);
}

/* publish(topic, payload jsonb, key text, ...) */
Datum
outbox_kafka_publish_jsonb(PG_FUNCTION_ARGS)
{
	Datum		key = (Datum) 0;
	Datum		payload = (Datum) 0;

	if (!PG_ARGISNULL(ARG_KEY))
		key = text_as_bytes(PG_GETARG_DATUM(ARG_KEY));
	if (!PG_ARGISNULL(ARG_PAYLOAD))
		payload = jsonb_as_bytes(PG_GETARG_DATUM(ARG_PAYLOAD));

	return publish(fcinfo, key, payload);
}

/* publish(topic, payload text, key text, ...), and the same for json */
Datum
outbox_kafka_publish_text(PG_FUNCTION_ARGS)
{
	Datum		key = (Datum) 0;
	Datum		payload = (Datum) 0;

	if (!PG_ARGISNULL(ARG_KEY))
		key = text_as_bytes(PG_GETARG_DATUM(ARG_KEY));
	if (!PG_ARGISNULL(ARG_PAYLOAD))
		payload = text_as_bytes(PG_GETARG_DATUM(ARG_PAYLOAD));

	return publish(fcinfo, key, payload);
}

/* publish(topic, payload bytea, key text, ...) */
Datum
outbox_kafka_publish_bytea_text(PG_FUNCTION_ARGS)
{
	Datum		key = (Datum) 0;

	if (!PG_ARGISNULL(ARG_KEY))
		key = text_as_bytes(PG_GETARG_DATUM(ARG_KEY));

	return publish(fcinfo, key, PG_GETARG_DATUM(ARG_PAYLOAD));
}

/* publish(topic, payload bytea, key bytea, ...) */
Datum
outbox_kafka_publish_bytea(PG_FUNCTION_ARGS)
{
	return publish(fcinfo, PG_GETARG_DATUM(ARG_KEY), PG_GETARG_DATUM(ARG_PAYLOAD));
}
