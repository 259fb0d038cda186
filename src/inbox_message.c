/*
 * inbox_message.c
 *	  From a Kafka message to the handler's argument, a value of type
 *	  inbox.message.
 *
 * Nothing that Kafka can hold makes this fail where the database's encoding is
 * UTF-8: key and payload are bytes, and bytes in a header that are no text stand
 * there in Base64. In another encoding a character that it lacks does; that is
 * then an error like one of the handler's.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "common/base64.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "catalog.h"
#include "inbox_internal.h"
#include "unix_time.h"

#define MESSAGE_COLUMNS 9

/* Headers of a message that become part of the row; more are left out. */
#define MAX_HEADERS 1000

typedef struct Header
{
	char	   *name;
	const char *value;			/* NULL: none */
	Size		length;
} Header;

/* in the context of the transaction that inbox_message_prepare() was called in */
static TupleDesc row_type = NULL;

void
inbox_message_prepare(Oid *type)
{
	*type = catalog_type(get_namespace_oid(INBOX_SCHEMA, false), "message");
	row_type = lookup_rowtype_tupdesc_copy(*type, -1);
	if (row_type->natts != MESSAGE_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("type \"inbox.message\" was altered")));
}

TupleDesc
inbox_message_type(void)
{
	return row_type;
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

/* Kafka's texts are UTF-8, by convention. NULL: these bytes are none. */
static char *
to_text(const char *bytes, Size length)
{
	char	   *copy;

	if (memchr(bytes, '\0', length) != NULL ||
		!pg_verify_mbstr(PG_UTF8, bytes, (int) length, true))
		return NULL;
	copy = pnstrdup(bytes, length);
	return pg_any_to_server(copy, (int) length, PG_UTF8);
}

static void
push_string(JsonbParseState * *state, JsonbIteratorToken token, const char *text)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) text;

	value.val.string.len = (int) strlen(text);
	(void) pushJsonbValue(state, token, &value);
}

static void
push_header_value(JsonbParseState * *state, JsonbIteratorToken token, const Header *header)
{
	char	   *text;

	if (header->value == NULL)
	{
		JsonbValue	null = {.type = jbvNull};

		(void) pushJsonbValue(state, token, &null);
		return;
	}
	text = to_text(header->value, header->length);

	if (text == NULL)
	{
		int			size = pg_b64_enc_len((int) header->length) + 1;

		text = palloc0(size);

		if (pg_b64_encode((const void *) header->value, (int) header->length, text, size - 1) < 0)
			elog(ERROR, "could not encode a header");
		(void) pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
		push_string(state, WJB_KEY, "base64");
		push_string(state, WJB_VALUE, text);
		(void) pushJsonbValue(state, WJB_END_OBJECT, NULL);
		return;
	}
	push_string(state, token, text);
}

/* A name that is no text gets ? for what is not ASCII. */
static char *
header_name(const char *name)
{
	char	   *text = to_text(name, strlen(name));

	if (text !=NULL)
		return text;
	text = pstrdup(name);

	for (char *c = text; *c != '\0'; c++)
	{
		if ((unsigned char) *c >= 0x80)
			*c = '?';
	}
	return text;
}

static Jsonb *
headers_to_jsonb(Header *headers, int count)
{
	JsonbParseState *state = NULL;
	JsonbValue *result;
	bool	   *done = palloc0(sizeof(bool) * count);

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < count; i++)
	{
		bool		repeated = false;

		if (done[i])
			continue;
		for (int j = i + 1; j < count && !repeated; j++)
			repeated = strcmp(headers[i].name, headers[j].name) == 0;

		push_string(&state, WJB_KEY, headers[i].name);
		if (!repeated)
		{
			push_header_value(&state, WJB_VALUE, &headers[i]);
			continue;
		}
		(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		for (int j = i; j < count; j++)
		{
			if (done[j] || strcmp(headers[i].name, headers[j].name) != 0)
				continue;
			push_header_value(&state, WJB_ELEM, &headers[j]);
			done[j] = true;
		}
		(void) pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	}
	result = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(result);
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
	Datum		values[MESSAGE_COLUMNS];
	bool		nulls[MESSAGE_COLUMNS] = {false};
	Header		headers[MAX_HEADERS];
	int			count = 0;
	const void *value;
	const char *name;
	size_t		length;

	message->has_event_id = false;
	message->correlation_id = NULL;
	while (!plain && count < MAX_HEADERS &&
		   kafka_item_header(item, count, &name, &value, &length))
	{
		headers[count].name = header_name(name);
		headers[count].value = value;
		headers[count].length = length;
		if (!message->has_event_id &&
			(strcmp(name, "ce_id") == 0 || strcmp(name, "id") == 0))
			message->has_event_id = parse_uuid(value, length, &message->event_id);
		else if (message->correlation_id == NULL && value != NULL &&
				 strcmp(name, "correlation-id") == 0)
			message->correlation_id = to_text(value, length);
		count++;
	}

	values[0] = CStringGetTextDatum(partition->topic);
	values[1] = Int32GetDatum(partition->number);
	values[2] = Int64GetDatum(item->offset);
	nulls[3] = (item->key == NULL);
	values[3] = nulls[3] ? (Datum) 0 : bytes_datum(item->key, item->key_length);
	nulls[4] = (item->value == NULL);
	values[4] = nulls[4] ? (Datum) 0 : bytes_datum(item->value, item->value_length);
	nulls[5] = (count == 0);
	values[5] = nulls[5] ? (Datum) 0 : JsonbPGetDatum(headers_to_jsonb(headers, count));
	nulls[6] = !unix_ms_is_timestamp(item->timestamp_ms);
	values[6] = nulls[6] ? (Datum) 0 :
		TimestampTzGetDatum(timestamp_from_unix_ms(item->timestamp_ms));
	nulls[7] = !message->has_event_id;
	values[7] = UUIDPGetDatum(&message->event_id);
	nulls[8] = (message->correlation_id == NULL);
	values[8] = nulls[8] ? (Datum) 0 : CStringGetTextDatum(message->correlation_id);

	message->datum = HeapTupleGetDatum(heap_form_tuple(row_type, values, nulls));
}
