/*
 * durability.h
 *	  Visible is not durable: nothing is sent before its commit is flushed.
 */
#ifndef OUTBOX_DURABILITY_H
#define OUTBOX_DURABILITY_H

#include "access/xlogdefs.h"

/*
 * Return when the commit of xid (visible, top-level, 64 bits) is on disk.
 * all_before is a WAL position that was the insert position after the commit
 * became visible; when the WAL is flushed beyond it no further question is
 * asked. Inside a transaction.
 */
extern void durability_ensure(uint64 xid, XLogRecPtr all_before);

#endif							/* OUTBOX_DURABILITY_H */
