/*
 * worker.h
 *	  What every worker of the extension does alike: signals, the slot in
 *	  shared memory, the connection, and reporting an error before it ends.
 */
#ifndef OUTBOX_WORKER_H
#define OUTBOX_WORKER_H

#include "compat.h"
#include "shmem.h"

/*
 * The prologue of a relay. main_arg is the slot's number; bgw_extra holds the
 * generation it was registered with. Sets up signals (SIGTERM sets
 * ShutdownRequestPending and the latch; SIGHUP ConfigReloadPending; SIGINT is
 * ignored), attaches to the slot (exits 0 if the generation is not ours any
 * more, or a transaction keeps the relay away), registers the callback that
 * gives the slot back, connects to the slot's database, overrides session
 * settings that ALTER DATABASE could have brought (search_path, timeouts, read
 * only, isolation), takes the lock that makes it the only relay of its
 * database (exits 1 when another holds it), and leaves the slot idle when the
 * database has no extension. Returns outside of a transaction.
 *
 * From then on an ERROR or FATAL that ends the process is recorded as the
 * slot's last error. Callbacks that the caller registers with
 * before_shmem_exit() run before the slot is given back.
 */
extern RelaySlot *worker_attach(Datum main_arg);

/*
 * The database has no extension (any more), or one we cannot serve: leave the
 * slot as SLOT_IDLE and exit 0. The launcher then frees the slot and looks
 * again when it is told that the extension was created or altered. Does not
 * return.
 */
compat_noreturn extern void worker_leave_idle(void);

/*
 * True once the worker shall end: SIGTERM or slot->stop_requested. The latch
 * is set when it turns true. End with proc_exit(0).
 */
extern bool worker_should_stop(void);

#endif							/* OUTBOX_WORKER_H */
