/*
 * shmem.h
 *	  Shared memory: one slot for each database that has (or is being looked
 *	  at for) a relay, and one for each of its side workers.
 *
 * Who writes what:
 *	- SharedState.lock guards the fields of a slot that are not atomics, and
 *	  the allocation of slots. Hold it for a few loads and stores only: never
 *	  across an ereport(), a catalog access or anything that waits.
 *	- RelaySlots are given to databases and taken back by the launcher alone,
 *	  and never while a worker of the database is attached or a backend keeps
 *	  one away. SideSlots are given by the database's relay and taken back by
 *	  the launcher, before the RelaySlot.
 *	- atomics are read by anybody without the lock. The ones marked (relay)
 *	  are written by the attached relay only.
 *	- nothing process-local is stored here: no pointers except PGPROC numbers,
 *	  no handles, no file descriptors.
 *
 * After a crash restart the whole area is zeroed: a worker that finds no slot
 * of its generation exits.
 */
#ifndef OUTBOX_SHMEM_H
#define OUTBOX_SHMEM_H

#include "datatype/timestamp.h"
#include "lib/dshash.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"

#define SLOT_NO_PROC PG_UINT32_MAX
#define SLOT_ERROR_LENGTH 1024
#define SLOT_BROKER_LENGTH 256

/* Databases the launcher can be told of before it is told to look at all. */
#define LAUNCHER_NOTICES 16

/* Where a worker's slot stands in the launcher's hands. */
typedef enum SlotPhase
{
	SLOT_FREE = 0,				/* not in use */
	SLOT_WANTED,				/* a worker should run; none is registered */
	SLOT_STARTING,				/* registered, not attached yet */
	SLOT_RUNNING,				/* a worker is attached */
	SLOT_IDLE,					/* it left: there is nothing for it to do */
	SLOT_REFUSED				/* it left: max_databases do (relays only) */
} SlotPhase;

typedef enum WorkerKind
{
	WORKER_RELAY = 0,
	WORKER_DECIDER,
	WORKER_INBOX
} WorkerKind;

/* What the slots of all kinds of workers have in common; always comes first. */
typedef struct WorkerSlot
{
	/*
	 * Key: InvalidOid when free. Written under the lock, read without. The
	 * kind is fixed; subscription and number do not change while dboid is
	 * set.
	 */
	pg_atomic_uint32 dboid;
	WorkerKind	kind;
	int32		subscription;	/* of an inbox worker, else 0 */
	int32		number;			/* among those of the subscription, from 0 */

	/* --- life cycle: under SharedState.lock --- */
	SlotPhase	phase;
	uint32		generation;		/* counts the registrations of a worker */
	pid_t		pid;			/* the attached worker, else 0 */
	bool		settled;		/* the attached worker has seen the extension */
	TimestampTz start_after;	/* not before this time (backoff) */
	TimestampTz started_at;		/* when the worker attached */
	int			failures;		/* starts that ended badly in a row */
	bool		no_worker_slot; /* last try met max_worker_processes */

	/* --- wake-up, see wakeup.h --- */
	pg_atomic_uint32 procno;	/* the worker's PGPROC number, or SLOT_NO_PROC */
	pg_atomic_uint32 sleeping;	/* 1: the worker wants a latch at commit */
	pg_atomic_uint32 control_generation;	/* what it has to read again
											 * changed so many times */
	pg_atomic_uint32 stop_requested;	/* 1: the worker is to end soon */

	/* under the lock; they outlive a worker, until the slot changes hands: */
	char		last_error[SLOT_ERROR_LENGTH];
	TimestampTz last_error_at;
} WorkerSlot;

/* What an attached relay says of itself; shown by outbox.relay_status. */
typedef enum RelayState
{
	RELAY_STARTING = 0,
	RELAY_UNCONFIGURED,			/* no bootstrap_servers, or a refused property */
	RELAY_CONNECTING,			/* no broker has answered yet, or none does
								 * now */
	RELAY_RUNNING,				/* messages are going out, or are looked for */
	RELAY_IDLE,					/* everything is delivered */
	RELAY_PAUSED,				/* outbox.pause() */
	RELAY_STANDBY,				/* the synchronous standby is late or missing */
	RELAY_FAILED,				/* a permanent error; retried with backoff */
	RELAY_CONFLICT				/* somebody else publishes for this database,
								 * or it is another Kafka cluster */
} RelayState;

/*
 * A relay, and what concerns its database as a whole. It is there for as long
 * as any slot of the database is.
 */
typedef struct RelaySlot
{
	WorkerSlot	worker;

	/* under SharedState.lock */
	bool		probe_only;		/* max_databases are taken: look, don't stay */
	int			suspensions;	/* transactions that keep all workers of the
								 * database away */
	bool		side_refused;	/* it wants more inbox workers than there are
								 * slots for */

	pg_atomic_uint64 commits;	/* publishing transactions committed so far */

	/* --- progress (relay) --- */
	pg_atomic_uint32 current_segment;	/* OUTBOX_SEGMENTS: read it from disk */
	pg_atomic_uint32 waiters;	/* backends in wait_published() (anybody) */
	ConditionVariable progress_cv;	/* broadcast after progress is committed,
									 * and when the relay leaves */

	/* --- size of the messages on disk, see backlog.h --- */
	pg_atomic_uint64 backlog;	/* bytes, as measured last (relay) */
	pg_atomic_uint32 backlog_wanted;	/* 1: somebody published since */

	/* --- limits of topics, see topic_limit.h --- */
	pg_atomic_uint32 limits_doubted;	/* messages refused by one of them */

	/* --- report (relay) --- */
	pg_atomic_uint32 state;		/* enum RelayState; of a relay that left, its
								 * last one */
	pg_atomic_uint64 in_flight;
	pg_atomic_uint64 in_flight_bytes;
	pg_atomic_uint64 held_waiting;	/* messages of held lanes */
	pg_atomic_uint64 published; /* acknowledged since the server started */
	pg_atomic_uint64 repeated;	/* sent again after a reset of the producer */
	pg_atomic_uint64 last_id;	/* highest id acknowledged without a gap */
	pg_atomic_uint64 oldest_pending;	/* created_at of it as TimestampTz, or
										 * 0 */
	pg_atomic_uint64 last_ack_at;	/* TimestampTz, or 0 */
	/* under the lock; it outlives a relay, until the slot changes hands: */
	char		broker[SLOT_BROKER_LENGTH];
} RelaySlot;

/*
 * A side worker: one that serves a database beside its relay. The relay says
 * which ones are wanted (side_slot.h), the launcher starts them.
 */
typedef struct SideSlot
{
	WorkerSlot	worker;

	/* under SharedState.lock */
	bool		wanted;			/* by the database's relay */
	uint32		idle_generation;	/* SLOT_IDLE: control_generation that the
									 * worker had seen when it left */

	/*
	 * Decider: 1: set its latch when the relay has stored progress. Set it
	 * before looking a last time, as sleeping.
	 */
	pg_atomic_uint32 progress_wanted;

	/* --- report (the attached worker) --- */
	pg_atomic_uint32 state;		/* an enum of its own; 0: starting */
	pg_atomic_uint64 handled;	/* messages, or decisions, since the server
								 * started */
	pg_atomic_uint64 failed;	/* handler calls that failed */
	pg_atomic_uint64 last_activity_at;	/* TimestampTz, or 0 */
	pg_atomic_uint32 busy;		/* inbox: 1 while it handles messages; stays
								 * if it ends meanwhile */
} SideSlot;

typedef struct SharedState
{
	LWLock	   *lock;
	pg_atomic_uint32 launcher_procno;	/* SLOT_NO_PROC: none */

	/* databases the launcher shall look at: under the lock */
	int			nnotices;
	Oid			notices[LAUNCHER_NOTICES];
	bool		notice_all;		/* there were more */

	/* per-topic counters, see topic_stats.h; created by the launcher */
	int			topics_tranche; /* constant */
	dsa_handle	topics_area;	/* under the lock */
	dshash_table_handle topics_table;	/* under the lock */
	pg_atomic_uint32 topics_count;	/* entries of all databases */

	int			nslots;			/* max_databases and one to probe with */
	int			nsides;			/* see side_slots */
	RelaySlot	slots[FLEXIBLE_ARRAY_MEMBER];
} SharedState;

/* NULL when the library was not preloaded: nothing relays then. */
extern SharedState *shared_state;

/*
 * nsides slots: a decider for each RelaySlot, with the same index, then
 * max_inbox_workers inbox workers.
 */
extern SideSlot *side_slots;

/* From _PG_init, while shared_preload_libraries is processed. */
extern void shmem_install_hooks(void);

/*
 * The slot of a database, or NULL. Takes no lock and cannot raise: safe in
 * commit callbacks. The slot may be given to another database at any time
 * unless something above forbids it: touch only its atomics, or take the lock
 * and compare dboid again. shared_state must not be NULL.
 */
extern RelaySlot *shmem_find_slot(Oid dboid);

/*
 * Launcher only. Like the above; a new slot is empty, in phase SLOT_WANTED.
 * NULL when all are taken.
 */
extern RelaySlot *shmem_claim_slot(Oid dboid);

/*
 * Launcher only. Take the slot back from its database: true, unless a relay
 * is on it or a transaction keeps one away.
 */
extern bool shmem_release_slot(RelaySlot *slot);

/* RelaySlots that are not free. */
extern int	shmem_slots_in_use(void);

/*
 * All workers, whatever their kind, are numbered from 0: relays first, then
 * side_slots. shmem_worker() takes a valid number only.
 */
extern int	shmem_worker_count(void);
extern WorkerSlot *shmem_worker(int number);

/* Under the lock: bring a free slot into the state of one never used. */
extern void shmem_reset_side(SideSlot *slot);

/*
 * Have a worker end soon, if one is attached (for that database); whether it
 * is started again is the launcher's business. A side worker is interrupted in
 * what it does. Cannot raise. The first takes the lock, the second is called
 * under it, shared or not.
 */
extern void shmem_request_stop(WorkerSlot *slot, Oid dboid);
extern void shmem_request_stop_locked(WorkerSlot *slot);

/*
 * Whether some transaction keeps the workers of a database away (also true if
 * the database has no slot). Under the lock.
 */
extern bool shmem_is_suspended(Oid dboid);

/* Have the launcher look at a database (InvalidOid: at all). Cannot raise. */
extern void shmem_notify_launcher(Oid dboid);

/*
 * Launcher only. Copy the databases it shall look at to dboids (room for
 * LAUNCHER_NOTICES), forget them, return their number. *all: look at all.
 */
extern int	shmem_take_notices(Oid *dboids, bool *all);

/* Record text (truncated) as the slot's last error, with the time. */
extern void shmem_set_error(WorkerSlot *slot, const char *text);

/* Set the latch of the process with that PGPROC number; no-op for none. */
extern void shmem_set_latch(uint32 procno);

extern const char *shmem_relay_state_name(RelayState state);

#endif							/* OUTBOX_SHMEM_H */
