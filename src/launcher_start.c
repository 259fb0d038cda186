/*
 * launcher_start.c
 *	  Starting workers of any kind, and seeing what becomes of them.
 *
 * A slot's life is in launcher.c; what is here is the same for relays and side
 * workers: registering a background worker, the handle that tells whether it
 * still can attach, and what to do when max_worker_processes are taken.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "due.h"
#include "launcher_start.h"
#include "outbox_kafka.h"
#include "shmem.h"

/* A start that takes longer than this does not hold up the next one. */
#define START_PATIENCE_MS 5000

/* A registered worker without handle that has not attached by then is gone. */
#define ADOPTED_START_MS 30000

/* Without a free background worker slot: doubled each time between these. */
#define NO_WORKER_MIN_MS 1000
#define NO_WORKER_MAX_MS 5000

/* One per worker, same number. */
typedef struct SlotHandle
{
	BackgroundWorkerHandle *handle; /* of the worker, until it is reaped */
	TimestampTz deadline;		/* without handle: it must have attached */
	TimestampTz patience_until; /* the next start waits for it until then */
} SlotHandle;

static SlotHandle *handles = NULL;
static int	unreaped = 0;		/* workers that have left their slots */

/* No background worker slot is free: the message is out, try again later. */
static bool out_of_workers = false;
static TimestampTz workers_retry_at = 0;
static int	workers_retry_ms = NO_WORKER_MIN_MS;

void
launcher_start_init(void)
{
	handles = MemoryContextAllocZero(TopMemoryContext,
									 shmem_worker_count() * sizeof(SlotHandle));
}

/* What the server calls the worker, and where it begins. */
static void
describe(const WorkerSlot *slot, const char *database, BackgroundWorker *worker)
{
	const char *kind = NULL;

	switch (slot->kind)
	{
		case WORKER_RELAY:
			kind = "relay";
			break;
		case WORKER_DECIDER:
			kind = "decider";
			break;
		case WORKER_INBOX:
			kind = "inbox";
			break;
	}
	if (slot->kind == WORKER_INBOX)
		snprintf(worker->bgw_name, BGW_MAXLEN, "outbox_kafka %s %s %d/%d",
				 kind, database, slot->subscription, slot->number);
	else
		snprintf(worker->bgw_name, BGW_MAXLEN, "outbox_kafka %s %s", kind, database);
	snprintf(worker->bgw_type, BGW_MAXLEN, "outbox_kafka %s", kind);
	snprintf(worker->bgw_function_name, BGW_MAXLEN, "outbox_kafka_%s_main", kind);
}

/* One line when it begins, however long it lasts; then with growing pauses. */
static void
note_out_of_workers(const WorkerSlot *slot, const char *database, TimestampTz now)
{
	if (!out_of_workers)
	{
		workers_retry_ms = NO_WORKER_MIN_MS;
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 slot->kind == WORKER_RELAY ?
				 errmsg("out of background worker slots: cannot start a relay in database \"%s\"",
						database) :
				 slot->kind == WORKER_INBOX ?
				 errmsg("out of background worker slots: cannot start an inbox worker in database \"%s\"",
						database) :
				 errmsg("out of background worker slots: cannot start the decider in database \"%s\"",
						database),
				 slot->kind == WORKER_RELAY ?
				 errdetail("Messages are stored and wait. It is tried again until a slot is free.") :
				 errdetail("It is tried again until a slot is free."),
				 errhint("You might need to increase max_worker_processes.")));
	}
	else
		ereport(DEBUG1, (errmsg_internal("still out of background worker slots")));
	out_of_workers = true;
	workers_retry_at = TimestampTzPlusMilliseconds(now, workers_retry_ms);
	workers_retry_ms = Min(workers_retry_ms * 2, NO_WORKER_MAX_MS);

	/* All that have to wait say why. */
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shmem_worker_count(); i++)
		if (shmem_worker(i)->phase == SLOT_WANTED)
			shmem_worker(i)->no_worker_slot = true;
	LWLockRelease(shared_state->lock);
}

StartResult
launcher_start_worker(int number, const char *database, TimestampTz now)
{
	WorkerSlot *slot = shmem_worker(number);
	BackgroundWorker worker;
	uint32		generation;
	bool		suspended;
	bool		registered;
	MemoryContext oldcontext;

	/* The slot's last worker may not be reaped; that will wake us. */
	if (!launcher_start_is_reaped(number))
		return START_SOON;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	suspended = shmem_is_suspended(pg_atomic_read_u32(&slot->dboid));
	if (!suspended)
	{
		slot->phase = SLOT_STARTING;
		slot->generation++;
	}
	generation = slot->generation;
	LWLockRelease(shared_state->lock);
	if (suspended)
		return START_DONE;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, OUTBOX_LIBRARY);
	describe(slot, database, &worker);
	worker.bgw_main_arg = Int32GetDatum(number);
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	/* The handle outlives this look around. */
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &handles[number].handle);
	MemoryContextSwitchTo(oldcontext);

	if (registered)
		handles[number].patience_until =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), START_PATIENCE_MS);
	else
		handles[number].handle = NULL;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (!registered)
		slot->phase = SLOT_WANTED;
	slot->no_worker_slot = !registered;
	LWLockRelease(shared_state->lock);

	if (registered)
	{
		out_of_workers = false;
		workers_retry_at = 0;
		return START_DONE;
	}
	if (unreaped > 0)
		return START_SOON;
	note_out_of_workers(slot, database, now);
	return START_NO_WORKER;
}

TimestampTz
launcher_start_retry_at(void)
{
	return workers_retry_at;
}

bool
launcher_start_is_reaped(int number)
{
	return handles[number].handle == NULL;
}

/*
 * A worker is registered and has not attached. Find out whether it still can.
 * Returns when to look again if nothing wakes us, 0: never.
 */
static TimestampTz
check_starting(WorkerSlot *slot, SlotHandle *handle, TimestampTz now)
{
	bool		gone;
	pid_t		pid;

	if (handle->handle != NULL)
		gone = GetBackgroundWorkerPid(handle->handle, &pid) == BGWH_STOPPED;
	else
	{
		if (handle->deadline == 0)
			handle->deadline = TimestampTzPlusMilliseconds(now, ADOPTED_START_MS);
		gone = now >= handle->deadline;
	}
	if (!gone)
		return due_sooner(handle->deadline,
						  now < handle->patience_until ? handle->patience_until : 0);

	/*
	 * It may have attached and left since we looked at the phase; then the
	 * slot is none of our business. It never had an effect otherwise, and
	 * cannot have one later: the generation changes with the next start.
	 */
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->phase == SLOT_STARTING)
	{
		slot->phase = SLOT_WANTED;
		slot->generation++;
		slot->start_after = TimestampTzPlusMilliseconds(now, NO_WORKER_MIN_MS);
	}
	LWLockRelease(shared_state->lock);
	SetLatch(MyLatch);
	return 0;
}

/*
 * The worker of a slot has left it. Its handle is kept until the postmaster
 * has reaped it, of which we are signalled: before that its background worker
 * slot is taken, and starting the next one might fail for that alone.
 */
static void
check_reaped(SlotHandle *handle)
{
	pid_t		pid;

	handle->deadline = 0;
	if (handle->handle == NULL)
		return;
	if (GetBackgroundWorkerPid(handle->handle, &pid) == BGWH_STOPPED)
	{
		pfree(handle->handle);
		handle->handle = NULL;
	}
	else
		unreaped++;
}

void
launcher_start_follow_begin(void)
{
	unreaped = 0;
}

TimestampTz
launcher_start_follow(int number, TimestampTz now, bool *under_way)
{
	WorkerSlot *slot = shmem_worker(number);
	SlotHandle *handle = &handles[number];
	TimestampTz wake = 0;
	SlotPhase	phase;
	bool		settled;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	phase = slot->phase;
	settled = slot->settled;
	LWLockRelease(shared_state->lock);

	switch (phase)
	{
		case SLOT_STARTING:
			wake = check_starting(slot, handle, now);
			if (now < handle->patience_until)
				*under_way = true;
			break;
		case SLOT_RUNNING:
			if (settled)
				handle->patience_until = 0;
			else if (now < handle->patience_until)
			{
				*under_way = true;
				wake = handle->patience_until;
			}
			break;
		default:
			check_reaped(handle);
			break;
	}
	return wake;
}
