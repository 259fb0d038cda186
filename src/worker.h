/*
 * worker.h
 *	  What every worker of the extension does alike: signals, the slot in
 *	  shared memory, the connection, and reporting an error before it ends.
 *	  Relays add relay_attach.c to it, side workers side_worker.c.
 */
#ifndef OUTBOX_WORKER_H
#define OUTBOX_WORKER_H

#include "libpq/pqsignal.h"

#include "compat.h"
#include "shmem.h"

/* What a kind of worker does differently. Functions may be NULL. */
typedef struct WorkerRole
{
	const char *name;			/* for messages */
	const char *lock_timeout;	/* the setting */
	pqsigfunc	handle_sigterm; /* once it is connected */
	pqsigfunc	handle_sigint;

	/* under SharedState.lock: */
	bool		(*may_attach) (WorkerSlot *slot);
	void		(*attached) (WorkerSlot *slot);
	void		(*detached) (WorkerSlot *slot); /* the phase is set already */

	/* without it, in a before_shmem_exit() callback: */
	void		(*left) (WorkerSlot *slot);
} WorkerRole;

/*
 * The prologue. main_arg is the worker's number (see shmem_worker());
 * bgw_extra holds the generation it was registered with. Sets up signals,
 * attaches to the slot (exits 0 if the generation is not ours any more, or a
 * transaction keeps the database's workers away), registers the callback that
 * gives the slot back, connects to the slot's database, overrides session
 * settings that ALTER DATABASE could have brought (search_path, timeouts, read
 * only, isolation), takes the lock that makes it the only one of its kind,
 * database, subscription and number (exits 1 when another holds it), and leaves
 * the slot idle when the database has no extension. Returns outside of a
 * transaction.
 *
 * From then on an ERROR or FATAL that ends the process is recorded as the
 * slot's last error. Callbacks that the caller registers with
 * before_shmem_exit() run before the slot is given back.
 */
extern WorkerSlot *worker_begin(Datum main_arg, const WorkerRole *role);

/* It stays: seen in pg_stat_activity, and the launcher may start the next. */
extern void worker_settle(void);

/*
 * There is nothing to do here, which is not an error: leave the slot in that
 * phase (SLOT_IDLE, SLOT_REFUSED) and exit 0. What follows is the launcher's
 * business. worker_leave_idle(): the database has no extension (any more), or
 * one we cannot serve. They do not return.
 */
compat_noreturn extern void worker_leave(SlotPhase phase);
compat_noreturn extern void worker_leave_idle(void);

/*
 * True once the worker shall end: SIGTERM or slot->stop_requested. The latch
 * is set when it turns true. End with proc_exit(0).
 */
extern bool worker_should_stop(void);

/*
 * Take the lock that makes this worker the only one, or have it still; FATAL
 * if another process has it. For those who released all advisory locks of the
 * session.
 */
extern void worker_take_lock(void);

#endif							/* OUTBOX_WORKER_H */
