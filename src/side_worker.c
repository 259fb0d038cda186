/*
 * side_worker.c
 *	  The beginning and the end of a side worker, its sleep, and the signals
 *	  that reach it inside of a user's function.
 *
 * A side worker runs functions that are not ours and may take any time. So a
 * request to end cannot wait until the worker looks around: it comes by SIGTERM
 * and, inside of such a function, ends the process at the next
 * CHECK_FOR_INTERRUPTS(). The transaction is rolled back, and the next worker
 * does it again. worker.c does not take that for a failure.
 */
#include "postgres.h"

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/timeout.h"

#include "side_worker.h"

static volatile sig_atomic_t in_handler = false;

/* What the worker had seen when it found that there is nothing to do. */
static uint32 seen_at_leave = 0;

static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	SignalHandlerForShutdownRequest(postgres_signal_arg);
	if (in_handler)
		die(postgres_signal_arg);
	errno = save_errno;
}

/* Timeouts arrive as SIGINT, too. */
static void
handle_sigint(SIGNAL_ARGS)
{
	if (in_handler || get_timeout_indicator(LOCK_TIMEOUT, false))
		StatementCancelHandler(postgres_signal_arg);
}

static bool
may_attach(WorkerSlot *slot)
{
	return ((SideSlot *) slot)->wanted;
}

static void
attached(WorkerSlot *slot)
{
	pg_atomic_write_u32(&((SideSlot *) slot)->state, 0);
	pg_atomic_write_u32(&((SideSlot *) slot)->progress_wanted, 0);
	seen_at_leave = pg_atomic_read_u32(&slot->control_generation);
}

static void
detached(WorkerSlot *slot)
{
	SideSlot   *side = (SideSlot *) slot;

	pg_atomic_write_u32(&side->progress_wanted, 0);
	if (slot->phase == SLOT_IDLE)
		side->idle_generation = seen_at_leave;
}

SideSlot *
side_worker_attach(Datum main_arg)
{
	static const WorkerRole role = {
		.name = "side worker",
		.lock_timeout = "0",
		.handle_sigterm = handle_sigterm,
		.handle_sigint = handle_sigint,
		.may_attach = may_attach,
		.attached = attached,
		.detached = detached,
	};
	WorkerSlot *slot = worker_begin(main_arg, &role);

	worker_settle();
	return (SideSlot *) slot;
}

void
side_worker_leave(uint32 seen)
{
	seen_at_leave = seen;
	worker_leave(SLOT_IDLE);
}

void
side_worker_sleep(SideSlot *slot, uint32 seen, WaitEventSet *set,
				  long timeout_ms, uint32 wait_event)
{
	WaitEvent	event;

	pg_atomic_write_u32(&slot->worker.sleeping, 1);
	pg_memory_barrier();
	if (pg_atomic_read_u32(&slot->worker.control_generation) == seen)
		(void) WaitEventSetWait(set, timeout_ms, &event, 1, wait_event);
	pg_atomic_write_u32(&slot->worker.sleeping, 0);
}

void
side_worker_in_handler(void)
{
	in_handler = true;

	/* It may have been asked to end a moment ago. */
	if (worker_should_stop())
	{
		ProcDiePending = true;
		InterruptPending = true;
	}
}

void
side_worker_outside_handler(void)
{
	in_handler = false;
	QueryCancelPending = false;
}

void
side_worker_release_advisory_locks(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
	worker_take_lock();
}
