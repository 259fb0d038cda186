/*
 * side_wanted.h
 *	  Which side workers a database needs: asked by its relay, answered by
 *	  those who know the tables.
 *
 * Both are called in a transaction with an active snapshot, as the bootstrap
 * superuser, with an empty search_path. They must not wait for a lock
 * (catalog_lock_now() would raise, so ConditionalLockRelationOid): a relay
 * that waits sends nothing.
 */
#ifndef OUTBOX_SIDE_WANTED_H
#define OUTBOX_SIDE_WANTED_H

#include "side_slot.h"

/*
 * The inbox workers of all subscriptions that should be served, palloc'd.
 * Returns their number; -1: a table is locked, ask again later. In
 * inbox_wanted.c.
 */
extern int	inbox_wanted(SideWanted **wanted);

/*
 * Whether there is something to decide, now or at some time: 1 or 0; -1: a
 * table is locked, ask again later. In decider_wanted.c.
 */
extern int	decider_wanted(void);

#endif							/* OUTBOX_SIDE_WANTED_H */
