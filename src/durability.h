/*
 * durability.h
 *	  Visible is not durable: nothing is sent before its commit is flushed,
 *	  with wait_for_standby also on the synchronous standby.
 */
#ifndef OUTBOX_DURABILITY_H
#define OUTBOX_DURABILITY_H

#include "access/xlogdefs.h"

/*
 * Where the WAL ends that has been written so far, as a position that can be
 * flushed. Every commit that a snapshot taken before the call shows is before
 * it.
 */
extern XLogRecPtr durability_position(void);

/*
 * Whether the message of xid (visible, top-level, 64 bits) may be sent. Its
 * commit is on the local disk when this returns. all_before is a
 * durability_position() taken after the commit had become visible. False only
 * with wait_for_standby: the synchronous standby has not flushed that much yet.
 * Inside a transaction.
 */
extern bool durability_ensure(uint64 xid, XLogRecPtr all_before);

/* Whether the synchronous standby has flushed the WAL up to position. */
extern bool durability_on_standby(XLogRecPtr position);

/*
 * What durability_on_standby() may have to wait for, in the current context:
 * the rest of a sentence about the standby.
 */
extern char *durability_standby_problem(XLogRecPtr position);

#endif							/* OUTBOX_DURABILITY_H */
