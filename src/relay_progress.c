/*
 * relay_progress.c
 *	  Storing progress, and reporting to shared memory.
 *
 * Progress is the prefix of acknowledged messages. It is stored now and then
 * while messages flow and once when they stop, without waiting for the disk:
 * losing it only repeats messages. It is flushed when a crash would repeat
 * more than max_in_flight of them, by all cursors together. So at most
 *		max_in_flight (in flight) + max_in_flight (progress not flushed)
 * messages are sent again after a crash. Exactly once needs no such bound:
 * there Kafka knows the progress. Nothing is written while idle.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "storage/condition_variable.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "fault.h"
#include "guc.h"
#include "relay_held.h"
#include "relay_internal.h"
#include "relay_isolation.h"

/* Between two writes while messages flow; the same for reports. */
#define STORE_INTERVAL_MS 100
#define TOPICS_INTERVAL_MS 200

/* Remember which bounds are on disk: only others have to be written. */
static void
remember_bounds(Relay *relay, const Progress *progress)
{
	if (relay->stored_done)
		cursor_bound_release(relay->stored_done);
	if (relay->stored_batch)
		cursor_bound_release(relay->stored_batch);
	relay->stored_done = cursor_bound_share(progress->done);
	relay->stored_batch = progress->batch ?
		cursor_bound_share(progress->batch) : NULL;
}

/* All that counts as repeated after a crash, unless it is on disk. */
static uint64
delivered_by_all(const Relay *relay)
{
	return window_delivered(relay->window) + relay->held_delivered;
}

/* What is on disk when the relay starts is what the window starts with. */
void
relay_progress_start(Relay *relay)
{
	Progress	progress = window_progress(relay->window);

	remember_bounds(relay, &progress);
	relay->stored_delivered = window_delivered(relay->window);
	relay->flushed_delivered = delivered_by_all(relay);
}

/* The last asynchronous write may have reached the disk by now. */
static void
note_flushed(Relay *relay)
{
	if (relay->flushing_lsn != InvalidXLogRecPtr &&
		GetFlushRecPtr(NULL) >= relay->flushing_lsn)
	{
		relay->flushed_delivered = relay->flushing_delivered;
		relay->flushing_lsn = InvalidXLogRecPtr;
	}
}

bool
relay_progress_must_flush(Relay *relay)
{
	note_flushed(relay);
	return !relay->exact &&
		delivered_by_all(relay) - relay->flushed_delivered >= (uint64) guc_max_in_flight;
}

bool
relay_progress_is_due(Relay *relay, TimestampTz now, TimestampTz *due)
{
	uint64		delivered = window_delivered(relay->window);
	TimestampTz store_at;

	*due = 0;
	if (relay->held != NIL)
		*due = relay_held_progress_due(relay,
									   pg_atomic_read_u32(&relay->slot->waiters) > 0);
	if (*due != 0 && *due <= now)
		return true;
	if (relay_progress_must_flush(relay))
		return true;
	if (delivered == relay->stored_delivered && !relay->define)
		return false;

	/* at the end of the work, for somebody who waits, or to stay in bounds */
	if (window_oldest(relay->window) == NULL && relay->caught_up)
		return true;
	if (pg_atomic_read_u32(&relay->slot->waiters) > 0)
		return true;

	store_at = TimestampTzPlusMilliseconds(relay->stored_at, STORE_INTERVAL_MS);
	*due = *due == 0 ? store_at : Min(*due, store_at);
	return *due <= now;
}

bool
relay_progress_write(Relay *relay, const OutboxCatalog *catalog, bool flush)
{
	Progress	progress = window_progress(relay->window);
	ProgressResult result;

	result = progress_write(catalog, MAIN_CURSOR, &relay->place, &progress,
							progress.done != relay->stored_done ||
							progress.batch != relay->stored_batch || relay->define);
	relay->define = false;
	if (result == PROGRESS_MISSING)
		progress_raise_missing();
	if (flush)
		ForceSyncCommit();
	return result == PROGRESS_OK &&
		relay_held_progress_write(relay, relay_catalog(relay), GetCurrentTimestamp());
}

void
relay_progress_written(Relay *relay, TimestampTz now, bool flushed)
{
	Progress	progress = window_progress(relay->window);
	uint64		delivered = delivered_by_all(relay);

	relay->stored_at = now;
	relay->stored_delivered = window_delivered(relay->window);
	if (flushed)
	{
		relay->flushed_delivered = delivered;
		relay->flushing_lsn = InvalidXLogRecPtr;
	}
	else if (relay->flushing_lsn == InvalidXLogRecPtr)
	{
		relay->flushing_lsn = XactLastCommitEnd;
		relay->flushing_delivered = delivered;
	}
	remember_bounds(relay, &progress);
	FAULT_POINT("stored");
	ConditionVariableBroadcast(&relay->slot->progress_cv);
}

bool
relay_progress_store(Relay *relay, TimestampTz now)
{
	const OutboxCatalog *catalog;
	bool		stored = false;
	bool		flush;

	flush = relay_progress_must_flush(relay);

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog != NULL)
		stored = relay_progress_write(relay, catalog, flush);
	relay_commit(relay);

	if (stored)
		relay_progress_written(relay, now, flush);
	else
		relay->stored_at = now;
	return stored;
}

void
relay_report(Relay *relay, RelayState state, TimestampTz now)
{
	RelaySlot  *slot = relay->slot;
	uint64		published = delivered_by_all(relay) - relay->passed_count;
	const WindowEntry *oldest = window_oldest(relay->window);

	pg_atomic_write_u32(&slot->state, (uint32) state);
	pg_atomic_write_u64(&slot->in_flight, (uint64) window_in_flight(relay->window));
	pg_atomic_write_u64(&slot->in_flight_bytes, window_in_flight_bytes(relay->window));
	pg_atomic_write_u64(&slot->oldest_pending,
						oldest ? (uint64) oldest->created_at : (uint64) relay_held_since(relay));
	if (relay->repeated > 0)
	{
		pg_atomic_fetch_add_u64(&slot->repeated, (int64) relay->repeated);
		relay->repeated = 0;
	}
	pg_atomic_write_u64(&slot->held_waiting,
						relay->held != NIL ? relay_held_waiting(relay) : 0);
	if (window_highest_delivered(relay->window) > 0)
		pg_atomic_write_u64(&slot->last_id,
							(uint64) window_highest_delivered(relay->window));

	/* what was passed over counts as delivered only when its turn comes */
	if ((int64) (published - relay->reported_published) > 0)
	{
		pg_atomic_fetch_add_u64(&slot->published,
								(int64) (published - relay->reported_published));
		pg_atomic_write_u64(&slot->last_ack_at, (uint64) relay->last_ack_at);
		relay->reported_published = published;
	}
	if (TimestampDifferenceExceeds(relay->topics_reported_at, now, TOPICS_INTERVAL_MS) ||
		oldest == NULL)
	{
		relay->topics_reported_at = now;
		relay_topics_report(relay->topics);
		relay_topics_report(isolation_topics(relay));
	}
}
