/*
 * shmem.c
 *	  Size, set-up and elementary operations of the shared memory described
 *	  in shmem.h.
 *
 * There is one RelaySlot more than outbox_kafka.max_databases: with it the launcher
 * can still look whether a database has the extension when all others are
 * taken, so that it complains only about databases that do.
 */
#include "postgres.h"

#include <signal.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "outbox_kafka.h"
#include "shmem.h"

SharedState *shared_state = NULL;
SideSlot   *side_slots = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static int
slots_wanted(void)
{
	return guc_max_databases + 1;
}

static int
sides_wanted(void)
{
	return slots_wanted() + guc_max_inbox_workers;
}

static Size
shared_state_size(void)
{
	return add_size(offsetof(SharedState, slots),
					mul_size(slots_wanted(), sizeof(RelaySlot)));
}

static Size
side_slots_size(void)
{
	return mul_size(sides_wanted(), sizeof(SideSlot));
}

static void
request_shmem(void)
{
	if (prev_shmem_request_hook != NULL)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(add_size(shared_state_size(), side_slots_size()));
	RequestNamedLWLockTranche(OUTBOX_LIBRARY, 1);
}

/*
 * Bring a slot into the state of one that was never used. What is left alone:
 * dboid, which is written last, generation, which must never repeat, and the
 * condition variable, which somebody may still sleep on.
 */
static void
reset_worker(WorkerSlot *slot)
{
	slot->subscription = 0;
	slot->number = 0;
	slot->phase = SLOT_FREE;
	slot->pid = 0;
	slot->settled = false;
	slot->start_after = 0;
	slot->started_at = 0;
	slot->failures = 0;
	slot->no_worker_slot = false;
	pg_atomic_write_u32(&slot->procno, SLOT_NO_PROC);
	pg_atomic_write_u32(&slot->sleeping, 0);
	pg_atomic_write_u32(&slot->control_generation, 0);
	pg_atomic_write_u32(&slot->stop_requested, 0);
	memset(slot->last_error, 0, sizeof(slot->last_error));
	slot->last_error_at = 0;
}

static void
reset_relay(RelaySlot *slot)
{
	reset_worker(&slot->worker);
	slot->probe_only = false;
	slot->suspensions = 0;
	slot->side_refused = false;
	pg_atomic_write_u64(&slot->commits, 0);
	pg_atomic_write_u32(&slot->current_segment, OUTBOX_SEGMENTS);
	pg_atomic_write_u64(&slot->backlog, 0);
	pg_atomic_write_u32(&slot->backlog_wanted, 0);
	pg_atomic_write_u32(&slot->limits_doubted, 0);
	pg_atomic_write_u32(&slot->state, RELAY_STARTING);
	pg_atomic_write_u64(&slot->in_flight, 0);
	pg_atomic_write_u64(&slot->in_flight_bytes, 0);
	pg_atomic_write_u64(&slot->held_waiting, 0);
	pg_atomic_write_u64(&slot->published, 0);
	pg_atomic_write_u64(&slot->repeated, 0);
	pg_atomic_write_u64(&slot->last_id, 0);
	pg_atomic_write_u64(&slot->oldest_pending, 0);
	pg_atomic_write_u64(&slot->last_ack_at, 0);
	memset(slot->broker, 0, sizeof(slot->broker));
}

void
shmem_reset_side(SideSlot *slot)
{
	reset_worker(&slot->worker);
	slot->wanted = false;
	slot->idle_generation = 0;
	pg_atomic_write_u32(&slot->progress_wanted, 0);
	pg_atomic_write_u32(&slot->state, 0);
	pg_atomic_write_u64(&slot->handled, 0);
	pg_atomic_write_u64(&slot->failed, 0);
	pg_atomic_write_u64(&slot->last_activity_at, 0);
	pg_atomic_write_u32(&slot->busy, 0);
}

static void
init_worker(WorkerSlot *slot, WorkerKind kind)
{
	pg_atomic_init_u32(&slot->dboid, InvalidOid);
	slot->kind = kind;
	pg_atomic_init_u32(&slot->procno, SLOT_NO_PROC);
	pg_atomic_init_u32(&slot->sleeping, 0);
	pg_atomic_init_u32(&slot->control_generation, 0);
	pg_atomic_init_u32(&slot->stop_requested, 0);
}

static void
init_relay(RelaySlot *slot)
{
	init_worker(&slot->worker, WORKER_RELAY);
	pg_atomic_init_u64(&slot->commits, 0);
	pg_atomic_init_u32(&slot->current_segment, OUTBOX_SEGMENTS);
	pg_atomic_init_u32(&slot->waiters, 0);
	ConditionVariableInit(&slot->progress_cv);
	pg_atomic_init_u64(&slot->backlog, 0);
	pg_atomic_init_u32(&slot->backlog_wanted, 0);
	pg_atomic_init_u32(&slot->limits_doubted, 0);
	pg_atomic_init_u32(&slot->state, RELAY_STARTING);
	pg_atomic_init_u64(&slot->in_flight, 0);
	pg_atomic_init_u64(&slot->in_flight_bytes, 0);
	pg_atomic_init_u64(&slot->held_waiting, 0);
	pg_atomic_init_u64(&slot->published, 0);
	pg_atomic_init_u64(&slot->repeated, 0);
	pg_atomic_init_u64(&slot->last_id, 0);
	pg_atomic_init_u64(&slot->oldest_pending, 0);
	pg_atomic_init_u64(&slot->last_ack_at, 0);
	reset_relay(slot);
}

static void
init_side(SideSlot *slot, WorkerKind kind)
{
	init_worker(&slot->worker, kind);
	pg_atomic_init_u32(&slot->progress_wanted, 0);
	pg_atomic_init_u32(&slot->state, 0);
	pg_atomic_init_u64(&slot->handled, 0);
	pg_atomic_init_u64(&slot->failed, 0);
	pg_atomic_init_u64(&slot->last_activity_at, 0);
	pg_atomic_init_u32(&slot->busy, 0);
	shmem_reset_side(slot);
}

/* Runs at server start, after a crash restart, and in EXEC_BACKEND children. */
static void
startup_shmem(void)
{
	bool		found;

	shared_state = NULL;
	side_slots = NULL;

	if (prev_shmem_startup_hook != NULL)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared_state = ShmemInitStruct(OUTBOX_LIBRARY, shared_state_size(), &found);
	if (!found)
	{
		memset(shared_state, 0, shared_state_size());
		shared_state->lock = &GetNamedLWLockTranche(OUTBOX_LIBRARY)->lock;
		pg_atomic_init_u32(&shared_state->launcher_procno, SLOT_NO_PROC);
		shared_state->topics_tranche = LWLockNewTrancheId();
		shared_state->topics_area = DSM_HANDLE_INVALID;
		pg_atomic_init_u32(&shared_state->topics_count, 0);
		shared_state->nslots = slots_wanted();
		for (int i = 0; i < shared_state->nslots; i++)
			init_relay(&shared_state->slots[i]);
	}
	side_slots = ShmemInitStruct(OUTBOX_LIBRARY " side workers", side_slots_size(), &found);
	if (!found)
	{
		memset(side_slots, 0, side_slots_size());
		shared_state->nsides = sides_wanted();
		for (int i = 0; i < shared_state->nsides; i++)
			init_side(&side_slots[i],
					  i < shared_state->nslots ? WORKER_DECIDER : WORKER_INBOX);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
shmem_install_hooks(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

RelaySlot *
shmem_find_slot(Oid dboid)
{
	static RelaySlot *remembered = NULL;

	if (!OidIsValid(dboid))
		return NULL;
	if (remembered != NULL && pg_atomic_read_u32(&remembered->worker.dboid) == dboid)
		return remembered;

	for (int i = 0; i < shared_state->nslots; i++)
	{
		RelaySlot  *slot = &shared_state->slots[i];

		if (pg_atomic_read_u32(&slot->worker.dboid) == dboid)
		{
			/* Most callers ask for their own database, again and again. */
			if (dboid == MyDatabaseId)
				remembered = slot;
			return slot;
		}
	}
	return NULL;
}

RelaySlot *
shmem_claim_slot(Oid dboid)
{
	RelaySlot  *slot = shmem_find_slot(dboid);

	if (slot != NULL)
		return slot;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_state->nslots; i++)
	{
		RelaySlot  *candidate = &shared_state->slots[i];

		if (candidate->worker.phase == SLOT_FREE)
		{
			slot = candidate;
			reset_relay(slot);
			slot->worker.phase = SLOT_WANTED;
			/* Visible to shmem_find_slot() last, when all else is in place. */
			pg_write_barrier();
			pg_atomic_write_u32(&slot->worker.dboid, dboid);
			break;
		}
	}
	LWLockRelease(shared_state->lock);
	return slot;
}

bool
shmem_release_slot(RelaySlot *slot)
{
	bool		released = false;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->worker.phase != SLOT_STARTING && slot->worker.phase != SLOT_RUNNING &&
		slot->suspensions == 0)
	{
		pg_atomic_write_u32(&slot->worker.dboid, InvalidOid);
		slot->worker.phase = SLOT_FREE;
		released = true;
	}
	LWLockRelease(shared_state->lock);
	return released;
}

int
shmem_slots_in_use(void)
{
	int			used = 0;

	for (int i = 0; i < shared_state->nslots; i++)
		if (pg_atomic_read_u32(&shared_state->slots[i].worker.dboid) != InvalidOid)
			used++;
	return used;
}

int
shmem_worker_count(void)
{
	return shared_state->nslots + shared_state->nsides;
}

WorkerSlot *
shmem_worker(int number)
{
	Assert(number >= 0 && number < shmem_worker_count());
	return number < shared_state->nslots ? &shared_state->slots[number].worker :
		&side_slots[number - shared_state->nslots].worker;
}

/*
 * A relay minds its latch. A side worker may be inside of somebody's function,
 * so it gets a signal. The pid is that of a live process: it is taken out of
 * the slot under the lock before the process ends.
 */
void
shmem_request_stop_locked(WorkerSlot *slot)
{
	pg_atomic_write_u32(&slot->stop_requested, 1);
	pg_memory_barrier();
	shmem_set_latch(pg_atomic_read_u32(&slot->procno));
	if (slot->kind != WORKER_RELAY && slot->pid != 0)
		(void) kill(slot->pid, SIGTERM);
}

void
shmem_request_stop(WorkerSlot *slot, Oid dboid)
{
	LWLockAcquire(shared_state->lock, LW_SHARED);
	if (pg_atomic_read_u32(&slot->dboid) == dboid)
		shmem_request_stop_locked(slot);
	LWLockRelease(shared_state->lock);
}

bool
shmem_is_suspended(Oid dboid)
{
	RelaySlot  *slot = shmem_find_slot(dboid);

	return slot == NULL || slot->suspensions > 0;
}

void
shmem_notify_launcher(Oid dboid)
{
	bool		known = false;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_state->nnotices; i++)
		if (shared_state->notices[i] == dboid)
			known = true;
	if (!OidIsValid(dboid))
		shared_state->notice_all = true;
	else if (known)
		 /* nothing to add */ ;
	else if (shared_state->nnotices < LAUNCHER_NOTICES)
		shared_state->notices[shared_state->nnotices++] = dboid;
	else
		shared_state->notice_all = true;
	LWLockRelease(shared_state->lock);

	shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
}

int
shmem_take_notices(Oid *dboids, bool *all)
{
	int			count;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	count = shared_state->nnotices;
	memcpy(dboids, shared_state->notices, count * sizeof(Oid));
	*all = shared_state->notice_all;
	shared_state->nnotices = 0;
	shared_state->notice_all = false;
	LWLockRelease(shared_state->lock);
	return count;
}

void
shmem_set_error(WorkerSlot *slot, const char *text)
{
	TimestampTz now = GetCurrentTimestamp();
	int			length = pg_mbcliplen(text, strlen(text), SLOT_ERROR_LENGTH - 1);

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	memcpy(slot->last_error, text, length);
	slot->last_error[length] = '\0';
	slot->last_error_at = now;
	LWLockRelease(shared_state->lock);
}

/*
 * PGPROCs live as long as the server, so at worst this wakes a process that
 * has taken the number over, which costs it one look around.
 */
void
shmem_set_latch(uint32 procno)
{
	if (procno != SLOT_NO_PROC && procno < ProcGlobal->allProcCount)
		SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}

const char *
shmem_relay_state_name(RelayState state)
{
	switch (state)
	{
		case RELAY_STARTING:
			return "starting";
		case RELAY_UNCONFIGURED:
			return "unconfigured";
		case RELAY_CONNECTING:
			return "connecting";
		case RELAY_RUNNING:
			return "running";
		case RELAY_IDLE:
			return "idle";
		case RELAY_PAUSED:
			return "paused";
		case RELAY_STANDBY:
			return "waiting for standby";
		case RELAY_FAILED:
			return "failed";
		case RELAY_CONFLICT:
			return "conflict";
	}
	return "unknown";
}
