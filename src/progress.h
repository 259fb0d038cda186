/*
 * progress.h
 *	  What is delivered, on disk: outbox.relay_state and outbox.relay_position.
 */
#ifndef OUTBOX_PROGRESS_H
#define OUTBOX_PROGRESS_H

#include "utils/uuid.h"

#include "catalog.h"
#include "cursor.h"
#include "row_place.h"

typedef enum ProgressResult
{
	PROGRESS_OK,
	PROGRESS_BUSY,				/* a lock was not to be had: try again */
	PROGRESS_MISSING,			/* no row: somebody deleted it */
	PROGRESS_FOREIGN			/* written in another database or copied
								 * logically: must not be followed */
} ProgressResult;

/* done: delivered. batch, if any: being delivered, up to position. */
typedef struct Progress
{
	CursorBound *done;
	CursorBound *batch;			/* or NULL */
	int64		position;
	bool		has_nonce;		/* of the batch's definition, see
								 * relay_transaction.c */
	pg_uuid_t	nonce;
} Progress;

/*
 * Read the progress of a cursor as committed now; bounds in context, their
 * references the caller's. Inside a transaction. Anybody may.
 */
extern ProgressResult progress_read(const OutboxCatalog *catalog, int cursor_id,
									CursorLocking locking, Progress *progress,
									MemoryContext context);

/* The error for PROGRESS_MISSING. Does not return. */
extern void progress_raise_missing(void);

/* Does it cover this message? */
extern bool progress_covers(const Progress *progress, uint64 xid, int64 id);

/* Where the writer of a cursor wrote its rows last; zeroed at first. */
typedef struct ProgressPlace
{
	RowPlace	state;
	RowPlace	position;
} ProgressPlace;

/*
 * Write it, as the only writer of that cursor. Inside a transaction, which
 * gets an xid by it; the caller commits. state: also the bounds, else only the
 * position. Never waits for a lock.
 */
extern ProgressResult progress_write(const OutboxCatalog *catalog,
									 int cursor_id, ProgressPlace *place,
									 const Progress *progress, bool state);

/* Enter a cursor, and take it out. The same rules; the locks are held. */
extern void progress_insert(const OutboxCatalog *catalog, int cursor_id,
							const Progress *progress);
extern void progress_delete(const OutboxCatalog *catalog, int cursor_id);

#endif							/* OUTBOX_PROGRESS_H */
