/*
 * wakeup.c
 *	  The transaction callback behind wakeup.h.
 *
 * Marks are static variables of the backend, set while the transaction runs
 * and forgotten at its end, whichever it is. PREPARE TRANSACTION forgets too:
 * COMMIT PREPARED is another transaction, usually of another session, and is
 * noticed by the utility hook in dbhooks.c.
 *
 * Allocating happens when marking, where an error is an ordinary error. The
 * callback itself reads memory, changes atomics, sets latches and, for the
 * rare marks, takes SharedState.lock for a few stores.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "shmem.h"
#include "side_slot.h"
#include "wakeup.h"

/* How often a backend that waits for workers to leave looks again. */
#define SUSPEND_POLL_MS 5

typedef struct WakeupMarks
{
	bool		any;			/* all that the end of most transactions reads */
	bool		published;
	bool		control;
	bool		decider;
	bool		sides;			/* all side workers of this database */
	bool		restart_all;
	List	   *inbox;			/* subscriptions whose workers shall look
								 * again */
	List	   *look;			/* databases to tell the launcher of */
	List	   *restart;		/* databases whose workers shall end */
	List	   *suspended;		/* databases whose workers this keeps away */
} WakeupMarks;

/* The lists live in TopTransactionContext. */
static WakeupMarks marks;

/*
 * Remember dboid in one of the lists above, once. May raise "out of memory";
 * then the list is as it was.
 */
static void
remember_database(List **list, Oid dboid)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopTransactionContext);

	*list = list_append_unique_oid(*list, dboid);
	MemoryContextSwitchTo(oldcontext);
	marks.any = true;
}

void
wakeup_mark_published(void)
{
	if (shared_state == NULL)
		return;
	marks.published = true;
	marks.any = true;
}

void
wakeup_mark_control(void)
{
	if (shared_state == NULL)
		return;
	marks.control = true;
	marks.any = true;
}

void
wakeup_mark_decider(void)
{
	if (shared_state == NULL)
		return;
	marks.decider = true;
	marks.any = true;
}

void
wakeup_mark_inbox(int32 subscription)
{
	MemoryContext oldcontext;

	if (shared_state == NULL)
		return;
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	marks.inbox = list_append_unique_int(marks.inbox, subscription);
	MemoryContextSwitchTo(oldcontext);
	marks.any = true;
}

void
wakeup_mark_side_workers(void)
{
	if (shared_state == NULL)
		return;
	marks.sides = true;
	marks.any = true;
}

void
wakeup_mark_start(Oid dboid)
{
	if (shared_state == NULL)
		return;
	remember_database(&marks.look, dboid);
}

void
wakeup_mark_restart(Oid dboid)
{
	if (shared_state == NULL)
		return;
	if (OidIsValid(dboid))
		remember_database(&marks.restart, dboid);
	else
	{
		marks.restart_all = true;
		marks.any = true;
	}
}

void
wakeup_mark_stop(Oid dboid)
{
	if (shared_state == NULL)
		return;
	remember_database(&marks.look, dboid);
	remember_database(&marks.restart, dboid);
}

/*
 * Whether the process that is attached to a slot counts as connected to the
 * database. It stays in the ProcArray, which is what DROP DATABASE and its kin
 * look at, for a moment after it has given its slot back.
 */
static bool
is_connected(pid_t pid, Oid dboid)
{
	PGPROC	   *proc = pid != 0 ? BackendPidGetProc(pid) : NULL;

	return proc != NULL && proc->databaseId == dboid;
}

/*
 * Ask all workers of a database to end, and return the pids of those that are
 * attached, palloc'd.
 */
static pid_t *
stop_workers(Oid dboid, int *count)
{
	pid_t	   *pids = palloc(shmem_worker_count() * sizeof(pid_t));

	*count = 0;
	LWLockAcquire(shared_state->lock, LW_SHARED);
	for (int i = 0; i < shmem_worker_count(); i++)
	{
		WorkerSlot *slot = shmem_worker(i);

		if (pg_atomic_read_u32(&slot->dboid) != dboid)
			continue;
		if (slot->pid != 0)
			pids[(*count)++] = slot->pid;
		shmem_request_stop_locked(slot);
	}
	LWLockRelease(shared_state->lock);
	return pids;
}

bool
wakeup_suspend(Oid dboid, int timeout_ms)
{
	static uint32 wait_event = 0;
	RelaySlot  *slot;
	TimestampTz start;
	pid_t	   *pids;
	int			count;

	if (shared_state == NULL)
		return true;
	slot = shmem_find_slot(dboid);
	if (slot == NULL)
		return true;

	if (!list_member_oid(marks.suspended, dboid))
	{
		bool		ours;

		remember_database(&marks.suspended, dboid);

		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		ours = pg_atomic_read_u32(&slot->worker.dboid) == dboid;
		if (ours)
			slot->suspensions++;
		LWLockRelease(shared_state->lock);

		if (!ours)
		{
			/* The launcher has just found that it needs no relay. */
			marks.suspended = list_delete_oid(marks.suspended, dboid);
			return true;
		}
	}

	/*
	 * No worker that attaches from now on gets as far as connecting, so those
	 * that are attached now are the only ones to wait for.
	 */
	pids = stop_workers(dboid, &count);

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxRelayLeave");

	start = GetCurrentTimestamp();
	for (int i = 0; i < count; i++)
	{
		while (is_connected(pids[i], dboid))
		{
			if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), timeout_ms))
				return false;

			/* Nothing signals that a process has left the ProcArray. */
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 SUSPEND_POLL_MS, wait_event);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
	}
	pfree(pids);
	return true;
}

/* End the workers of a database soon, of all for InvalidOid. */
static void
request_stop(Oid dboid)
{
	for (int i = 0; i < shmem_worker_count(); i++)
	{
		WorkerSlot *slot = shmem_worker(i);
		Oid			of = pg_atomic_read_u32(&slot->dboid);

		if (OidIsValid(of) && (of == dboid || !OidIsValid(dboid)))
			shmem_request_stop(slot, of);
	}
}

/* Let go of the workers this transaction kept away. Runs at every end. */
static void
release_suspended(void)
{
	ListCell   *lc;

	foreach(lc, marks.suspended)
	{
		Oid			dboid = lfirst_oid(lc);
		RelaySlot  *slot = shmem_find_slot(dboid);

		if (slot != NULL)
		{
			LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
			slot->suspensions--;
			LWLockRelease(shared_state->lock);
		}
		shmem_notify_launcher(dboid);
	}
}

static void
wake_for_messages(void)
{
	RelaySlot  *slot = shmem_find_slot(MyDatabaseId);

	if (slot == NULL)
		return;

	if (marks.control)
		pg_atomic_fetch_add_u32(&slot->worker.control_generation, 1);

	/* A full barrier: the relay sees the count, or we see it asleep. */
	pg_atomic_fetch_add_u64(&slot->commits, 1);
	if (marks.control || pg_atomic_read_u32(&slot->worker.sleeping) != 0)
		shmem_set_latch(pg_atomic_read_u32(&slot->worker.procno));
}

/* Something was decided, perhaps: for outbox.wait_decided(). */
static void
wake_waiters(void)
{
	RelaySlot  *slot = shmem_find_slot(MyDatabaseId);

	pg_memory_barrier();
	if (slot != NULL && pg_atomic_read_u32(&slot->waiters) > 0)
		ConditionVariableBroadcast(&slot->progress_cv);
}

static void
act_on_commit(void)
{
	ListCell   *lc;

	if (marks.published || marks.control)
		wake_for_messages();

	if (marks.sides)
		side_slots_wake_database(MyDatabaseId);
	if (marks.decider)
	{
		side_slots_wake(MyDatabaseId, WORKER_DECIDER, 0);
		wake_waiters();
	}
	foreach(lc, marks.inbox)
		side_slots_wake(MyDatabaseId, WORKER_INBOX, lfirst_int(lc));

	if (marks.restart_all)
		request_stop(InvalidOid);
	else
		foreach(lc, marks.restart)
			request_stop(lfirst_oid(lc));

	foreach(lc, marks.look)
		shmem_notify_launcher(lfirst_oid(lc));
}

/*
 * At commit this runs after the transaction has become visible to others and
 * before its locks are released.
 */
static void
at_transaction_end(XactEvent event, void *arg)
{
	if (!marks.any)
		return;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			act_on_commit();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}

	release_suspended();
	memset(&marks, 0, sizeof(marks));
}

void
wakeup_install(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
}
