/*
 * side_worker.h
 *	  The beginning and the end of a side worker, and what it has to mind in
 *	  between. See side_slot.h for how it comes to be started.
 *
 * The entry points are outbox_kafka_inbox_main and outbox_kafka_decider_main.
 *
 *	SideSlot   *slot = side_worker_attach(main_arg);
 *
 *	for (;;)
 *	{
 *		ResetLatch(MyLatch);
 *		CHECK_FOR_INTERRUPTS();
 *		if (worker_should_stop())
 *			proc_exit(0);
 *		... reload if ConfigReloadPending ...
 *		seen = pg_atomic_read_u32(&slot->worker.control_generation);
 *		pg_memory_barrier();
 *		... read again what may have changed, if seen has; work ...
 *		side_worker_sleep(slot, seen, set, timeout_ms, wait_event);
 *	}
 *
 * There is at most one worker for each (database, kind, subscription, number).
 */
#ifndef OUTBOX_SIDE_WORKER_H
#define OUTBOX_SIDE_WORKER_H

#include "storage/latch.h"

#include "compat.h"
#include "shmem.h"
#include "worker.h"

/*
 * The prologue, see worker_begin() in worker.h.
 * lock_timeout is 0 here. slot->worker tells which subscription and number
 * (from 0) this process is for.
 */
extern SideSlot *side_worker_attach(Datum main_arg);

/*
 * There is nothing to do for this worker, it looked after it had read
 * control_generation as seen: end. It is started again when it is woken or
 * declared. Does not return.
 */
compat_noreturn extern void side_worker_leave(uint32 seen);

/*
 * Wait for the latch or for what else is in the set (which has to contain the
 * latch and the postmaster's death), but not at all if control_generation is
 * not seen any more. A worker that sleeps otherwise gets no latch from those
 * who wake it, and finds out when it looks at the generation.
 */
extern void side_worker_sleep(SideSlot *slot, uint32 seen, WaitEventSet *set,
							  long timeout_ms, uint32 wait_event);

/*
 * Around a user's function. In between the process can be interrupted: it ends
 * by FATAL at SIGTERM and when it is asked to stop, and SIGINT, so
 * statement_timeout and pg_cancel_backend(), raises an ERROR. Outside of it
 * SIGTERM only sets what worker_should_stop() looks at, and SIGINT nothing.
 * side_worker_outside_handler() may be called at any time.
 */
extern void side_worker_in_handler(void);
extern void side_worker_outside_handler(void);

/*
 * Release the session-level advisory locks that a user's function has left.
 * The lock that makes this worker the only one of its kind is one of them and
 * is taken again: FATAL if somebody else has it. Outside of a transaction or
 * in one.
 */
extern void side_worker_release_advisory_locks(void);

#endif							/* OUTBOX_SIDE_WORKER_H */
