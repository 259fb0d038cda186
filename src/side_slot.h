/*
 * side_slot.h
 *	  The side workers of a database as the others see them: who wants them,
 *	  and how to wake them.
 *
 * A side worker serves a database beside its relay: an inbox worker reads a
 * subscription's topics, the decider ends confirmations whose time is over
 * and runs compensations. The launcher cannot see from where it is which ones
 * a database needs; the database's relay can, and declares it here whenever it
 * reads its control tables.
 *
 *	FREE -> WANTED		declared by the relay
 *	WANTED -> STARTING, STARTING -> RUNNING, RUNNING -> WANTED
 *						as with relays, see launcher.c
 *	RUNNING -> IDLE		the worker found nothing to do and left
 *	IDLE -> WANTED		it was woken since it looked
 *	IDLE -> FREE, WANTED -> FREE
 *						by the launcher: it has left, or is wanted no longer
 *
 * Whoever changes what a side worker has to know marks its transaction with
 * wakeup_mark_decider(), wakeup_mark_inbox() or wakeup_mark_control() (see
 * wakeup.h); nothing else is needed to get one started, or told.
 */
#ifndef OUTBOX_SIDE_SLOT_H
#define OUTBOX_SIDE_SLOT_H

#include "shmem.h"

/* One side worker that a database needs. */
typedef struct SideWanted
{
	WorkerKind	kind;			/* WORKER_INBOX or WORKER_DECIDER */
	int32		subscription;	/* 0 for the decider */
	int32		number;			/* 0 for the decider */
} SideWanted;

/*
 * Relay only. Its database needs these side workers: inbox workers that are
 * not among them are stopped. A decider that is not among them is left alone,
 * it goes by itself (side_worker_leave()) when there is nothing left for it.
 * Returns how many found no slot; the relay is told to read its control tables
 * again when there may be one.
 */
extern int	side_slots_declare(Oid dboid, const SideWanted *wanted, int n);

/*
 * The slot of a side worker, or NULL. Takes no lock and cannot raise; as with
 * shmem_find_slot(), the slot may change hands at any time.
 */
extern SideSlot *side_slot_find(Oid dboid, WorkerKind kind, int32 subscription,
								int32 number);

/*
 * There is news for the decider, or for all workers of a subscription: they
 * have to look again. Counted in control_generation; the latch is set if the
 * worker is sleeping. Where there is none, the relay is told to read its
 * control tables. Cannot raise: for the end of transactions.
 */
extern void side_slots_wake(Oid dboid, WorkerKind kind, int32 subscription);

/* The same for all side workers that a database has. */
extern void side_slots_wake_database(Oid dboid);

/* The relay has stored progress: tell a decider that waits for it. */
extern void side_slots_progressed(const RelaySlot *relay);

/*
 * Launcher only. Take a slot back that nobody needs any more and no worker is
 * on; one that was woken meanwhile becomes SLOT_WANTED instead.
 */
extern void side_slot_try_release(SideSlot *slot);

/*
 * Launcher only. The database has no extension any more: stop its side
 * workers and take their slots back. True once there are none.
 */
extern bool side_slots_release_database(Oid dboid);

#endif							/* OUTBOX_SIDE_SLOT_H */
