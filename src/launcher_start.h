/*
 * launcher_start.h
 *	  Starting workers of any kind, and seeing what becomes of them. For
 *	  launcher.c only.
 */
#ifndef OUTBOX_LAUNCHER_START_H
#define OUTBOX_LAUNCHER_START_H

#include "datatype/timestamp.h"

/* What launcher_start_worker() came to. */
typedef enum StartResult
{
	START_DONE,					/* or not to be tried just now */
	START_SOON,					/* something will wake us to try again */
	START_NO_WORKER				/* no background worker slot is free */
} StartResult;

extern void launcher_start_init(void);

/*
 * Register the worker of a slot in phase SLOT_WANTED; number as in
 * shmem_worker(). Unless that succeeds the slot is as it was.
 */
extern StartResult launcher_start_worker(int number, const char *database,
										 TimestampTz now);

/* Nothing can be started before; 0: it can. */
extern TimestampTz launcher_start_retry_at(void);

/* Whether the last worker of that number is gone for the postmaster, too. */
extern bool launcher_start_is_reaped(int number);

/*
 * See how the worker of a slot gets on. Sets *under_way if it is just starting
 * and the next start should wait for it. Returns when to look again if nothing
 * wakes us before, 0: never. To be called for all slots in turn, after
 * launcher_start_follow_begin().
 */
extern void launcher_start_follow_begin(void);
extern TimestampTz launcher_start_follow(int number, TimestampTz now,
										 bool *under_way);

#endif							/* OUTBOX_LAUNCHER_START_H */
