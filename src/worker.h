/*
 * worker.h
 *	  What every worker of the extension does alike: signals, the slot in
 *	  shared memory, the connection, and reporting an error before it ends.
 */
#ifndef OUTBOX_WORKER_H
#define OUTBOX_WORKER_H

#include "shmem.h"

/*
 * The prologue of a relay. main_arg is the slot's number; bgw_extra holds the
 * generation it was registered with. Sets up signals (SIGTERM sets
 * ShutdownRequestPending and the latch; SIGHUP ConfigReloadPending), attaches
 * to the slot (exits 0 if the generation is not ours any more), connects to
 * the slot's database, overrides session settings that ALTER DATABASE could
 * have brought (search_path, timeouts, read only, isolation), takes the lock
 * that makes it the only relay of its database (exits 1 when another holds
 * it), and registers the callback that gives the slot back.
 */
extern RelaySlot *worker_attach(Datum main_arg);

/*
 * The database has no extension (any more), or one we cannot serve: leave the
 * slot as SLOT_IDLE and exit 0. Does not return.
 */
extern void worker_leave_idle(void) pg_attribute_noreturn();

/* True once the worker shall end: SIGTERM or slot->stop_requested. */
extern bool worker_should_stop(void);

#endif							/* OUTBOX_WORKER_H */
