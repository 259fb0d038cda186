/*
 * cursor.h
 *	  Which messages are next, and in which order.
 *
 * A bound says what had been published at a moment. The rows visible at one
 * bound and not at an earlier one are a batch; a batch is sent in id order.
 * Everything here is about two bounds and the rows between them, so that any
 * number of cursors (the main one, a held lane's) can use it side by side.
 */
#ifndef OUTBOX_CURSOR_H
#define OUTBOX_CURSOR_H

#include "executor/tuptable.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

#include "catalog.h"
#include "xid_snapshot.h"

/*
 * A moment. Rows of transactions that snapshot sees are before it. Rows with
 * xid >= next_xid have ids above tail_id; rows before it have ids up to max_id.
 * Shared between those who keep it: counted, see cursor_bound_release().
 */
typedef struct CursorBound
{
	XidSnapshot *snapshot;
	uint64		next_xid;
	int64		tail_id;
	int64		max_id;
	int			references;
} CursorBound;

/*
 * A lock that is not to be had at once: the relay gives up and tries again
 * later, because waiting with other locks held it could become half of a
 * deadlock; a session that looks waits, like any query.
 */
typedef enum CursorLocking
{
	CURSOR_NO_WAIT,
	CURSOR_WAIT
} CursorLocking;

extern bool cursor_lock(Oid relation, LOCKMODE mode, CursorLocking locking);

/*
 * Take the bound of now. Inside a transaction. The result lives in context;
 * one reference is the caller's. NULL: the sequence is locked or gone. Before
 * cursor_tables_open(), which leaves out what is empty by then.
 */
extern CursorBound *cursor_bound_take(const OutboxCatalog *catalog,
									  CursorLocking locking,
									  MemoryContext context);

/* A bound from its stored parts; takes over snapshot, same context rules. */
extern CursorBound *cursor_bound_make(XidSnapshot *snapshot, uint64 next_xid,
									  int64 tail_id, int64 max_id,
									  MemoryContext context);
extern CursorBound *cursor_bound_share(CursorBound *bound);
extern void cursor_bound_release(CursorBound *bound);

/* Highest id drawn from the sequence so far; 0 for a fresh one. */
extern int64 cursor_highest_id(const OutboxCatalog *catalog);

/* The leaves of outbox.message, open and locked in ACCESS SHARE mode. */
typedef struct CursorTables
{
	Relation	leaf[OUTBOX_SEGMENTS];	/* NULL: empty, nothing to read */
	Relation	id_index[OUTBOX_SEGMENTS];
	Relation	xid_index[OUTBOX_SEGMENTS];
} CursorTables;

/*
 * Open them. What is empty is left out, so the bounds to read up to must have
 * been taken before. False: one was not to be had, or
 * is gone; nothing is left open. Locks are kept to the transaction's end.
 * only_segment < 0: all.
 */
extern bool cursor_tables_open(CursorTables *tables,
							   const OutboxCatalog *catalog,
							   CursorLocking locking, int only_segment);
extern void cursor_tables_close(CursorTables *tables);

typedef struct CursorRow
{
	int64		id;
	uint64		xid;
	int			segment;
	TupleTableSlot *slot;		/* the message; valid until the next call */
} CursorRow;

typedef struct CursorScan CursorScan;

/*
 * Start reading the rows of upper that are not in lower, with id > position,
 * in id order. snapshot must not be older than upper and stay registered or
 * active while the scan is open. Allocates in the current context.
 */
extern CursorScan *cursor_scan_begin(const CursorTables *tables,
									 const CursorBound *lower,
									 const CursorBound *upper,
									 int64 position, Snapshot snapshot);
extern bool cursor_scan_next(CursorScan *scan, CursorRow *row);
extern void cursor_scan_end(CursorScan *scan);

#endif							/* OUTBOX_CURSOR_H */
