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
#include "wakeup.h"

/* How often a backend that waits for a relay to leave looks again. */
#define SUSPEND_POLL_MS 5

typedef struct WakeupMarks
{
	bool		any;			/* all that the end of most transactions reads */
	bool		published;
	bool		control;
	bool		restart_all;
	List	   *look;			/* databases to tell the launcher of */
	List	   *restart;		/* databases whose relay shall end */
	List	   *suspended;		/* databases whose relay this keeps away */
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

bool
wakeup_suspend(Oid dboid, int timeout_ms)
{
	static uint32 wait_event = 0;
	RelaySlot  *slot;
	TimestampTz start;
	pid_t		pid;
	uint32		procno;

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
		ours = pg_atomic_read_u32(&slot->dboid) == dboid;
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

	LWLockAcquire(shared_state->lock, LW_SHARED);
	pid = slot->pid;
	procno = pg_atomic_read_u32(&slot->procno);
	LWLockRelease(shared_state->lock);

	/*
	 * No relay that attaches from now on gets as far as connecting, so the
	 * one that is attached now is the only one to wait for.
	 */
	pg_atomic_write_u32(&slot->stop_requested, 1);
	pg_memory_barrier();
	shmem_set_latch(procno);

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxRelayLeave");

	start = GetCurrentTimestamp();
	while (is_connected(pid, dboid))
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), timeout_ms))
			return false;

		/* Nothing signals that a process has left the ProcArray. */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 SUSPEND_POLL_MS, wait_event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

/* End a relay soon; whether it is started again is the launcher's business. */
static void
request_stop(RelaySlot *slot)
{
	pg_atomic_write_u32(&slot->stop_requested, 1);
	pg_memory_barrier();
	shmem_set_latch(pg_atomic_read_u32(&slot->procno));
}

/* Let go of the relays this transaction kept away. Runs at every end. */
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
		pg_atomic_fetch_add_u32(&slot->control_generation, 1);

	/* A full barrier: the relay sees the count, or we see it asleep. */
	pg_atomic_fetch_add_u64(&slot->commits, 1);
	if (marks.control || pg_atomic_read_u32(&slot->sleeping) != 0)
		shmem_set_latch(pg_atomic_read_u32(&slot->procno));
}

static void
act_on_commit(void)
{
	ListCell   *lc;

	if (marks.published || marks.control)
		wake_for_messages();

	foreach(lc, marks.restart)
	{
		RelaySlot  *slot = shmem_find_slot(lfirst_oid(lc));

		if (slot != NULL)
			request_stop(slot);
	}
	if (marks.restart_all)
	{
		for (int i = 0; i < shared_state->nslots; i++)
			request_stop(&shared_state->slots[i]);
	}

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
