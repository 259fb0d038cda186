/*
 * decider.h
 *	  What the decider does with outbox.confirmation, in statements. See
 *	  decider.c for when.
 *
 * All of them run a transaction of their own and end outside of any; results
 * are in the current context. Rows that another session has locked are passed
 * over: who has one is deciding about it.
 */
#ifndef OUTBOX_DECIDER_H
#define OUTBOX_DECIDER_H

#include "datatype/timestamp.h"

#include "shmem.h"

/* When there is something to do next; 0: never. */
typedef struct DeciderDue
{
	bool		any;			/* rows at all, but for restored ones */
	bool		unacknowledged; /* messages whose deadline is not known yet */
	TimestampTz expire_at;
	TimestampTz call_at;
	TimestampTz remove_at;
} DeciderDue;

/* False: the table is locked, or gone. */
extern bool decider_due(DeciderDue *due);

/* Deadlines of messages that are acknowledged by now. How many were set. */
extern uint64 decider_acknowledge(void);

/* Decide what has expired. How many did; full: there may be more. */
extern uint64 decider_expire(bool *full);

/* Remove what was completed long ago. The same. */
extern uint64 decider_remove(bool *full);

/*
 * Call one function that is due, in decider_call.c. False: none is, or those
 * that are are locked.
 */
extern bool decider_call(SideSlot *slot);

/* A transaction of the decider; false: the table is locked, or gone. */
extern bool decider_begin(void);
extern void decider_commit(void);

/* A statement in one. Results are SPI_tuptable and SPI_processed. */
extern void decider_execute(const char *text, int nargs, const Oid *types, Datum *values);

#endif							/* OUTBOX_DECIDER_H */
