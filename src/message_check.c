/*
 * message_check.c
 *	  What a message has to be before it is stored.
 *
 * outbox.publish() and the row trigger of outbox.message share these checks:
 * whatever can be known without asking Kafka is found here, in the
 * transaction of who made the mistake.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "guc.h"
#include "message.h"
#include "message_check.h"
#include "outbox_kafka.h"

/* Lengths of a header's name and value are varints of at most 5 bytes. */
#define HEADER_OVERHEAD 10

/*
 * What a batch of the present format has before its records, and a record
 * beside the varints of its lengths: attributes, and the deltas of time and
 * offset, which take a byte each in the first one.
 */
#define BATCH_OVERHEAD 61
#define RECORD_OVERHEAD 3

/* Bytes of a header's name that an error shows */
#define HEADER_NAME_SHOWN 255

/* Headers whose value is the relay's to say. */
static const char *const reserved_headers[] = {"ce_id", "ce_specversion"};

void
message_check_writable(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
}

void
message_check_columns(TupleDesc desc)
{
	if (desc->natts != Natts_outbox_message)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("outbox.message has %d columns instead of %d",
						desc->natts, Natts_outbox_message),
				 errhint("Its columns must stay as the extension made them.")));
}

char *
message_to_utf8(char *text, int length, int *utf8_length)
{
	char	   *utf8;

	if (GetDatabaseEncoding() == PG_UTF8)
	{
		*utf8_length = length;
		return text;
	}

	utf8 = pg_server_to_any(text, length, PG_UTF8);
	*utf8_length = utf8 == text ? length : (int) strlen(utf8);

	return utf8;
}

/*
 * The length of text as UTF-8. An error if it cannot be converted.
 */
static int
utf8_length(const char *text, int length)
{
	char	   *utf8;
	int			result;

	utf8 = message_to_utf8(unconstify(char *, text), length, &result);
	if (utf8 != text)
		pfree(utf8);

	return result;
}

void
message_check_topic(const char *topic, int length)
{
	if (topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("topic must not be NULL")));

	if (length == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("topic must not be empty")));

	if (length > OUTBOX_TOPIC_MAX_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("topic name is too long"),
				 errdetail("It has %d bytes, Kafka allows %d.",
						   length, OUTBOX_TOPIC_MAX_LENGTH)));

	if (topic[0] == '.' && (length == 1 || (length == 2 && topic[1] == '.')))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid topic name \"%.*s\"", length, topic),
				 errdetail("Kafka does not allow \".\" and \"..\".")));

	for (int i = 0; i < length; i++)
	{
		char		c = topic[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			  (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-'))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid topic name \"%.*s\"", length, topic),
					 errdetail("Kafka allows the letters a to z and A to Z, digits, \".\", \"_\" and \"-\".")));
	}
}

static void
check_header_name(const char *name, int length)
{
	if (length == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must not have an empty name")));

	for (int i = 0; i < (int) lengthof(reserved_headers); i++)
	{
		if (length == (int) strlen(reserved_headers[i]) &&
			memcmp(name, reserved_headers[i], length) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_RESERVED_NAME),
					 errmsg("header \"%s\" is reserved", reserved_headers[i]),
					 errdetail("It is written from the message's event id and format.")));
	}
}

static void
refuse_header_value(const JsonbValue *name)
{
	int			shown = pg_mbcliplen(name->val.string.val, name->val.string.len,
									 HEADER_NAME_SHOWN);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("value of header \"%.*s\" must be a string, null, or an array of those",
					shown, name->val.string.val)));
}

/*
 * Bytes of a length as a varint (zigzag, seven bits a byte).
 */
static Size
length_bytes(Size length)
{
	Size		result = 1;

	for (length <<= 1; length > 0x7F; length >>= 7)
		result++;
	return result;
}

Size
message_check_headers(Jsonb *headers, Size *least)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	JsonbValue	name = {0};
	Size		name_bytes = 0;
	Size		bytes = 0;
	bool		in_array = false;
	int			count = 0;

	*least = 0;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object"),
				 errdetail("It maps each name to a string, null, or an array of those.")));

	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		switch (token)
		{
			case WJB_KEY:
				name = value;
				check_header_name(name.val.string.val, name.val.string.len);
				name_bytes = utf8_length(name.val.string.val, name.val.string.len);
				break;

			case WJB_BEGIN_ARRAY:
				if (in_array)
					refuse_header_value(&name);
				in_array = true;
				break;

			case WJB_END_ARRAY:
				in_array = false;
				break;

			case WJB_VALUE:
			case WJB_ELEM:
				if (value.type == jbvString)
				{
					int			value_bytes = utf8_length(value.val.string.val,
														  value.val.string.len);

					bytes += value_bytes;
					*least += length_bytes(value_bytes) + value_bytes;
				}
				else if (value.type == jbvNull)
					*least += 1;
				else
					refuse_header_value(&name);
				bytes += name_bytes + HEADER_OVERHEAD;
				*least += length_bytes(name_bytes) + name_bytes;
				count++;
				break;

			case WJB_BEGIN_OBJECT:
				/* the outermost one comes before any name */
				if (name.type == jbvString)
					refuse_header_value(&name);
				break;

			default:
				break;
		}
	}

	*least += length_bytes(count);
	return bytes;
}

/*
 * The length of the source that the relay writes into ce_source.
 */
static Size
source_length(void)
{
	if (guc_source[0] != '\0')
		return strlen(guc_source);

	return strlen("/postgresql/") + NAMEDATALEN;
}

Size
message_check(const MessageFields *fields)
{
	Size		bytes;
	Size		least;
	Size		headers_least = 1;	/* none: their number */

	message_check_topic(fields->topic, fields->topic_length);

	if (!fields->has_payload && !fields->has_key)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("a message without payload must have a key"),
				 errdetail("A NULL payload is a tombstone: it deletes the key's earlier messages from a compacted topic.")));

	if (fields->has_partition && fields->partition < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partition must not be negative"),
				 errhint("NULL lets the key decide.")));

	bytes = RELAY_HEADERS_ALLOWANCE + fields->topic_length + source_length();
	if (fields->has_key)
		bytes += fields->key_length;
	if (fields->has_payload)
		bytes += fields->payload_length;

	if (fields->correlation_id != NULL)
	{
		int			length = utf8_length(fields->correlation_id,
										 fields->correlation_id_length);

		if (length > CORRELATION_ID_MAX_LENGTH)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("correlation_id is too long"),
					 errdetail("It has %d bytes, at most %d are allowed.",
							   length, CORRELATION_ID_MAX_LENGTH)));
		bytes += length;
	}

	if (fields->headers != NULL)
		bytes += message_check_headers(fields->headers, &headers_least);

	if (bytes > (Size) guc_max_message_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message is too large"),
				 errdetail("The record would have up to %zu bytes, %s is %d.",
						   bytes, "outbox_kafka.max_message_bytes",
						   guc_max_message_bytes),
				 errhint("Kafka's limits are max.message.bytes of the topic and message.max.bytes of the broker.")));

	least = RECORD_OVERHEAD + headers_least;
	least += fields->has_key ? length_bytes(fields->key_length) + fields->key_length : 1;
	least += fields->has_payload ? length_bytes(fields->payload_length) + fields->payload_length : 1;
	return BATCH_OVERHEAD + length_bytes(least) + least;
}
