/*
 * decider.c
 *	  The decider: a worker that decides what nobody has answered in time, and
 *	  calls the functions that were named for what was decided.
 *
 * It sleeps until the next deadline, or the next call of a function that has
 * failed before, without a transaction; what it has to know is one row of
 * minima. At commit it is woken by whoever expects or answers something. Only
 * while there are messages whose deadline counts from an acknowledgement that
 * has not come does the relay wake it, when it has stored progress.
 *
 * All that it knows is in the table, so it can be killed anywhere. It locks no
 * row that somebody else has locked: that is an answer about to be committed,
 * or rolled back, of which nothing would tell it; so it comes again soon while
 * such a row is due.
 *
 * Functions are called one at a time, so one that takes long delays the others
 * and what expires meanwhile, by outbox_kafka.handler_timeout at most.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decider.h"
#include "due.h"
#include "guc.h"
#include "outbox_kafka.h"
#include "side_worker.h"

/* Between two looks at the table, and at what is acknowledged, in ms. */
#define LOOK_INTERVAL_MS 10
#define ACKNOWLEDGE_INTERVAL_MS 100

/* Something that is due is locked, or the table is. */
#define LOCKED_INTERVAL_MS 200

/* What is to be removed is removed in few strokes, in ms. */
#define REMOVE_INTERVAL_MIN_MS 1000
#define REMOVE_INTERVAL_MAX_MS 60000

/* So long at most without a look; nothing should ever come of it. */
#define SAFETY_INTERVAL_MS 300000

PGDLLEXPORT void outbox_kafka_decider_main(Datum main_arg);

typedef struct Decider
{
	SideSlot   *slot;
	MemoryContext context;		/* reset each time round */
	DeciderDue	due;
	bool		acknowledged;	/* looked at this time round */
	TimestampTz acknowledge_at; /* not before */
	TimestampTz remove_at;		/* not before */
} Decider;

static bool
is_due(TimestampTz at, TimestampTz now)
{
	return at != 0 && at <= now;
}

static void
count_decided(Decider *decider, uint64 n)
{
	if (n == 0)
		return;
	pg_atomic_fetch_add_u64(&decider->slot->handled, (int64) n);
	pg_atomic_write_u64(&decider->slot->last_activity_at, (uint64) GetCurrentTimestamp());
}

static void
acknowledge(Decider *decider)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz end;

	(void) decider_acknowledge();
	decider->acknowledged = true;
	end = GetCurrentTimestamp();

	/* with very many that wait, no more than half of the time */
	decider->acknowledge_at =
		TimestampTzPlusMilliseconds(end, Max(ACKNOWLEDGE_INTERVAL_MS,
											 TimestampDifferenceMilliseconds(start, end)));
}

static int64
remove_interval(void)
{
	int64		tenth = (int64) guc_confirmation_retention * 100;

	return Max(REMOVE_INTERVAL_MIN_MS, Min(tenth, REMOVE_INTERVAL_MAX_MS));
}

/*
 * Do what is due. When to come again at the latest is returned; seen is the
 * generation that had been read before. 0: no time is known.
 */
static TimestampTz
work(Decider *decider, uint32 seen)
{
	DeciderDue *due = &decider->due;
	TimestampTz now;
	bool		full;
	bool		locked = false;

	if (!decider_due(due))
		return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_INTERVAL_MS);
	if (!due->any)
		side_worker_leave(seen);

	now = GetCurrentTimestamp();
	if (due->unacknowledged && decider->acknowledge_at <= now)
	{
		acknowledge(decider);
		if (!decider_due(due))
			return TimestampTzPlusMilliseconds(now, LOCKED_INTERVAL_MS);
	}
	if (is_due(due->expire_at, now))
	{
		uint64		n = decider_expire(&full);

		count_decided(decider, n);
		if (n > 0)
			return now;
		locked = true;
	}
	if (is_due(due->call_at, now))
	{
		if (decider_call(decider->slot))
		{
			count_decided(decider, 1);
			return now;
		}
		locked = true;
	}
	if (is_due(due->remove_at, now) && decider->remove_at <= now)
	{
		(void) decider_remove(&full);
		if (full)
			return now;
		decider->remove_at = TimestampTzPlusMilliseconds(now, remove_interval());
		return now;
	}
	if (locked)
		return TimestampTzPlusMilliseconds(now, LOCKED_INTERVAL_MS);
	if (due->remove_at != 0)
		due->remove_at = Max(due->remove_at, decider->remove_at);
	return due_sooner(due_sooner(due->expire_at, due->call_at), due->remove_at);
}

/*
 * Whether the relay has to tell of progress. Said before looking at what is
 * acknowledged, so that progress is either seen then or told of.
 */
static void
want_progress(Decider *decider, bool wanted)
{
	pg_atomic_write_u32(&decider->slot->progress_wanted, wanted ? 1 : 0);
	pg_memory_barrier();
}

/* Sleep without being woken: others may commit as often as they like. */
static void
pause_briefly(long timeout_ms, uint32 wait_event)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout_ms, wait_event);
}

void
outbox_kafka_decider_main(Datum main_arg)
{
	Decider    *decider;
	WaitEventSet *set;
	uint32		wait_event;

	decider = MemoryContextAllocZero(TopMemoryContext, sizeof(Decider));
	decider->slot = side_worker_attach(main_arg);
	decider->context = AllocSetContextCreate(TopMemoryContext, "outbox decider",
											 ALLOCSET_DEFAULT_SIZES);
	wait_event = compat_wait_event("OutboxDeciderMain");
	set = compat_create_wait_event_set(2);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);

	for (;;)
	{
		uint32		seen;
		TimestampTz next;
		TimestampTz now;
		long		timeout = SAFETY_INTERVAL_MS;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (worker_should_stop())
			proc_exit(0);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		MemoryContextReset(decider->context);
		MemoryContextSwitchTo(decider->context);

		seen = pg_atomic_read_u32(&decider->slot->worker.control_generation);
		want_progress(decider, true);
		decider->acknowledged = false;
		next = work(decider, seen);
		now = GetCurrentTimestamp();

		/* what woke us may have been progress: too early, so look later */
		if (decider->due.unacknowledged && !decider->acknowledged)
			next = due_sooner(next, decider->acknowledge_at);
		else if (!decider->due.unacknowledged)
			want_progress(decider, false);

		if (next != 0)
			timeout = Min(TimestampDifferenceMilliseconds(now, next), SAFETY_INTERVAL_MS);
		if (timeout <= 0)
			continue;

		pgstat_report_stat(true);
		pause_briefly(Min(timeout, LOOK_INTERVAL_MS), wait_event);
		if (timeout > LOOK_INTERVAL_MS)
			side_worker_sleep(decider->slot, seen, set, timeout - LOOK_INTERVAL_MS, wait_event);
	}
}
