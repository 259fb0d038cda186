/*
 * relay_read.c
 *	  Reading messages and handing them to the producer.
 *
 * Reading is cut into chunks, each a short transaction with a snapshot of its
 * own; none is open while the relay waits for Kafka or sleeps. A chunk can end
 * anywhere, because a prefix by id of a batch keeps the order of causes.
 *
 * Rows go from the shared buffer straight into librdkafka, which copies them:
 * queuing never waits, so nothing is gained by a copy in between. What could
 * wait (asking the broker about a topic) is done between transactions.
 *
 * The main cursor and those of held lanes are read by the same code; they
 * differ in the window that they fill, in what they pass over, and in where
 * their batches come from.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "durability.h"
#include "guc.h"
#include "record.h"
#include "relay_discard.h"
#include "relay_held.h"
#include "relay_internal.h"
#include "relay_isolation.h"
#include "relay_limits.h"
#include "relay_parked.h"
#include "relay_standby.h"
#include "relay_transaction.h"

/* Rows of a chunk: events of the producer are served in between. */
#define CHUNK_ROWS 2000

/* An answer about partitions that is so old may be outdated. */
#define PARTITION_ANSWER_MS 1000

int
relay_in_flight(const Relay *relay)
{
	return window_in_flight(relay->window) + relay_held_in_flight(relay) +
		parked_in_flight(relay->parked);
}

static uint64
bytes_in_flight(const Relay *relay)
{
	return window_in_flight_bytes(relay->window) + relay_held_bytes(relay);
}

/*
 * Whether not one more message may be sent now. other_bytes: in flight in all
 * other windows, which do not change while one is filled.
 */
static bool
window_is_closed(const Relay *relay, const RelayHeld *held, uint64 other_bytes)
{
	Window	   *window = relay_window_of(relay, held);

	if (relay->exact)
		return window_in_flight(window) >= guc_max_in_flight ||
			(window_in_flight(window) > 0 &&
			 window_in_flight_bytes(window) + other_bytes >=
			 (uint64) guc_max_in_flight_size * 1024);
	if (held && window_in_flight(window) > 0 &&
		(!held->proven || (held->isolated && window_in_flight(window) >= held->limit)))
		return true;
	if (window_oldest(window) == NULL)
		return false;
	return window_is_full(window) ||
		window_in_flight_bytes(window) + other_bytes >=
		(uint64) guc_max_in_flight_size * 1024;
}

/* A chunk is worth its transaction when a quarter is free. */
bool
relay_has_room_for_bytes(const Relay *relay)
{
	return bytes_in_flight(relay) <= (uint64) guc_max_in_flight_size * 1024 / 4 * 3;
}

/*
 * Whether a new chunk is worth its transaction: with a full window, a quarter
 * of it has to become free first.
 */
bool
relay_has_room(const Relay *relay)
{
	return window_in_flight(relay->window) +
		(relay->exact ? 0 : window_acknowledged_out_of_order(relay->window)) <=
		guc_max_in_flight - Max(guc_max_in_flight / 4, 1) &&
		relay_has_room_for_bytes(relay);
}

/*
 * Whether the standby has what the last chunk stopped for. Asked without a
 * transaction, so that waiting costs next to nothing.
 */
static bool
has_standby(Relay *relay, RelayHeld *held)
{
	XLogRecPtr *awaited = held ? &held->standby_awaited : &relay->standby_awaited;
	TimestampTz now;
	TimestampTz again;

	if (XLogRecPtrIsInvalid(*awaited))
		return true;
	if (relay_standby_has(relay, *awaited))
	{
		*awaited = InvalidXLogRecPtr;
		return true;
	}
	now = GetCurrentTimestamp();
	again = TimestampTzPlusMilliseconds(now, relay_standby_pause(relay, *awaited, now));
	if (held)
		held->next_try_at = again;
	else
		relay->retry_at = again;
	return false;
}

/* Why a row could not be sent, for the administrator. */
static char *
describe(const CursorRow *row, const RelayTopic *topic, const char *reason)
{
	return psprintf("message " INT64_FORMAT " (event %s) to topic \"%s\": %s",
					row->id, record_event_id(row->slot), topic->name, reason);
}

/* A row that the cursor has done with, though it was not sent now. */
static void
pass(Relay *relay, RelayHeld *held, const CursorRow *row, RelayTopic *topic)
{
	Window	   *window = relay_window_of(relay, held);
	WindowEntry entry = {0};
	uint64		tag = window_next_tag(window);

	entry.id = row->id;
	entry.topic = topic;
	entry.partition = -1;
	window_sent(window, &entry);
	window_acknowledge(window, tag);
	if (held == NULL)
		relay->passed_count++;
}

/*
 * Put a row aside: refused by the broker (why), or behind another one of its
 * key (NULL). For the window it is delivered; that is stored in the same
 * transaction.
 */
static void
park_row(Relay *relay, RelayHeld *held, const CursorRow *row, RelayTopic *topic,
		 const char *why)
{
	parked_add(relay->parked, row, topic->name, why ? "refused" : "behind", why);
	relay->parked_some = true;
	pass(relay, held, row, topic);

	if (held && held->lane.waiting > 0)
		held->lane.waiting--;
	if (held && held->suspects > 0)
		held->suspects--;
	if (why != NULL)
	{
		relay_topic_failed(topic, why);
		ereport(WARNING,
				(errmsg("outbox_kafka parks %s", describe(row, topic, why)),
				 errdetail("Later messages of the same topic and key queue behind it. It is tried again from time to time."),
				 errhint("See outbox.parked; outbox.retry() and outbox.discard() decide.")));
	}
}

/*
 * Whether a row is for another cursor, or was delivered to this one before;
 * then it is done with.
 */
static bool
is_passed_over(Relay *relay, RelayHeld *held, const CursorRow *row, RelayTopic *topic)
{
	RelayHeld  *owner = topic->nheld > 0 ? relay_held_of(topic, row->slot) : NULL;

	if (held == NULL)
	{
		if (owner == NULL)
			return false;
		pass(relay, NULL, row, topic);
		owner->lane.waiting++;
		owner->changed = true;
		return true;
	}
	if (owner != held)
	{
		window_passed(held->window, row->id);
		return true;
	}
	if (held->narrived > 0 && relay_held_was_delivered(held, row->id))
	{
		pass(relay, held, row, topic);
		return true;
	}
	return false;
}

/*
 * Give a row up, as somebody asked for. False: not yet. A held lane has to have
 * come to it by then: what is on disk as discarded is behind its progress.
 */
static bool
discard_row(Relay *relay, RelayHeld *held, const CursorRow *row, RelayTopic *topic,
			DiscardRequest *request)
{
	if (held && window_oldest(held->window) != NULL)
		return false;
	discard_add(relay, request, row);
	pass(relay, held, row, topic);
	if (held == NULL)
		return true;
	if (held->lane.waiting > 0)
		held->lane.waiting--;
	if (held->suspects > 0)
		held->suspects--;
	if (row->id == held->park_id)
		held->park_id = 0;
	held->changed = true;
	return true;
}

/* The topic has to be asked for before more can be read. */
static bool
must_resolve(Relay *relay, RelayHeld *held, RelayTopic *topic)
{
	if (held)
		held->state = RELAY_HELD_WAITING;
	else
		relay->unresolved = topic;
	return false;
}

/*
 * Send one row. False: it was not sent, reading has to stop before it. What it
 * allocates lives until the next row: the index scan, which allocates when it
 * pleases, must not be called with that context.
 */
static bool
send_row_in_context(Relay *relay, RelayHeld *held, const CursorRow *row, TimestampTz now)
{
	RelayTopic *topic = record_topic(relay->topics, row->slot);
	DiscardRequest *request;
	KafkaProducer *producer = relay->producer;
	KafkaRecord record;
	WindowEntry entry;
	KafkaError	error;
	bool		may_send;

	if (is_passed_over(relay, held, row, topic))
		return true;
	request = held ? discard_request_for(relay, held, row) :
		discard_request_for_main(relay, topic, row);
	if (request)
		return discard_row(relay, held, row, topic, request);
	if (held)
	{
		if (held->state == RELAY_HELD_WAITING)
		{
			/* it was read for those alone, and the rest has to wait */
			held->discarding = false;
			return false;
		}
		topic = held->sends_as;
		if (held->isolated)
			producer = isolation_producer(relay, now);
	}
	if (producer == NULL || relay_topic_is_stale(topic, now))
		return must_resolve(relay, held, topic);
	if (held && row->id == held->park_id)
	{
		park_row(relay, held, row, topic, held->park_error);
		held->park_id = 0;
		return true;
	}
	if (!record_build(row->slot, topic, now, held && row->id == held->dated_now_id,
					  &record, &entry))
	{
		/* perhaps the topic has more partitions by now: ask once */
		if (topic->pinned_partitions == 0 &&
			TimestampDifferenceExceeds(topic->partitions_at, now, PARTITION_ANSWER_MS))
		{
			topic->partitions_at = 0;
			return must_resolve(relay, held, topic);
		}
		park_row(relay, held, row, topic,
				 psprintf("partition %d does not exist, the topic has %d",
						  record.partition, topic->partitions));
		return true;
	}
	if (parked_blocks(relay->parked, topic->name, record.key, record.key_length))
	{
		kafka_headers_free(record.headers);
		park_row(relay, held, row, topic, NULL);
		return true;
	}

	may_send = relay_topic_may_send(topic, &record, !relay->exact, now);
	if (!may_send || (relay->exact && !relay_transaction_begin(relay, held, now)))
	{
		kafka_headers_free(record.headers);
		if (held == NULL && may_send)
			relay->retry_at = TimestampTzPlusMilliseconds(now, 1);
		else if (held == NULL)
		{
			relay->unproven = topic;
			relay->unproven_partition = record.partition;
		}
		return false;
	}

	if (!durability_ensure(row->xid, held ? held->batch_end : relay->batch_end))
	{
		kafka_headers_free(record.headers);
		if (held)
			held->standby_awaited = held->batch_end;
		else
			relay->standby_awaited = relay->batch_end;
		return false;
	}

	entry.id = row->id;
	entry.topic = topic;
	record.tag = held ? relay_held_tag(held) : window_next_tag(relay->window);
	switch (kafka_produce(producer, &record, &error))
	{
		case KAFKA_ERROR_NONE:
			break;
		case KAFKA_ERROR_QUEUE_FULL:
			kafka_headers_free(record.headers);
			if (held == NULL)
				relay->retry_at = TimestampTzPlusMilliseconds(now, 5);
			return false;
		case KAFKA_ERROR_RECORD:
			kafka_headers_free(record.headers);
			park_row(relay, held, row, topic, error.message);
			return true;
		case KAFKA_ERROR_TOPIC:
			kafka_headers_free(record.headers);
			topic->partitions_at = 0;
			return must_resolve(relay, held, topic);
		case KAFKA_ERROR_CLIENT:
			/* its reports, served next, say why */
			kafka_headers_free(record.headers);
			if (relay->exact)
				relay_transaction_broke(relay, held, error.message);
			if (held == NULL)
				relay->retry_at = TimestampTzPlusMilliseconds(now, 1);
			return false;
		default:
			kafka_headers_free(record.headers);
			if (held)
				relay_held_failed(held, now);
			else
				relay_fail(relay, topic, describe(row, topic, error.message));
			return false;
	}
	window_sent(relay_window_of(relay, held), &entry);
	if (relay->exact)
		relay_transaction_sent(relay, held);
	relay_topic_sent(topic, record.partition, now);
	return true;
}

static bool
send_row(Relay *relay, RelayHeld *held, const CursorRow *row, TimestampTz now)
{
	MemoryContext old;
	bool		sent;

	MemoryContextReset(relay->row_context);
	old = MemoryContextSwitchTo(relay->row_context);
	sent = send_row_in_context(relay, held, row, now);
	MemoryContextSwitchTo(old);
	return sent;
}

/*
 * Take the bound of a new batch; what committed before is in it. NULL: not
 * now, the sequence is locked.
 */
static CursorBound *
open_batch(Relay *relay, const OutboxCatalog *catalog)
{
	CursorBound *bound;
	uint64		commits = pg_atomic_read_u64(&relay->slot->commits);

	pg_memory_barrier();
	relay_check_sequence(catalog);
	bound = cursor_bound_take(catalog, CURSOR_NO_WAIT, relay->context);
	if (bound == NULL)
		return NULL;
	relay->seen_commits = commits;
	relay->batch_end = durability_position();
	relay->quiet_next_xid = 0;
	if (bound->snapshot->nxip == 0 && bound->snapshot->xmax == bound->next_xid)
		relay->quiet_next_xid = bound->next_xid;
	window_begin_batch(relay->window, bound);
	discard_first_bound(relay, bound);
	return bound;
}

/* For a held lane: what the main cursor has opened a batch with. */
static CursorBound *
open_held_batch(Relay *relay, RelayHeld *held)
{
	CursorBound *bound = cursor_bound_share(window_newest_bound(relay->window));

	held->batch_end = relay->batch_end;
	window_begin_batch(held->window, bound);
	return bound;
}

/* Send up to a chunk. Needs a transaction and its snapshot, the newest. */
static ReadResult
send_chunk(Relay *relay, RelayHeld *held, const CursorTables *tables,
		   const CursorBound *batch, int64 position, int *rows)
{
	Window	   *window = relay_window_of(relay, held);
	uint64		other_bytes = bytes_in_flight(relay) - window_in_flight_bytes(window);
	TimestampTz now;
	CursorScan *scan;
	CursorRow	row;
	ReadResult	result = READ_MORE;

	/* after the snapshot: no message that it shows was created later */
	now = GetCurrentTimestamp();
	scan = cursor_scan_begin(tables, window_read_bound(window), batch,
							 position, GetActiveSnapshot());
	while (*rows < CHUNK_ROWS)
	{
		if (relay->exact && relay_transaction_is_full(relay, held, now))
		{
			relay_transaction_complete(relay, held);
			result = READ_BLOCKED;
			break;
		}
		if (window_is_closed(relay, held, other_bytes))
		{
			result = READ_BLOCKED;
			break;
		}
		if (!cursor_scan_next(scan, &row))
		{
			window_end_batch(window);
			if (relay->exact)
				relay_transaction_complete(relay, held);
			result = READ_ALL;
			break;
		}
		if (!send_row(relay, held, &row, now))
		{
			if (held == NULL && relay->unresolved)
				relay_look_ahead(relay, scan, CHUNK_ROWS);
			result = READ_BLOCKED;
			break;
		}
		(*rows)++;
		if (*rows % 256 == 0)
			CHECK_FOR_INTERRUPTS();
	}
	cursor_scan_end(scan);
	return result;
}

/*
 * Exactly once: define the batch before anything of it is sent, in the present
 * transaction. An empty one is done. *defined: it is, with the commit.
 */
static ReadResult
define_batch(Relay *relay, RelayHeld *held, const CursorTables *tables,
			 const CursorBound *batch, int64 position, bool *defined)
{
	Window	   *window = relay_window_of(relay, held);
	CursorScan *scan;
	CursorRow	row;
	bool		empty;

	scan = cursor_scan_begin(tables, window_read_bound(window), batch,
							 position, GetActiveSnapshot());
	empty = !cursor_scan_next(scan, &row);
	cursor_scan_end(scan);
	if (empty)
	{
		window_end_batch(window);
		return READ_ALL;
	}
	*defined = relay_transaction_define(relay, held);
	return *defined ? READ_MORE : READ_BLOCKED;
}

/*
 * Read a chunk of one cursor, in a transaction of its own. newest: the batch
 * was begun by this very call.
 */
static ReadResult
read_chunk(Relay *relay, RelayHeld *held, int *rows, bool *newest)
{
	Window	   *window = relay_window_of(relay, held);
	const OutboxCatalog *catalog;
	CursorTables tables;
	CursorBound *batch;
	int64		position;
	bool		stored = false;
	bool		discarded;
	bool		defined = false;
	bool		parked;
	ReadResult	result;

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog != NULL && (held ? held->discards : discard_is_asked(relay)))
		catalog = discard_lock(catalog) ? relay_catalog(relay) : NULL;

	batch = window_open_batch(window, &position);
	if (batch == NULL && catalog != NULL)
	{
		batch = held ? open_held_batch(relay, held) : open_batch(relay, catalog);
		position = 0;
		*newest = true;
	}
	if (catalog == NULL || batch == NULL ||
		!cursor_tables_open(&tables, catalog, CURSOR_NO_WAIT, -1))
	{
		relay_commit(relay);
		if (held == NULL)
			relay->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 20);
		return READ_BLOCKED;
	}
	if (held == NULL && relay_producer_expects_bulk(relay, batch, position))
	{
		cursor_tables_close(&tables);
		relay_commit(relay);
		return READ_MORE;
	}

	/* what the bound shows must be visible: a snapshot taken after it */
	PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());
	if (relay->exact && !relay_transaction_is_defined(relay, held))
		result = define_batch(relay, held, &tables, batch, position, &defined);
	else
		result = send_chunk(relay, held, &tables, batch, position, rows);
	cursor_tables_close(&tables);

	/*
	 * What was parked here counts as delivered; should that not be stored
	 * now, the message is parked again, which does nothing.
	 */
	discarded = discard_store(relay);
	if (relay->parked_some || discarded)
		stored = relay_progress_write(relay, relay_catalog(relay), relay->parked_some);
	relay_commit(relay);
	MemoryContextReset(relay->row_context);
	parked = relay->parked_some;
	relay->parked_some = false;
	if (defined)
		relay_transaction_defined(relay, held);
	if (parked && relay->exact)
		relay_transaction_parked_some(relay, held);
	if (stored)
		relay_progress_written(relay, GetCurrentTimestamp(), parked);
	if (relay->exact && held == NULL)
		relay_transaction_settle(relay);
	relay_transaction_flush(relay);
	return result;
}

ReadResult
relay_read_held(Relay *relay, RelayHeld *held)
{
	int			rows = 0;
	bool		newest = false;
	ReadResult	result;

	if (!has_standby(relay, held))
		return READ_BLOCKED;
	if (relay->exact && !relay_transaction_may_read(relay, held))
		return READ_BLOCKED;

	result = read_chunk(relay, held, &rows, &newest);

	/* a batch begun earlier may not be the newest any more */
	if (result == READ_ALL && !newest)
		result = READ_MORE;

	/* the standby may have the batch by now: else, when to ask again */
	(void) has_standby(relay, held);
	return result;
}

/*
 * Send up to a chunk of messages. The producer exists. READ_BLOCKED: the
 * window is full, a table is locked, a topic unknown, the commits are not on
 * the standby, or sending has failed; relay->retry_at says when to try again
 * if nothing else happens first.
 */
ReadResult
relay_read(Relay *relay)
{
	int			rows = 0;
	bool		newest = false;
	ReadResult	result;

	if (relay->unresolved && !relay_resolve(relay))
		return READ_BLOCKED;
	if (!has_standby(relay, NULL))
		return READ_BLOCKED;
	if (relay->exact && (!relay_transaction_may_read(relay, NULL) ||
						 !relay_transaction_prepare(relay, GetCurrentTimestamp())))
		return READ_BLOCKED;

	result = read_chunk(relay, NULL, &rows, &newest);

	/* a batch begun earlier says nothing of what came since */
	if (result == READ_ALL && !newest)
		result = READ_MORE;

	if (result == READ_ALL)
		relay->full_chunks = 0;
	else if (rows >= CHUNK_ROWS)
		relay->full_chunks++;

	/* a topic is resolved without a transaction open: come again for it */
	if (relay->unresolved && !relay->failed)
		result = READ_MORE;

	/* the standby may have the batch by now: else, when to ask again */
	(void) has_standby(relay, NULL);
	return result;
}
