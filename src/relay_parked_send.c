/*
 * relay_parked_send.c
 *	  Parked messages that are tried again, by the second producer.
 *
 * Those of a restore were put here by somebody's transaction, which need not
 * be on disk: all WAL is flushed before they are sent. With wait_for_standby
 * they are chosen first, then the standby is waited for without a transaction,
 * then they are sent, and no others.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "durability.h"
#include "guc.h"
#include "message.h"
#include "record.h"
#include "relay_isolation.h"
#include "relay_limits.h"
#include "relay_parked_internal.h"
#include "relay_standby.h"
#include "relay_transaction.h"

/* Until a topic is asked for again. */
#define PARKED_TOPIC_RETRY_MS 5000

/* Until a producer is asked for again when there is none. */
#define PARKED_PRODUCER_RETRY_MS 50

/* A slot of outbox.message's shape with what was selected of a parked one. */
static void
fill_slot(TupleTableSlot *slot, HeapTuple tuple, TupleDesc desc)
{
	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, sizeof(bool) * Natts_outbox_message);
	for (int i = 0; i < (int) PARKED_COLUMNS; i++)
		slot->tts_values[parked_columns[i] - 1] =
			SPI_getbinval(tuple, desc, i + 1, &slot->tts_isnull[parked_columns[i] - 1]);
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
	if (!relay_topic_may_send(topic, &record, !relay->exact, now) ||
		(relay->exact && !relay_transaction_begin_parked(relay, now)))
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
			if (relay->exact)
				relay_transaction_sent_parked(relay, flight->id);
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
	bool		define = false;

	if (parked->nflight > 0 || parked->due == 0 || parked->due > now)
		return;
	if (relay->exact && !relay_transaction_is_parked(relay))
	{
		/* those that were chosen are not any more; others may have gone */
		parked->nchosen = 0;
		if (isolation_producer(relay, now) == NULL || !relay_transaction_may_choose(relay))
		{
			parked->due = TimestampTzPlusMilliseconds(now, PARKED_PRODUCER_RETRY_MS);
			return;
		}
	}
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

		if (!limits_resolve(relay, relay->parked_unresolved, producer, now, &error))
		{
			relay_topic_failed(relay->parked_unresolved, error.message);
			parked->due = TimestampTzPlusMilliseconds(now, PARKED_TOPIC_RETRY_MS);
			relay->parked_unresolved = NULL;
			return;
		}
		relay->parked_unresolved = NULL;
	}

	choose = (guc_wait_for_standby || relay->exact) && parked->nchosen == 0;
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
		values[2] = parked_ids(parked->chosen, parked->nchosen);
	else
		nulls[2] = 'n';
	parked->nchosen = 0;

	SPI_connect();
	parked_execute("SELECT p.id, p.event_id, p.topic, p.key, p.payload, p.headers,"
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
		parked_load_due(parked);
	SPI_finish();
	ExecDropSingleTupleTableSlot(slot);
	table_close(leaf, NoLock);
	if (relay->exact && choose && parked->nchosen > 0)
		define = relay_transaction_define_parked(relay, parked->chosen, parked->nchosen);
	relay_commit(relay);
	if (relay->exact && choose)
	{
		if (define)
			relay_transaction_defined_parked(relay);
		else
			parked->nchosen = 0;
	}
	else if (relay->exact)
		relay_transaction_complete_parked(relay);

	/* those due may all have to wait for an earlier one */
	if (parked->nflight == 0 && parked->nchosen == 0 && parked->due != 0 && parked->due <= now &&
		relay->parked_unresolved == NULL)
		parked->due = TimestampTzPlusMilliseconds(now, PARKED_TOPIC_RETRY_MS);
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
		parked_execute("DELETE FROM outbox.parked_message WHERE id = $1",
					   1, types, values, NULL, false, SPI_OK_DELETE);

		/* given up while it was on its way: Kafka has it */
		if (SPI_processed == 0)
		{
			catalog_lock_now("discarded_message", RowExclusiveLock);
			parked_execute("DELETE FROM outbox.discarded_message WHERE id = $1",
						   1, types, values, NULL, false, SPI_OK_DELETE);
		}
		return;
	}

	values[1] = CStringGetTextDatum(flight->code == 0 ?
									"the topic has no such partition" :
									kafka_error_text(flight->code));
	values[2] = Float8GetDatum(PARKED_RETRY_MIN_S);
	values[3] = Float8GetDatum(PARKED_RETRY_MAX_S);
	parked_execute("UPDATE outbox.parked_message SET attempts = attempts + 1,"
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
		if (kafka_error_is_size(flight->code))
			limits_doubt(relay, flight->topic->name);
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
