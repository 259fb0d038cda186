/*
 * wakeup.h
 *	  What a transaction does to the workers when it ends.
 *
 * One transaction callback, registered once in _PG_init, serves every need:
 * a transaction that published wakes the relay of its database; one that made
 * or dropped the extension, or changed what the relay must re-read, tells the
 * launcher or the relay. Nothing happens at abort except forgetting and
 * letting go of relays that were kept away, and nothing in the callback can
 * raise an error: at that point it would be a PANIC. Side workers (side_slot.h)
 * are woken, stopped and kept away with the relay of their database.
 *
 * The order that loses no wake-up: the publisher makes its commit visible,
 * counts it in slot->commits (a full barrier), then looks at slot->sleeping;
 * the relay sets slot->sleeping, passes a barrier, then looks at
 * slot->commits. At least one of the two sees the other.
 *
 * A mark made in a subtransaction that is rolled back stays. That is harmless
 * because no mark decides anything: the one who is woken looks for messages,
 * and "start", "restart" and "stop" all make a relay or the launcher look
 * again whether the database has the extension.
 *
 * All functions do nothing when the library was not preloaded.
 */
#ifndef OUTBOX_WAKEUP_H
#define OUTBOX_WAKEUP_H

/* From _PG_init. */
extern void wakeup_install(void);

/* This transaction stored a message: wake the relay when it commits. */
extern void wakeup_mark_published(void);

/* This transaction changed what the relay has to read again (pause, resume). */
extern void wakeup_mark_control(void);

/*
 * This transaction gave the decider something to do, or changed what the
 * workers of a subscription have to know: they look again at commit. If there
 * is none yet, the relay looks whether one is needed.
 */
extern void wakeup_mark_decider(void);
extern void wakeup_mark_inbox(int32 subscription);

/* This transaction may have changed anything that side workers have to know. */
extern void wakeup_mark_side_workers(void);

/*
 * This transaction made the extension, or changed something that may want a
 * relay (dboid) started anew: the launcher looks at it at commit.
 */
extern void wakeup_mark_start(Oid dboid);

/*
 * This transaction changed settings of dboid (InvalidOid: of all databases):
 * its workers restart at commit.
 */
extern void wakeup_mark_restart(Oid dboid);

/* This transaction dropped the extension of dboid: its workers end at commit. */
extern void wakeup_mark_stop(Oid dboid);

/*
 * This transaction keeps the workers of dboid away until it ends, either way
 * (DROP DATABASE and its kin). Stops running ones and waits, at most
 * timeout_ms, until they have left. False if one has not.
 *
 * The caller holds a lock on the database that keeps new connections out
 * (ShareLock or stronger): a worker that is just starting and waits for that
 * lock is not in the way and not waited for.
 */
extern bool wakeup_suspend(Oid dboid, int timeout_ms);

#endif							/* OUTBOX_WAKEUP_H */
