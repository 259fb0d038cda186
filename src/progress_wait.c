/*
 * progress_wait.c
 *	  Waiting in a backend for what the workers of its database do.
 *
 * The relay broadcasts when it has stored progress, and who decides an
 * expectation broadcasts the same at commit (see wakeup.c). A waiting backend is
 * counted in the slot, so that the relay stores progress as soon as there is
 * any.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "progress_wait.h"
#include "shmem.h"

/* Without anybody to be told by, or as a safety net. */
#define LOOK_INTERVAL_MS 1000

TimestampTz
progress_wait_end(const Interval *timeout)
{
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   IntervalPGetDatum(timeout)));
}

static void
wait_until_over(RelaySlot *slot, bool (*is_over) (void *arg), void *arg, TimestampTz end,
				uint32 wait_event)
{
	if (slot != NULL)
	{
		ConditionVariablePrepareToSleep(&slot->progress_cv);
		shmem_set_latch(pg_atomic_read_u32(&slot->worker.procno));
	}
	while (!is_over(arg))
	{
		long		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		if (timeout <= 0)
			break;
		timeout = Min(timeout, LOOK_INTERVAL_MS);
		if (slot != NULL)
			(void) ConditionVariableTimedSleep(&slot->progress_cv, timeout, wait_event);
		else
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 timeout, wait_event);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
	}
	if (slot != NULL)
		ConditionVariableCancelSleep();
}

static void
stop_waiting(int code, Datum arg)
{
	RelaySlot  *slot = (RelaySlot *) DatumGetPointer(arg);

	pg_atomic_fetch_sub_u32(&slot->waiters, 1);
}

void
progress_wait(bool (*is_over) (void *arg), void *arg, TimestampTz end, uint32 wait_event)
{
	RelaySlot  *slot = shared_state ? shmem_find_slot(MyDatabaseId) : NULL;

	if (slot == NULL)
	{
		wait_until_over(NULL, is_over, arg, end, wait_event);
		return;
	}

	/* counted, also if it ends by an error */
	pg_atomic_fetch_add_u32(&slot->waiters, 1);
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	{
		wait_until_over(slot, is_over, arg, end, wait_event);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	stop_waiting(0, PointerGetDatum(slot));
}
