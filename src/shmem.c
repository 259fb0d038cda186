/*
 * shmem.c
 *	  Size, set-up and elementary operations of the shared memory described
 *	  in shmem.h.
 *
 * There is one slot more than outbox_kafka.max_databases: with it the launcher
 * can still look whether a database has the extension when all others are
 * taken, so that it complains only about databases that do.
 */
#include "postgres.h"

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

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static int
slots_wanted(void)
{
	return guc_max_databases + 1;
}

static Size
shared_state_size(void)
{
	return add_size(offsetof(SharedState, slots),
					mul_size(slots_wanted(), sizeof(RelaySlot)));
}

static void
request_shmem(void)
{
	if (prev_shmem_request_hook != NULL)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(shared_state_size());
	RequestNamedLWLockTranche(OUTBOX_LIBRARY, 1);
}

/*
 * Bring a slot into the state of one that was never used. What is left alone:
 * generation, which must never repeat, and the condition variable, which
 * somebody may still sleep on.
 */
static void
reset_slot(RelaySlot *slot)
{
	slot->phase = SLOT_FREE;
	slot->pid = 0;
	slot->settled = false;
	slot->probe_only = false;
	slot->start_after = 0;
	slot->started_at = 0;
	slot->failures = 0;
	slot->no_worker_slot = false;
	slot->suspensions = 0;
	pg_atomic_write_u32(&slot->procno, SLOT_NO_PROC);
	pg_atomic_write_u32(&slot->sleeping, 0);
	pg_atomic_write_u64(&slot->commits, 0);
	pg_atomic_write_u32(&slot->control_generation, 0);
	pg_atomic_write_u32(&slot->stop_requested, 0);
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
	memset(slot->last_error, 0, sizeof(slot->last_error));
	slot->last_error_at = 0;
}

static void
init_slot(RelaySlot *slot)
{
	pg_atomic_init_u32(&slot->dboid, InvalidOid);
	pg_atomic_init_u32(&slot->procno, SLOT_NO_PROC);
	pg_atomic_init_u32(&slot->sleeping, 0);
	pg_atomic_init_u64(&slot->commits, 0);
	pg_atomic_init_u32(&slot->control_generation, 0);
	pg_atomic_init_u32(&slot->stop_requested, 0);
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
	reset_slot(slot);
}

/* Runs at server start, after a crash restart, and in EXEC_BACKEND children. */
static void
startup_shmem(void)
{
	bool		found;

	shared_state = NULL;

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
			init_slot(&shared_state->slots[i]);
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
	if (remembered != NULL && pg_atomic_read_u32(&remembered->dboid) == dboid)
		return remembered;

	for (int i = 0; i < shared_state->nslots; i++)
	{
		RelaySlot  *slot = &shared_state->slots[i];

		if (pg_atomic_read_u32(&slot->dboid) == dboid)
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

		if (candidate->phase == SLOT_FREE)
		{
			slot = candidate;
			reset_slot(slot);
			slot->phase = SLOT_WANTED;
			/* Visible to shmem_find_slot() last, when all else is in place. */
			pg_write_barrier();
			pg_atomic_write_u32(&slot->dboid, dboid);
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
	if (slot->phase != SLOT_STARTING && slot->phase != SLOT_RUNNING &&
		slot->suspensions == 0)
	{
		pg_atomic_write_u32(&slot->dboid, InvalidOid);
		slot->phase = SLOT_FREE;
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
		if (pg_atomic_read_u32(&shared_state->slots[i].dboid) != InvalidOid)
			used++;
	return used;
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
shmem_set_error(RelaySlot *slot, const char *text)
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
