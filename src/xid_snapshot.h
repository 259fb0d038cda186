/*
 * xid_snapshot.h
 *	  Which top-level transactions had ended at a moment: a snapshot that can
 *	  be kept, stored as pg_snapshot and compared later, at 64 bits.
 */
#ifndef OUTBOX_XID_SNAPSHOT_H
#define OUTBOX_XID_SNAPSHOT_H

#include "utils/snapshot.h"

typedef struct XidSnapshot
{
	uint64		xmin;			/* all below have ended */
	uint64		xmax;			/* none from here on has ended */
	int			nxip;
	uint64		xip[FLEXIBLE_ARRAY_MEMBER]; /* running, sorted, unique */
} XidSnapshot;

/* From an MVCC snapshot just taken; palloc'd in the current context. */
extern XidSnapshot *xid_snapshot_from(Snapshot snapshot);

/* True if the transaction had ended: its rows, if it committed, are visible. */
extern bool xid_snapshot_sees(const XidSnapshot *snapshot, uint64 xid);

/* To and from the type pg_snapshot; results in the current context. */
extern XidSnapshot *xid_snapshot_from_datum(Datum value);
extern Datum xid_snapshot_to_datum(const XidSnapshot *snapshot);

#endif							/* OUTBOX_XID_SNAPSHOT_H */
