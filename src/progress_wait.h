/*
 * progress_wait.h
 *	  Waiting in a backend for what the workers of its database do.
 */
#ifndef OUTBOX_PROGRESS_WAIT_H
#define OUTBOX_PROGRESS_WAIT_H

#include "datatype/timestamp.h"

/* When a wait that begins now is over. */
extern TimestampTz progress_wait_end(const Interval *timeout);

/*
 * Ask is_over(arg) until it is true, or until end; at first, each time the relay
 * has stored progress or something was decided, and once a second in any case.
 * Errors and interrupts of is_over, and cancelling, end it. No snapshot is held
 * in between.
 */
extern void progress_wait(bool (*is_over) (void *arg), void *arg, TimestampTz end,
						  uint32 wait_event);

#endif							/* OUTBOX_PROGRESS_WAIT_H */
