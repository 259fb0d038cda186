/*
 * inbox_message.c
 *	  From a Kafka message to the handler's argument, a value of type
 *	  inbox.message.
 *
 * Nothing that Kafka can hold makes this fail where the database's encoding is
 * UTF-8: key and payload are bytes, and bytes in a header that are no text stand
 * there in Base64. In another encoding a character that it lacks does; that is
 * then an error like one of the handler's.
 *
 * The value is an expanded record: PL/pgSQL takes it over as its variable as it
 * is, where it would copy a row and take it apart again.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "common/base64.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/expandedrecord.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "catalog.h"
#include "inbox_internal.h"
#include "unix_time.h"

#define MESSAGE_COLUMNS 9

/* Headers of a message that become part of the row; more are left out. */
#define MAX_HEADERS 1000

typedef struct Header
{
	JsonbValue	name;
	int			number;			/* in the message */
	const char *value;			/* NULL: none */
	Size		length;
} Header;

/*
 * An empty one, which the others are made after; in the context of the
 * transaction that inbox_message_prepare() was called in.
 */
static ExpandedRecordHeader *pattern = NULL;

void
inbox_message_prepare(Oid *type)
{
	*type = catalog_type(get_namespace_oid(INBOX_SCHEMA, false), "message");
	pattern = make_expanded_record_from_typeid(*type, -1, CurrentMemoryContext);
	if (inbox_message_type()->natts != MESSAGE_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("type \"inbox.message\" was altered")));
}

TupleDesc
inbox_message_type(void)
{
	return expanded_record_get_tupdesc(pattern);
}

static Datum
bytes_datum(const void *data, Size length)
{
	bytea	   *result = palloc(VARHDRSZ + length);

	SET_VARSIZE(result, VARHDRSZ + length);
	if (length > 0)
		memcpy(VARDATA(result), data, length);
	return PointerGetDatum(result);
}

static void
set_string(JsonbValue *target, const char *bytes, Size length)
{
	target->type = jbvString;
	target->val.string.val = (char *) bytes;
	target->val.string.len = (int) length;
}

/*
 * Kafka's texts are UTF-8, by convention. False: these bytes are none. What is
 * the database's encoding already is not copied.
 */
static bool
to_text(JsonbValue *target, const char *bytes, Size length)
{
	char	   *copy;

	if (memchr(bytes, '\0', length) != NULL ||
		!pg_verify_mbstr(PG_UTF8, bytes, (int) length, true))
		return false;
	if (GetDatabaseEncoding() == PG_UTF8)
	{
		set_string(target, bytes, length);
		return true;
	}
	copy = pg_any_to_server(pnstrdup(bytes, length), (int) length, PG_UTF8);
	set_string(target, copy, strlen(copy));
	return true;
}

/* A name that is no text gets ? for what is not ASCII. */
static void
set_name(JsonbValue *target, const char *name)
{
	char	   *copy;

	if (to_text(target, name, strlen(name)))
		return;
	copy = pstrdup(name);
	for (char *c = copy; *c != '\0'; c++)
	{
		if ((unsigned char) *c >= 0x80)
			*c = '?';
	}
	set_string(target, copy, strlen(copy));
}

/* {"base64": ...} */
static void
set_base64(JsonbValue *target, const char *bytes, Size length)
{
	JsonbPair  *pair = palloc0(sizeof(JsonbPair));
	int			size = pg_b64_enc_len((int) length);
	char	   *encoded = palloc(size);

	size = pg_b64_encode((const void *) bytes, (int) length, encoded, size);
	if (size < 0)
		elog(ERROR, "could not encode a header");
	set_string(&pair->key, "base64", strlen("base64"));
	set_string(&pair->value, encoded, size);
	target->type = jbvObject;
	target->val.object.nPairs = 1;
	target->val.object.pairs = pair;
}

static void
set_header_value(JsonbValue *target, const Header *header)
{
	if (header->value == NULL)
		target->type = jbvNull;
	else if (!to_text(target, header->value, header->length))
		set_base64(target, header->value, header->length);
}

/* As jsonb has its keys: by length first. */
static int
compare_names(const Header *a, const Header *b)
{
	int			length = a->name.val.string.len;

	if (length != b->name.val.string.len)
		return length < b->name.val.string.len ? -1 : 1;
	return memcmp(a->name.val.string.val, b->name.val.string.val, length);
}

static int
compare_headers(const void *a, const void *b)
{
	int			result = compare_names(a, b);

	return result != 0 ? result :
		((const Header *) a)->number - ((const Header *) b)->number;
}

/* Changes the order of headers. */
static Jsonb *
headers_to_jsonb(Header *headers, int count)
{
	JsonbValue	object;

	object.type = jbvObject;
	object.val.object.nPairs = 0;
	object.val.object.pairs = palloc(sizeof(JsonbPair) * count);
	qsort(headers, count, sizeof(Header), compare_headers);
	for (int i = 0, next; i < count; i = next)
	{
		JsonbPair  *pair = &object.val.object.pairs[object.val.object.nPairs++];

		for (next = i + 1; next < count; next++)
		{
			if (compare_names(&headers[i], &headers[next]) != 0)
				break;
		}
		pair->key = headers[i].name;
		if (next == i + 1)
		{
			set_header_value(&pair->value, &headers[i]);
			continue;
		}
		pair->value.type = jbvArray;
		pair->value.val.array.rawScalar = false;
		pair->value.val.array.nElems = next - i;
		pair->value.val.array.elems = palloc(sizeof(JsonbValue) * (next - i));
		for (int j = i; j < next; j++)
			set_header_value(&pair->value.val.array.elems[j - i], &headers[j]);
	}
	return JsonbValueToJsonb(&object);
}

/* Text of a UUID in its usual form: 36 characters. */
static bool
parse_uuid(const char *text, Size length, pg_uuid_t *uuid)
{
	int			digits = 0;

	if (text == NULL || length != 36)
		return false;
	for (int i = 0; i < 36; i++)
	{
		char		c = text[i];
		int			digit;

		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (c != '-')
				return false;
			continue;
		}
		if (c >= '0' && c <= '9')
			digit = c - '0';
		else if (c >= 'a' && c <= 'f')
			digit = c - 'a' + 10;
		else if (c >= 'A' && c <= 'F')
			digit = c - 'A' + 10;
		else
			return false;
		if (digits % 2 == 0)
			uuid->data[digits / 2] = (unsigned char) (digit << 4);
		else
			uuid->data[digits / 2] |= (unsigned char) digit;
		digits++;
	}
	return true;
}

void
inbox_message_build(const InboxPartition *partition, const KafkaItem *item,
					bool plain, InboxMessage *message)
{
	ExpandedRecordHeader *record =
	make_expanded_record_from_exprecord(pattern, CurrentMemoryContext);
	MemoryContext old = MemoryContextSwitchTo(record->hdr.eoh_context);
	Header		headers[MAX_HEADERS];
	int			count = 0;
	Datum	   *values;
	bool	   *nulls;
	const void *value;
	const char *name;
	size_t		length;
	JsonbValue	id;

	message->has_event_id = false;
	message->correlation_id = NULL;
	while (!plain && count < MAX_HEADERS &&
		   kafka_item_header(item, count, &name, &value, &length))
	{
		set_name(&headers[count].name, name);
		headers[count].number = count;
		headers[count].value = value;
		headers[count].length = length;
		if (!message->has_event_id &&
			(strcmp(name, "ce_id") == 0 || strcmp(name, "id") == 0))
			message->has_event_id = parse_uuid(value, length, &message->event_id);
		else if (message->correlation_id == NULL && value != NULL &&
				 strcmp(name, "correlation-id") == 0 && to_text(&id, value, length))
			message->correlation_id = pnstrdup(id.val.string.val, id.val.string.len);
		count++;
	}

	/* each value that is no number has a piece of the record's memory */
	deconstruct_expanded_record(record);
	record->flags |= ER_FLAG_DVALUES_ALLOCED;
	values = record->dvalues;
	nulls = record->dnulls;
	memset(nulls, false, sizeof(bool) * MESSAGE_COLUMNS);
	values[0] = CStringGetTextDatum(partition->topic);
	values[1] = Int32GetDatum(partition->number);
	values[2] = Int64GetDatum(item->offset);
	nulls[3] = (item->key == NULL);
	if (!nulls[3])
		values[3] = bytes_datum(item->key, item->key_length);
	nulls[4] = (item->value == NULL);
	if (!nulls[4])
		values[4] = bytes_datum(item->value, item->value_length);
	nulls[5] = (count == 0);
	if (!nulls[5])
		values[5] = JsonbPGetDatum(headers_to_jsonb(headers, count));
	nulls[6] = !unix_ms_is_timestamp(item->timestamp_ms);
	if (!nulls[6])
		values[6] = TimestampTzGetDatum(timestamp_from_unix_ms(item->timestamp_ms));
	nulls[7] = !message->has_event_id;
	if (!nulls[7])
		values[7] = UUIDPGetDatum(memcpy(palloc(sizeof(pg_uuid_t)), &message->event_id,
										 sizeof(pg_uuid_t)));
	nulls[8] = (message->correlation_id == NULL);
	if (!nulls[8])
		values[8] = CStringGetTextDatum(message->correlation_id);

	/*
	 * memory of thousands of messages is slower than that of one again and
	 * again
	 */
	if (count > 0)
		kafka_item_forget_headers(item);
	MemoryContextSwitchTo(old);
	message->datum = ExpandedRecordGetDatum(record);
}
