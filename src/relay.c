/*
 * relay.c
 *	  The relay of a database: the main loop.
 *
 * One process a database. It reads committed messages, hands them to a
 * librdkafka producer, and stores how far the acknowledgements have come. It
 * is woken by the commit of a transaction that published (through shared
 * memory, see wakeup.h) and by the producer (through a descriptor); it polls
 * for nothing but a safety net once a minute.
 *
 * Sleeping is the delicate part. slot->sleeping tells publishers that a latch
 * is wanted; it is set before slot->commits is looked at a last time, so a
 * commit is either seen here or sets the latch.
 *
 * The producer's reports are not urgent either: unless the window is full, or
 * somebody waits for a confirmation, they are served when the relay is awake
 * anyway.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "due.h"
#include "guc.h"
#include "relay.h"
#include "relay_catchup.h"
#include "relay_discard.h"
#include "relay_internal.h"
#include "relay_isolation.h"
#include "relay_limits.h"
#include "relay_parked.h"
#include "relay_standby.h"
#include "relay_transaction.h"
#include "worker.h"

/* Look for messages this often even if nobody says that there are any. */
#define SAFETY_INTERVAL_MS 60000

/* At an orderly end, reports of what is in flight are waited for this long. */
#define SHUTDOWN_DRAIN_MS 1500

/* Reports may wait this long while the relay sleeps. */
#define REPORTS_INTERVAL_MS 20

/* How often the segments are looked at while messages flow. */
#define RING_INTERVAL_MS 1000

/* How often to look for lanes that do not answer. */
#define LANES_INTERVAL_MS 250

static RelayState
present_state(const Relay *relay)
{
	if (guc_bootstrap_servers[0] == '\0')
		return RELAY_UNCONFIGURED;
	if (relay->conflict)
		return RELAY_CONFLICT;
	if (relay->failures > 0)
		return RELAY_FAILED;
	if (relay->paused)
		return RELAY_PAUSED;
	if (relay->producer == NULL || !kafka_producer_is_connected(relay->producer) ||
		(relay->exact && !relay_transaction_is_open(relay, TRANSACTION_MAIN)))
		return RELAY_CONNECTING;
	if (relay_standby_is_late(relay))
		return RELAY_STANDBY;
	if (relay->caught_up && window_oldest(relay->window) == NULL)
		return RELAY_IDLE;
	return RELAY_RUNNING;
}

/* Serve reports until nothing is in flight, at most so long. */
static void
drain(Relay *relay, int timeout_ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);

	while (relay->producer != NULL &&
		   (relay->exact ? relay_transaction_is_ending(relay) : relay_in_flight(relay) > 0) &&
		   kafka_producer_is_connected(relay->producer))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now >= end)
			break;
		relay_wait(relay, true, Min(TimestampDifferenceMilliseconds(now, end), 50));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		relay_producer_serve(relay);
		isolation_serve(relay, now);
	}
}

static void
reload(Relay *relay)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);

	if (relay->producer == NULL || relay_producer_is_outdated(relay))
	{
		if (relay->producer != NULL)
			ereport(LOG,
					(errmsg("outbox_kafka makes a new producer, its settings may have changed")));
		drain(relay, SHUTDOWN_DRAIN_MS);
		relay_producer_close(relay);
		isolation_close(relay);
		relay_transactions_configure(relay);
	}
	/* whatever failed may go well with the new settings */
	relay->failures = 0;
	relay->failed = false;
	relay->retry_at = 0;
	relay_held_try_now(relay);
	limits_ask_for_all(relay);
	relay->ring_due = GetCurrentTimestamp();
	relay->backlog_at = 0;
}

/*
 * Without a connection something has to be sent all the same: librdkafka
 * connects when there is a need to, and brokers close idle connections.
 */
static bool
may_read(const Relay *relay, TimestampTz now)
{
	/* what has begun has to end, and soon */
	if (relay_transaction_has_begun(relay))
		return !relay->reset_needed && relay->producer != NULL && relay->retry_at == 0 &&
			relay->unproven == NULL &&
			relay_transaction_may_read(relay, NULL) && relay_has_room(relay);

	return !relay->paused && !relay->reset_needed &&
		relay->producer != NULL && !relay_producer_is_changing(relay) &&
		relay->retry_at == 0 && relay->unproven == NULL &&
		!catchup_merges(relay, now) &&
		(!relay->exact || relay_transaction_may_read(relay, NULL)) &&
		(kafka_producer_is_connected(relay->producer) ||
		 window_oldest(relay->window) == NULL) &&
		relay_has_room(relay);
}

static bool
may_send_parked(const Relay *relay)
{
	return !relay->paused && !relay->reset_needed &&
		relay->producer != NULL && !relay_producer_is_changing(relay) &&
		relay->retry_at == 0 &&
		kafka_producer_is_connected(relay->producer);
}

/* Whether it is known what became of parked messages that were sent. */
static bool
parked_is_final(const Relay *relay)
{
	return parked_is_finished(relay->parked) &&
		!(relay->exact && relay_transaction_is_parked(relay));
}

/* A connection that comes up makes it worth while to ask for a topic at once. */
static void
note_connection(Relay *relay)
{
	bool		connected = relay->producer != NULL &&
	kafka_producer_is_connected(relay->producer);

	if (connected && !relay->was_connected && relay->unresolved)
		relay->retry_at = 0;
	relay->was_connected = connected;
}

/*
 * The safety net is needed when somebody can have written since the last
 * bound. If no xid was given out, and none was running then, nobody has: an
 * idle server is left in peace.
 */
static void
check_safety_net(Relay *relay, TimestampTz now)
{
	if (relay->caught_up && relay->look_at <= now &&
		relay->quiet_next_xid != 0 &&
		U64FromFullTransactionId(ReadNextFullTransactionId()) == relay->quiet_next_xid)
		relay->look_at = TimestampTzPlusMilliseconds(now, SAFETY_INTERVAL_MS);
}

/* Something was committed since the last bound was taken, or might have been. */
static bool
has_news(const Relay *relay, TimestampTz now)
{
	return !relay->caught_up || relay->look_at <= now ||
		pg_atomic_read_u64(&relay->slot->commits) != relay->seen_commits;
}

/* Read what there is. Returns true when there is more to read at once. */
static bool
read_messages(Relay *relay, TimestampTz now)
{
	ReadResult	result;

	relay->read_at = now;
	result = relay_read(relay);
	relay->caught_up = (result == READ_ALL);
	if (relay->caught_up)
		relay->look_at = TimestampTzPlusMilliseconds(now, SAFETY_INTERVAL_MS);
	return result == READ_MORE;
}

/*
 * Wait until something happens or something is due. reading: nothing but the
 * absence of messages keeps the relay from reading.
 */
static void
sleep_until_needed(Relay *relay, TimestampTz now, TimestampTz progress_due,
				   bool reading)
{
	long		stats_due = pgstat_report_stat(false);
	long		timeout = stats_due > 0 ? stats_due : SAFETY_INTERVAL_MS;
	bool		in_flight = window_oldest(relay->window) != NULL;
	bool		reports = true;
	int			interval = relay_pace(relay);

	timeout = due_within(now, progress_due, timeout);
	timeout = due_within(now, relay->ring_due, timeout);
	timeout = due_within(now, relay->backlog_due, timeout);
	timeout = due_within(now, relay->retry_at, timeout);
	timeout = due_within(now, relay->side_due, timeout);
	timeout = due_within(now, catchup_due(relay, now), timeout);
	timeout = due_within(now, isolation_due(relay), timeout);
	timeout = due_within(now, discard_due(relay), timeout);
	timeout = due_within(now, relay_transaction_due(relay), timeout);
	timeout = due_within(now, limits_due(relay, now), timeout);
	if (may_send_parked(relay) && parked_in_flight(relay->parked) == 0)
		timeout = due_within(now, parked_due(relay->parked), timeout);
	if (relay->reset_needed)
		timeout = due_within(now, relay->reset_by, timeout);

	/* it was dropped just now, and there is no reason to wait */
	if (relay->producer == NULL && relay->retry_at == 0 && !relay->conflict &&
		guc_bootstrap_servers[0] != '\0')
		timeout = 0;

	if (reading && interval > 0)
	{
		timeout = Min(timeout, Max(interval - TimestampDifferenceMilliseconds(relay->read_at, now), 1));
		relay_wait(relay, false, timeout);
		return;
	}

	if (reading)
	{
		timeout = due_within(now, relay->look_at, timeout);
		if (in_flight &&
			parked_in_flight(relay->parked) == 0 &&
			pg_atomic_read_u32(&relay->slot->waiters) == 0)
		{
			reports = false;
			timeout = Min(timeout, REPORTS_INTERVAL_MS);
		}
		pg_atomic_write_u32(&relay->slot->worker.sleeping, 1);
		pg_memory_barrier();
		if (!has_news(relay, now))
			relay_wait(relay, reports, timeout);
		pg_atomic_write_u32(&relay->slot->worker.sleeping, 0);
		return;
	}
	relay_wait(relay, reports, timeout);
}

static void
run(Relay *relay)
{
	bool		more = false;

	for (;;)
	{
		TimestampTz now;
		TimestampTz progress_due;
		bool		reading;

		MemoryContextReset(relay->loop_context);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (worker_should_stop() || relay->superseded)
			break;
		if (ConfigReloadPending)
			reload(relay);
		relay_read_control(relay);

		now = GetCurrentTimestamp();
		relay_side_declare(relay, now);
		if (relay->retry_at != 0 && relay->retry_at <= now)
		{
			relay->retry_at = 0;
			relay->failed = false;
		}
		if (relay->retry_at == 0)
			relay_producer_open(relay);
		relay_producer_serve(relay);
		isolation_serve(relay, now);
		limits_work(relay, now);
		note_connection(relay);
		relay_pace_measure(relay, now);
		check_safety_net(relay, now);

		if (parked_is_final(relay))
			parked_finish(relay, now);
		if (may_send_parked(relay))
			parked_send(relay, now);

		if (relay->lanes_due <= now)
		{
			catchup_check_lanes(relay, now);
			relay->lanes_due = TimestampTzPlusMilliseconds(now, LANES_INTERVAL_MS);
		}

		/* before the window is filled again: see relay_progress.c */
		if (relay_progress_must_flush(relay))
			(void) relay_progress_store(relay, now);

		reading = may_read(relay, now) && !relay_progress_must_flush(relay);
		if (reading && has_news(relay, now) &&
			(more || relay_pace(relay) == 0 ||
			 TimestampDifferenceMilliseconds(relay->read_at, now) >= relay_pace(relay)))
			more = read_messages(relay, now);
		else
			more = false;
		if (catchup_work(relay, now))
			more = true;

		if (relay_progress_is_due(relay, now, &progress_due))
		{
			progress_due = 0;
			if (!relay_progress_store(relay, now))
				progress_due = TimestampTzPlusMilliseconds(now, 50);

			/* what was published may fill a segment */
			if (relay->ring_due == 0 ||
				relay->ring_due > TimestampTzPlusMilliseconds(now, RING_INTERVAL_MS))
				relay->ring_due = TimestampTzPlusMilliseconds(now, RING_INTERVAL_MS);
		}
		relay_backlog(relay, now);
		if (relay->ring_due != 0 && relay->ring_due <= now)
		{
			Progress	progress = window_progress(relay->window);

			relay->ring_due =
				segment_ring_maintain(relay->ring,
									  relay_held_oldest(relay, progress.done));
			pg_atomic_write_u32(&relay->slot->current_segment,
								(uint32) segment_ring_current(relay->ring));
			MemoryContextSwitchTo(relay->loop_context);
		}
		discard_work(relay, now);
		relay_report(relay, present_state(relay), now);

		if (!more)
			sleep_until_needed(relay, now, progress_due, may_read(relay, now));
	}
}

/*
 * Main function of the worker. An ERROR ends the process; the launcher starts
 * it again after a while, and it goes on from the progress on disk.
 */
void
outbox_kafka_relay_main(Datum main_arg)
{
	RelaySlot  *slot = relay_attach(main_arg);
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "outbox relay",
												  ALLOCSET_DEFAULT_SIZES);
	Relay	   *relay = MemoryContextAllocZero(context, sizeof(Relay));

	relay->slot = slot;
	relay->context = context;
	relay->loop_context = AllocSetContextCreate(context, "outbox relay loop",
												ALLOCSET_DEFAULT_SIZES);
	relay->row_context = AllocSetContextCreate(context, "outbox relay row",
											   ALLOCSET_DEFAULT_SIZES);
	relay->topics = relay_topics_create(true, context);
	relay->isolation = isolation_create(context);
	relay->limits = limits_create(context);
	relay->isolation_fd = -1;
	relay->parked = parked_create(context);
	relay->discard = discard_create(context);

	/* progress that is lost only repeats messages; see relay_progress.c */
	SetConfigOption("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION);

	relay_set_wait_events(relay);
	relay->ring_due = GetCurrentTimestamp();
	MemoryContextSwitchTo(relay->loop_context);
	relay_start(relay);
	pg_atomic_write_u32(&slot->current_segment,
						(uint32) segment_ring_current(relay->ring));

	pgstat_report_activity(STATE_IDLE, NULL);
	run(relay);

	/* an orderly end: wait a little for acknowledgements, keep what came */
	if (!relay->superseded)
		drain(relay, SHUTDOWN_DRAIN_MS);
	if (parked_is_final(relay))
		parked_finish(relay, GetCurrentTimestamp());
	if (!relay->superseded &&
		(window_delivered(relay->window) != relay->stored_delivered ||
		 relay_held_progress_due(relay, true) != 0))
		(void) relay_progress_store(relay, GetCurrentTimestamp());
	proc_exit(0);
}
