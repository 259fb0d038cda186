/*
 * record.c
 *	  From a row of outbox.message to a Kafka record.
 *
 * Headers are what costs most in librdkafka, so what is the same for each
 * message of a topic is made once, and nothing is added that a record says
 * already: its timestamp is when the message was created (ce_time is added only
 * where it is not).
 *
 * With outbox_kafka.headers = cloudevents (the binary content mode of the
 * CloudEvents Kafka protocol binding) a record has the four required
 * attributes; a publisher may give its own ce_source and ce_type. There is no
 * sequence header: ids are unique but not monotonic within a topic, and a
 * reader that dropped "older" ones would lose messages.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "guc.h"
#include "lane.h"
#include "message.h"
#include "message_check.h"
#include "record.h"
#include "unix_time.h"

#define UUID_TEXT_LENGTH 36

/* Which of the relay's own headers a publisher gave itself. */
typedef struct GivenHeaders
{
	bool		source;
	bool		type;
	bool		time;
	bool		correlation_id;
} GivenHeaders;

static void
uuid_text(const pg_uuid_t *uuid, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = digits[uuid->data[i] >> 4];
		*out++ = digits[uuid->data[i] & 0x0F];
	}
}

static const char *
source_name(void)
{
	static char *name = NULL;

	if (guc_source[0] != '\0')
		return guc_source;
	if (name == NULL)
		name = MemoryContextStrdup(TopMemoryContext,
								   psprintf("/postgresql/%s",
											get_database_name(MyDatabaseId)));
	return name;
}

static void
add_header(KafkaHeaders *headers, const char *name, const char *value, int length)
{
	kafka_headers_add(headers, name, (int) strlen(name), value, length);
}

static const char *
id_header_name(void)
{
	return guc_headers == HEADERS_CLOUDEVENTS ? "ce_id" : "id";
}

/* What every record of the topic has, in the present style. */
static KafkaHeaders *
constant_headers(const RelayTopic *topic, const GivenHeaders *given)
{
	KafkaHeaders *headers = kafka_headers_new(8);

	if (guc_headers == HEADERS_CLOUDEVENTS)
	{
		const char *source = source_name();

		add_header(headers, "ce_specversion", "1.0", 3);
		if (!given->source)
			add_header(headers, "ce_source", source, (int) strlen(source));
		if (!given->type)
			add_header(headers, "ce_type", topic->name, (int) strlen(topic->name));
	}
	return headers;
}

static void
add_json_value(KafkaHeaders *headers, const char *name, int name_length,
			   const JsonbValue *value)
{
	char	   *utf8;
	int			length;

	if (value->type != jbvString)
	{
		kafka_headers_add(headers, name, name_length, NULL, 0);
		return;
	}
	utf8 = message_to_utf8(value->val.string.val, value->val.string.len, &length);
	kafka_headers_add(headers, name, name_length, utf8, length);
}

/* The publisher's own headers; the check at publishing left these forms only. */
static void
add_given_headers(KafkaHeaders *headers, Jsonb *given)
{
	JsonbIterator *it = JsonbIteratorInit(&given->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;
	int			name_length = 0;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = message_to_utf8(value.val.string.val, value.val.string.len,
								   &name_length);
		else if (token == WJB_VALUE || token == WJB_ELEM)
			add_json_value(headers, name, name_length, &value);
	}
}

static bool
has_header(Jsonb *headers, const char *name)
{
	JsonbValue	key = {.type = jbvString};

	key.val.string.val = unconstify(char *, name);
	key.val.string.len = (int) strlen(name);
	return findJsonbValueFromContainer(&headers->root, JB_FOBJECT, &key) != NULL;
}

static void
add_time(KafkaHeaders *headers, TimestampTz created_at)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char		buffer[64];
	int			length;

	/* without a time zone asked for, the parts are those of UTC */
	if (timestamp2tm(created_at, NULL, &tm, &fsec, NULL, NULL) != 0)
		return;
	length = snprintf(buffer, sizeof(buffer), "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ",
					  tm.tm_year, tm.tm_mon, tm.tm_mday,
					  tm.tm_hour, tm.tm_min, tm.tm_sec, (int) fsec);
	add_header(headers, "ce_time", buffer, length);
}

/* Values of a slot whose attributes have been fetched. */
static inline Datum
value_of(TupleTableSlot *slot, int attribute)
{
	return slot->tts_values[attribute - 1];
}

static inline bool
is_null(TupleTableSlot *slot, int attribute)
{
	return slot->tts_isnull[attribute - 1];
}

/* The headers of a message that has none of its own, and no more to say. */
static KafkaHeaders *
recurring_headers(RelayTopic *topic, const char *id)
{
	GivenHeaders given = {0};

	if (topic->headers == NULL)
		topic->headers = constant_headers(topic, &given);
	return kafka_headers_recurring(topic->handle, topic->headers, id_header_name(),
								   id, UUID_TEXT_LENGTH);
}

static KafkaHeaders *
build_headers(TupleTableSlot *slot, RelayTopic *topic, bool timestamp_is_created,
			  bool *recurring)
{
	KafkaHeaders *headers;
	GivenHeaders given = {0};
	Jsonb	   *own = NULL;
	char		id[UUID_TEXT_LENGTH];
	bool		adds_time = !timestamp_is_created && guc_headers == HEADERS_CLOUDEVENTS;

	if (guc_headers != HEADERS_NONE)
		uuid_text(DatumGetUUIDP(value_of(slot, Anum_outbox_message_event_id)), id);

	*recurring = guc_headers != HEADERS_NONE && !adds_time &&
		is_null(slot, Anum_outbox_message_headers) &&
		is_null(slot, Anum_outbox_message_correlation_id);
	if (*recurring)
		return recurring_headers(topic, id);

	if (!is_null(slot, Anum_outbox_message_headers))
	{
		own = DatumGetJsonbP(value_of(slot, Anum_outbox_message_headers));
		given.source = has_header(own, "ce_source");
		given.type = has_header(own, "ce_type");
		given.time = has_header(own, "ce_time");
		given.correlation_id = has_header(own, "correlation-id");
	}
	headers = constant_headers(topic, &given);
	if (own != NULL)
		add_given_headers(headers, own);
	if (guc_headers != HEADERS_NONE)
		add_header(headers, id_header_name(), id, UUID_TEXT_LENGTH);
	if (adds_time && !given.time)
		add_time(headers, DatumGetTimestampTz(value_of(slot, Anum_outbox_message_created_at)));

	if (!is_null(slot, Anum_outbox_message_correlation_id) && !given.correlation_id)
	{
		text	   *value = DatumGetTextPP(value_of(slot, Anum_outbox_message_correlation_id));
		int			length;
		char	   *utf8 = message_to_utf8(VARDATA_ANY(value),
										   VARSIZE_ANY_EXHDR(value), &length);

		add_header(headers, "correlation-id", utf8, length);
	}
	return headers;
}

RelayTopic *
record_topic(RelayTopics *topics, TupleTableSlot *slot)
{
	text	   *name;

	slot_getallattrs(slot);
	name = DatumGetTextPP(value_of(slot, Anum_outbox_message_topic));
	return relay_topic(topics, VARDATA_ANY(name), (int) VARSIZE_ANY_EXHDR(name));
}

bool
record_build(TupleTableSlot *slot, RelayTopic *topic, TimestampTz now,
			 bool dated_now, KafkaRecord *record, WindowEntry *entry)
{
	TimestampTz created_at;
	int64		created_ms;
	int64		now_ms = unix_ms(now);

	memset(record, 0, sizeof(*record));
	memset(entry, 0, sizeof(*entry));
	slot_getallattrs(slot);
	record->topic = topic->handle;

	if (!is_null(slot, Anum_outbox_message_key))
	{
		bytea	   *key = DatumGetByteaPP(value_of(slot, Anum_outbox_message_key));

		record->key = VARDATA_ANY(key);
		record->key_length = VARSIZE_ANY_EXHDR(key);
	}
	if (!is_null(slot, Anum_outbox_message_payload))
	{
		bytea	   *payload = DatumGetByteaPP(value_of(slot, Anum_outbox_message_payload));

		record->value = VARDATA_ANY(payload);
		record->value_length = VARSIZE_ANY_EXHDR(payload);
	}

	record->partition = lane_of_message(slot, topic->partitions);
	if (record->partition >= topic->partitions)
		return false;

	/* brokers refuse times ahead of theirs, with the whole batch */
	created_at = DatumGetTimestampTz(value_of(slot, Anum_outbox_message_created_at));
	created_ms = unix_ms(created_at);
	record->timestamp_ms = now_ms;
	if (guc_record_timestamp == RECORD_TIMESTAMP_CREATED && !dated_now)
		record->timestamp_ms = Min(created_ms, now_ms);

	record->headers = build_headers(slot, topic, record->timestamp_ms == created_ms,
									&record->recurring);

	entry->created_at = created_at;
	entry->bytes = (uint32) (record->key_length + record->value_length);
	entry->partition = record->partition;
	return true;
}

char *
record_event_id(TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, Anum_outbox_message_event_id, &isnull);
	char	   *text = palloc0(UUID_TEXT_LENGTH + 1);

	uuid_text(DatumGetUUIDP(value), text);
	return text;
}
