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
 * hundred are sent together (relay_parked_send.c); if one of them is refused,
 * they are tried one by one, so that only the refused one stays. When the last
 * one of a key is gone, the key's new messages take the ordinary way again; both
 * happen in the one process that sends, so no message can slip in between.
 *
 * Which keys are blocked is remembered as a set of 64-bit hashes: two keys
 * that collide are both put aside, which costs time, not order.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "message.h"
#include "record.h"
#include "relay_parked_internal.h"

/* What of a message is kept, in the order of the statements below. */
const int	parked_columns[PARKED_COLUMNS] = {
	Anum_outbox_message_id, Anum_outbox_message_event_id,
	Anum_outbox_message_topic, Anum_outbox_message_key,
	Anum_outbox_message_payload, Anum_outbox_message_headers,
	Anum_outbox_message_partition, Anum_outbox_message_correlation_id,
	Anum_outbox_message_created_at
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

void
parked_execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
			   bool read_only, int expected)
{
	catalog_lock_now("parked_message", read_only ? AccessShareLock : RowExclusiveLock);
	if (SPI_execute_with_args(sql, nargs, types, values, nulls, read_only, 0) != expected)
		elog(ERROR, "unexpected result of a statement on outbox.parked_message");
}

/* When the next one is due, from the table. Inside SPI. */
void
parked_load_due(ParkedMessages *parked)
{
	bool		isnull;
	Datum		value;

	parked_execute("SELECT min(next_try_at) FROM outbox.parked_message",
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
	parked_execute("UPDATE outbox.parked_message AS b SET next_try_at = now()"
				   " WHERE b.reason = 'behind' AND b.next_try_at IS NULL"
				   " AND NOT EXISTS (SELECT FROM outbox.parked_message AS e"
				   "  WHERE e.topic = b.topic AND md5(e.key) = md5(b.key) AND e.id < b.id)",
				   0, NULL, NULL, NULL, false, SPI_OK_UPDATE);

	/* not read only: it must see what this transaction did */
	parked_execute("SELECT DISTINCT topic, key FROM outbox.parked_message WHERE key IS NOT NULL",
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
	parked_load_due(parked);
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
	for (; n < (int) PARKED_COLUMNS; n++)
	{
		values[n] = slot_getattr(row->slot, parked_columns[n], &isnull);
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
	parked_execute("INSERT INTO outbox.parked_message (id, event_id, topic, key, payload,"
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

void
parked_forget_delivered(ParkedMessages *parked)
{
	for (int i = 0; i < parked->nflight; i++)
		if (parked->flight[i].class == KAFKA_ERROR_NONE)
			parked->flight[i].class = KAFKA_ERROR_PURGED;
}

bool
parked_are_delivered(const ParkedMessages *parked)
{
	if (parked->nreported < parked->nflight)
		return false;
	for (int i = 0; i < parked->nflight; i++)
		if (parked->flight[i].class != KAFKA_ERROR_NONE)
			return false;
	return true;
}

Datum
parked_ids(const int64 *ids, int count)
{
	Datum	   *values = palloc(sizeof(Datum) * count);

	for (int i = 0; i < count; i++)
		values[i] = Int64GetDatum(ids[i]);
	return PointerGetDatum(construct_array(values, count, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

void
parked_delete(ParkedMessages *parked, const int64 *ids, int count, int64 upto)
{
	Oid			types[] = {INT8ARRAYOID, INT8OID};
	Datum		values[lengthof(types)];

	values[0] = parked_ids(ids, count);
	values[1] = Int64GetDatum(upto);
	SPI_connect();
	parked_execute("DELETE FROM outbox.parked_message WHERE id = ANY ($1) AND id <= $2",
				   lengthof(types), types, values, NULL, false, SPI_OK_DELETE);
	SPI_finish();
	parked_load(parked);
}
