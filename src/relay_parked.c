/*
 * relay_parked.c
 *	  Messages set aside: outbox.parked_message, as the relay uses it.
 *
 * A message that the broker refuses when it is sent alone is put aside, with
 * the broker's words, so that what follows can go on. Later messages of the
 * same topic and key are put aside behind it, in order: a reader never sees a
 * key's later event before its earlier one. Without a key nothing queues
 * behind. The copy is made in the transaction that counts the original as
 * delivered.
 *
 * What is due is sent in the order of ids: after a pause that doubles each
 * time, or at once when somebody called outbox.retry() or outbox.adopt(). A
 * message is due only when no earlier one of its key has to wait. Up to a
 * hundred are sent together; if one of them is refused, they are tried one by
 * one, so that only the refused one stays. When the last one of a key is gone,
 * the key's new messages take the ordinary way again; both happen in the one
 * process that sends, so no message can slip in between.
 *
 * Those of a restore were put here by somebody's transaction, which need not
 * be on disk: all WAL is flushed before they are sent. With wait_for_standby
 * they are chosen first, then the standby is waited for without a transaction,
 * then they are sent, and no others.
 *
 * Which keys are blocked is remembered as a set of 64-bit hashes: two keys
 * that collide are both put aside, which costs time, not order.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "durability.h"
#include "guc.h"
#include "message.h"
#include "record.h"
#include "relay_isolation.h"
#include "relay_parked.h"
#include "relay_standby.h"

/* Sent together, while none of them is known to be refused. */
#define PARKED_BATCH 100

/* Between automatic tries of a refused message: doubled each time. */
#define PARKED_RETRY_MIN_S 60
#define PARKED_RETRY_MAX_S 3600

/* How long the broker may take to tell of a topic; until it is asked again. */
#define PARKED_TOPIC_MS 250
#define PARKED_TOPIC_RETRY_MS 5000

/* Until a producer is asked for again when there is none. */
#define PARKED_PRODUCER_RETRY_MS 50

/* What of a message is kept, in the order of the statements below. */
static const int columns[] = {
	Anum_outbox_message_id, Anum_outbox_message_event_id,
	Anum_outbox_message_topic, Anum_outbox_message_key,
	Anum_outbox_message_payload, Anum_outbox_message_headers,
	Anum_outbox_message_partition, Anum_outbox_message_correlation_id,
	Anum_outbox_message_created_at
};

/* One that is in the producer's hands. */
typedef struct ParkedFlight
{
	int64		id;
	RelayTopic *topic;
	int			partition;
	uint32		bytes;
	bool		reported;
	KafkaErrorClass class;
	int			code;
} ParkedFlight;

struct ParkedMessages
{
	MemoryContext context;
	HTAB	   *blocked;		/* hashes of (topic, key) */
	TimestampTz due;			/* of the next try, 0: none */
	ParkedFlight flight[PARKED_BATCH];
	int			nflight;
	int			nreported;
	int			one_by_one;		/* so many more are sent alone */
	int64		chosen[PARKED_BATCH];	/* to send when the standby has them */
	int			nchosen;
	XLogRecPtr	chosen_end;		/* covers their commits */
	uint64		round;			/* in the tags, so that old reports count for
								 * nothing */
};

static uint64
hash_of(const char *topic, const void *key, size_t key_length)
{
	uint64		hash = hash_any_extended((const unsigned char *) topic,
										 (int) strlen(topic), 0);

	return hash_any_extended((const unsigned char *) key, (int) key_length, hash);
}

static void
make_set(ParkedMessages *parked)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(uint64);
	ctl.hcxt = parked->context;
	parked->blocked = hash_create("outbox parked keys", 64, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

ParkedMessages *
parked_create(MemoryContext context)
{
	ParkedMessages *parked = MemoryContextAllocZero(context, sizeof(ParkedMessages));

	parked->context = context;
	make_set(parked);
	return parked;
}

static void
execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
		bool read_only, int expected)
{
	if (SPI_execute_with_args(sql, nargs, types, values, nulls, read_only, 0) != expected)
		elog(ERROR, "unexpected result of a statement on outbox.parked_message");
}

/* When the next one is due, from the table. Inside SPI. */
static void
load_due(ParkedMessages *parked)
{
	bool		isnull;
	Datum		value;

	execute("SELECT min(next_try_at) FROM outbox.parked_message",
			0, NULL, NULL, NULL, false, SPI_OK_SELECT);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	parked->due = isnull ? 0 : DatumGetTimestampTz(value);
}

void
parked_load(ParkedMessages *parked)
{
	hash_destroy(parked->blocked);
	make_set(parked);

	SPI_connect();

	/* one that was behind another and is the first now is due */
	execute("UPDATE outbox.parked_message AS b SET next_try_at = now()"
			" WHERE b.reason = 'behind' AND b.next_try_at IS NULL"
			" AND NOT EXISTS (SELECT FROM outbox.parked_message AS e"
			"  WHERE e.topic = b.topic AND md5(e.key) = md5(b.key) AND e.id < b.id)",
			0, NULL, NULL, NULL, false, SPI_OK_UPDATE);

	/* not read only: it must see what this transaction did */
	execute("SELECT DISTINCT topic, key FROM outbox.parked_message WHERE key IS NOT NULL",
			0, NULL, NULL, NULL, false, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		bool		isnull;
		char	   *topic = TextDatumGetCString(SPI_getbinval(tuple, SPI_tuptable->tupdesc,
															  1, &isnull));
		bytea	   *key = DatumGetByteaPP(SPI_getbinval(tuple, SPI_tuptable->tupdesc,
														2, &isnull));
		uint64		hash = hash_of(topic, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));

		(void) hash_search(parked->blocked, &hash, HASH_ENTER, NULL);
	}
	load_due(parked);
	SPI_finish();
}

bool
parked_blocks(const ParkedMessages *parked, const char *topic, const void *key,
			  size_t key_length)
{
	uint64		hash;

	if (key == NULL || hash_get_num_entries(parked->blocked) == 0)
		return false;
	hash = hash_of(topic, key, key_length);
	return hash_search(parked->blocked, &hash, HASH_FIND, NULL) != NULL;
}

void
parked_add(ParkedMessages *parked, const CursorRow *row, const char *topic,
		   const char *reason, const char *error)
{
	Oid			types[] = {
		INT8OID, UUIDOID, TEXTOID, BYTEAOID, BYTEAOID, JSONBOID, INT4OID,
		TEXTOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID
	};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	TimestampTz now = GetCurrentTimestamp();
	bool		refused = (error != NULL);
	int			n = 0;
	bool		isnull;

	memset(nulls, ' ', sizeof(nulls));
	for (; n < (int) lengthof(columns); n++)
	{
		values[n] = slot_getattr(row->slot, columns[n], &isnull);
		if (isnull)
			nulls[n] = 'n';
	}
	values[n++] = CStringGetTextDatum(reason);
	if (!refused)
		nulls[n] = 'n';
	values[n++] = refused ? CStringGetTextDatum(error) : (Datum) 0;
	values[n++] = TimestampTzGetDatum(now);
	if (!refused)
		nulls[n] = 'n';
	values[n++] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(now,
																  PARKED_RETRY_MIN_S * 1000));

	/* it may be there: parked, and the progress then lost in a crash */
	SPI_connect();
	execute("INSERT INTO outbox.parked_message (id, event_id, topic, key, payload,"
			" headers, partition, correlation_id, created_at, reason, error,"
			" parked_at, attempts, next_try_at)"
			" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
			" CASE WHEN $11 IS NULL THEN 0 ELSE 1 END, $13)"
			" ON CONFLICT (id) DO NOTHING",
			lengthof(types), types, values, nulls, false, SPI_OK_INSERT);
	SPI_finish();

	if (nulls[3] != 'n')
	{
		bytea	   *key = DatumGetByteaPP(values[3]);
		uint64		hash = hash_of(topic, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));

		(void) hash_search(parked->blocked, &hash, HASH_ENTER, NULL);
	}
	if (refused)
	{
		TimestampTz next = DatumGetTimestampTz(values[n - 1]);

		if (parked->due == 0 || parked->due > next)
			parked->due = next;
	}
}

void
parked_add_restored(ParkedMessages *parked, const CursorRow *row)
{
	bool		isnull;
	char	   *topic = TextDatumGetCString(slot_getattr(row->slot,
														 Anum_outbox_message_topic,
														 &isnull));

	parked_add(parked, row, topic, "restored", NULL);
	pfree(topic);
}

TimestampTz
parked_due(const ParkedMessages *parked)
{
	return parked->due;
}

int
parked_in_flight(const ParkedMessages *parked)
{
	return parked->nflight - parked->nreported;
}

bool
parked_is_finished(const ParkedMessages *parked)
{
	return parked->nflight > 0 && parked->nreported == parked->nflight;
}

/* A slot of outbox.message's shape with what was selected of a parked one. */
static void
fill_slot(TupleTableSlot *slot, HeapTuple tuple, TupleDesc desc)
{
	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, sizeof(bool) * Natts_outbox_message);
	for (int i = 0; i < (int) lengthof(columns); i++)
		slot->tts_values[columns[i] - 1] =
			SPI_getbinval(tuple, desc, i + 1, &slot->tts_isnull[columns[i] - 1]);
	ExecStoreVirtualTuple(slot);
}

/* What keeps one from being sent at all: its outcome is known at once. */
static void
fail_at_once(ParkedMessages *parked, ParkedFlight *flight, KafkaErrorClass class,
			 int code)
{
	flight->reported = true;
	flight->class = class;
	flight->code = code;
	parked->nreported++;
}

/* Hand one to the producer. False: not now, nor those after it. */
static bool
send_one(Relay *relay, KafkaProducer *producer, TupleTableSlot *slot, TimestampTz now)
{
	ParkedMessages *parked = relay->parked;
	ParkedFlight *flight = &parked->flight[parked->nflight];
	RelayTopic *topic = record_topic(isolation_topics(relay), slot);
	KafkaRecord record;
	WindowEntry entry;
	KafkaError	error;
	bool		isnull;

	if (relay_topic_is_stale(topic, now))
	{
		/* between transactions, and without any wait for the others */
		relay->parked_unresolved = topic;
		return false;
	}

	memset(flight, 0, sizeof(*flight));
	flight->id = DatumGetInt64(slot_getattr(slot, Anum_outbox_message_id, &isnull));
	flight->topic = topic;
	if (!record_build(slot, topic, now, false, &record, &entry))
	{
		parked->nflight++;
		fail_at_once(parked, flight, KAFKA_ERROR_RECORD, 0);
		return true;
	}
	if (!relay_topic_may_send(topic, record.partition, now))
	{
		kafka_headers_free(record.headers);
		return false;
	}
	flight->partition = record.partition;
	flight->bytes = entry.bytes;
	record.tag = PARKED_TAG | (parked->round << 8) | (uint64) parked->nflight;

	switch (kafka_produce(producer, &record, &error))
	{
		case KAFKA_ERROR_NONE:
			relay_topic_sent(topic, record.partition, now);
			parked->nflight++;
			return true;
		case KAFKA_ERROR_RECORD:
		case KAFKA_ERROR_TOPIC:
			kafka_headers_free(record.headers);
			parked->nflight++;
			fail_at_once(parked, flight, error.class, error.code);
			return true;
		default:
			kafka_headers_free(record.headers);
			return false;
	}
}

static Datum
chosen_ids(const ParkedMessages *parked)
{
	Datum		ids[PARKED_BATCH];

	for (int i = 0; i < parked->nchosen; i++)
		ids[i] = Int64GetDatum(parked->chosen[i]);
	return PointerGetDatum(construct_array(ids, parked->nchosen, INT8OID,
										   sizeof(int64), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/*
 * Send what is due. One is left out while an earlier one of its key waits.
 */
void
parked_send(Relay *relay, TimestampTz now)
{
	ParkedMessages *parked = relay->parked;
	const OutboxCatalog *catalog;
	Oid			types[3] = {TIMESTAMPTZOID, INT4OID, INT8ARRAYOID};
	Datum		values[3];
	char		nulls[] = {' ', ' ', ' ', '\0'};
	TupleTableSlot *slot;
	Relation	leaf;
	KafkaProducer *producer;
	bool		choose;

	if (parked->nflight > 0 || parked->due == 0 || parked->due > now)
		return;
	if (parked->nchosen > 0 && !relay_standby_has(relay, parked->chosen_end))
	{
		parked->due = TimestampTzPlusMilliseconds(now,
												  relay_standby_pause(relay, parked->chosen_end, now));
		return;
	}
	producer = isolation_producer(relay, now);
	if (producer == NULL)
	{
		parked->due = TimestampTzPlusMilliseconds(now, PARKED_PRODUCER_RETRY_MS);
		return;
	}

	if (relay->parked_unresolved)
	{
		KafkaError	error;

		if (!relay_topic_resolve(relay->parked_unresolved, producer,
								 PARKED_TOPIC_MS, now, &error))
		{
			relay_topic_failed(relay->parked_unresolved, error.message);
			parked->due = TimestampTzPlusMilliseconds(now, PARKED_TOPIC_RETRY_MS);
			relay->parked_unresolved = NULL;
			return;
		}
		relay->parked_unresolved = NULL;
	}

	choose = guc_wait_for_standby && parked->nchosen == 0;
	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog == NULL)
	{
		relay_commit(relay);
		return;
	}
	leaf = try_table_open(catalog->leaf[0], AccessShareLock);
	if (leaf == NULL)
	{
		relay_commit(relay);
		return;
	}
	slot = MakeSingleTupleTableSlot(RelationGetDescr(leaf), &TTSOpsVirtual);

	parked->round++;
	parked->nreported = 0;
	values[0] = TimestampTzGetDatum(now);
	values[1] = Int32GetDatum(parked->one_by_one > 0 ? 1 : PARKED_BATCH);
	values[2] = (Datum) 0;
	if (parked->nchosen > 0)
		values[2] = chosen_ids(parked);
	else
		nulls[2] = 'n';
	parked->nchosen = 0;

	SPI_connect();
	execute("SELECT p.id, p.event_id, p.topic, p.key, p.payload, p.headers,"
			" p.partition, p.correlation_id, p.created_at"
			" FROM outbox.parked_message AS p"
			" WHERE p.next_try_at <= $1"
			" AND (p.key IS NULL OR NOT EXISTS (SELECT FROM outbox.parked_message AS e"
			"  WHERE e.topic = p.topic"
			"  AND md5(e.key) = md5(p.key)"
			"  AND e.id < p.id"
			"  AND (e.next_try_at IS NULL OR e.next_try_at > $1)))"
			" AND ($3 IS NULL OR p.id = ANY ($3))"
			" ORDER BY p.id LIMIT $2",
			3, types, values, nulls, true, SPI_OK_SELECT);

	parked->chosen_end = durability_position();
	XLogFlush(parked->chosen_end);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		if (choose)
		{
			bool		isnull;

			parked->chosen[parked->nchosen++] =
				DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
											SPI_tuptable->tupdesc, 1, &isnull));
			continue;
		}
		fill_slot(slot, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		if (!send_one(relay, producer, slot, now))
			break;
	}
	if (SPI_processed == 0)
		load_due(parked);
	SPI_finish();
	ExecDropSingleTupleTableSlot(slot);
	table_close(leaf, NoLock);
	relay_commit(relay);

	/* those due may all have to wait for an earlier one */
	if (parked->nflight == 0 && parked->nchosen == 0 && parked->due != 0 && parked->due <= now &&
		relay->parked_unresolved == NULL)
		parked->due = TimestampTzPlusMilliseconds(now, PARKED_TOPIC_RETRY_MS);
}

void
parked_delivered(ParkedMessages *parked, uint64 tag, const KafkaDelivery *delivery)
{
	int			index = (int) (tag & 0xFF);
	uint64		round = (tag & ~PARKED_TAG) >> 8;
	ParkedFlight *flight = &parked->flight[index];

	if (round != parked->round || index >= parked->nflight || flight->reported)
		return;
	flight->reported = true;
	flight->class = delivery->class;
	flight->code = delivery->code;
	parked->nreported++;
}

/* Store what became of one. Inside SPI. */
static void
store_outcome(const ParkedFlight *flight)
{
	Oid			types[4] = {INT8OID, TEXTOID, FLOAT8OID, FLOAT8OID};
	Datum		values[4];

	values[0] = Int64GetDatum(flight->id);
	if (flight->class == KAFKA_ERROR_NONE)
	{
		execute("DELETE FROM outbox.parked_message WHERE id = $1",
				1, types, values, NULL, false, SPI_OK_DELETE);
		return;
	}

	values[1] = CStringGetTextDatum(flight->code == 0 ?
									"the topic has no such partition" :
									kafka_error_text(flight->code));
	values[2] = Float8GetDatum(PARKED_RETRY_MIN_S);
	values[3] = Float8GetDatum(PARKED_RETRY_MAX_S);
	execute("UPDATE outbox.parked_message SET attempts = attempts + 1,"
			" reason = 'refused', error = $2,"
			" next_try_at = clock_timestamp() +"
			"  make_interval(secs => least($4, $3 * power(2, least(attempts, 10))))"
			" WHERE id = $1",
			4, types, values, NULL, false, SPI_OK_UPDATE);
}

void
parked_finish(Relay *relay, TimestampTz now)
{
	ParkedMessages *parked = relay->parked;
	int			refused = 0;

	for (int i = 0; i < parked->nflight; i++)
	{
		ParkedFlight *flight = &parked->flight[i];

		if (flight->class == KAFKA_ERROR_RECORD || flight->class == KAFKA_ERROR_TOPIC)
			refused++;
		else if (flight->class == KAFKA_ERROR_NONE && flight->topic->lanes)
			relay_topic_acknowledged(flight->topic, flight->partition, flight->bytes, now);
	}

	relay_begin(relay);
	if (relay_catalog(relay) != NULL)
	{
		SPI_connect();
		for (int i = 0; i < parked->nflight; i++)
		{
			const ParkedFlight *flight = &parked->flight[i];

			if (flight->class == KAFKA_ERROR_NONE ||
				((flight->class == KAFKA_ERROR_RECORD ||
				  flight->class == KAFKA_ERROR_TOPIC) && parked->nflight == 1))
				store_outcome(flight);
		}
		SPI_finish();
		parked_load(parked);
	}
	relay_commit(relay);

	/* any of a batch can be the one that is refused */
	if (refused > 0 && parked->nflight > 1)
		parked->one_by_one = parked->nflight;
	else if (parked->one_by_one > 0)
		parked->one_by_one--;
	parked->nflight = 0;
	parked->nreported = 0;
}

void
parked_forget_producer(ParkedMessages *parked)
{
	for (int i = 0; i < parked->nflight; i++)
		if (!parked->flight[i].reported)
		{
			parked->flight[i].class = KAFKA_ERROR_PURGED;
			parked->flight[i].reported = true;
			parked->nreported++;
		}
}
