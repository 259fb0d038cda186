/*
 * relay_attach.c
 *	  The beginning of a relay's life: worker.c, and what only relays do.
 */
#include "postgres.h"

#include "libpq/pqsignal.h"
#include "postmaster/interrupt.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/timeout.h"

#include "relay_internal.h"
#include "worker.h"

/*
 * A lock that somebody else holds may not keep a relay from its messages; and
 * who waits for one of the relay's must not be told of a deadlock, after
 * deadlock_timeout.
 */
#define RELAY_LOCK_TIMEOUT "100ms"

/*
 * lock_timeout interrupts a process by SIGINT, as pg_cancel_backend() does. The
 * relay minds the first only: it runs no statement that could be cancelled.
 */
static void
handle_sigint(SIGNAL_ARGS)
{
	if (get_timeout_indicator(LOCK_TIMEOUT, false))
		StatementCancelHandler(postgres_signal_arg);
}

static void
attached(WorkerSlot *slot)
{
	pg_atomic_write_u32(&((RelaySlot *) slot)->state, RELAY_STARTING);
}

static void
detached(WorkerSlot *slot)
{
	pg_atomic_write_u64(&((RelaySlot *) slot)->in_flight, 0);
	pg_atomic_write_u64(&((RelaySlot *) slot)->in_flight_bytes, 0);
}

static void
left(WorkerSlot *slot)
{
	ConditionVariableBroadcast(&((RelaySlot *) slot)->progress_cv);
}

RelaySlot *
relay_attach(Datum main_arg)
{
	static const WorkerRole role = {
		.name = "relay",
		.lock_timeout = RELAY_LOCK_TIMEOUT,
		.handle_sigterm = SignalHandlerForShutdownRequest,
		.handle_sigint = handle_sigint,
		.attached = attached,
		.detached = detached,
		.left = left,
	};
	RelaySlot  *slot = (RelaySlot *) worker_begin(main_arg, &role);
	bool		probe_only;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	probe_only = slot->probe_only;
	LWLockRelease(shared_state->lock);
	if (probe_only)
		worker_leave(SLOT_REFUSED);

	worker_settle();
	return slot;
}
