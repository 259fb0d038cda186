/*
 * held.h
 *	  Lanes that are held, as they stand in outbox.held_lane.
 *
 * A held lane is a partition, or a whole topic, that cannot be sent to while
 * others can. It has a cursor of its own (a row in outbox.relay_state and one
 * in outbox.relay_position), which stays where the lane stopped; the main
 * cursor passes over its messages.
 */
#ifndef OUTBOX_HELD_H
#define OUTBOX_HELD_H

#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "nodes/pg_list.h"

#include "catalog.h"
#include "cursor.h"
#include "outbox_kafka.h"
#include "progress.h"

#define HELD_WHOLE_TOPIC (-1)
#define HELD_ERROR_LENGTH 256

typedef enum HeldReason
{
	HELD_NO_ANSWER,				/* no acknowledgement while others had some */
	HELD_REFUSED,				/* unknown to the broker, or forbidden */
	HELD_PAUSED,				/* outbox.pause(topic) */
	HELD_ISOLATED				/* a batch of it was refused */
} HeldReason;

typedef struct HeldLane
{
	int			cursor_id;
	char		topic[OUTBOX_TOPIC_MAX_LENGTH + 3];
	int			partition;		/* or HELD_WHOLE_TOPIC */
	int			partitions;		/* that the topic had; 0 for a whole topic */
	TimestampTz since;
	HeldReason	reason;
	char		error[HELD_ERROR_LENGTH];	/* or "" */
	int64		waiting;		/* messages passed over and not delivered */
} HeldLane;

/*
 * All of them, as committed now: a list of HeldLane in context. False: the
 * table is locked or gone. Inside a transaction.
 */
extern bool held_read(const OutboxCatalog *catalog, CursorLocking locking,
					  List **lanes, MemoryContext context);

/*
 * The one that a message belongs to, or NULL. A partition's own goes before
 * its topic's.
 */
extern HeldLane *held_find(List *lanes, TupleTableSlot *slot);

/* Whether a message of the lane's topic is in the lane itself. */
extern bool held_contains(const HeldLane *lane, TupleTableSlot *slot);

/*
 * Whether a message is delivered, by the progress on disk of the cursor that
 * it belongs to. slot is of outbox.message's shape. Memory of the current
 * context is used up. What is parked counts as delivered here.
 */
extern bool held_or_main_delivered(const OutboxCatalog *catalog,
								   uint64 xid, int64 id, TupleTableSlot *slot);

/*
 * For the relay: enter a lane with where its cursor starts, take it out with
 * its cursor, store how many wait and why. False: a lock was not to be had,
 * and nothing is written; held_lock() takes all of them beforehand. Inside a
 * transaction.
 */
extern bool held_lock(const OutboxCatalog *catalog);
extern bool held_insert(const OutboxCatalog *catalog, const HeldLane *lane,
						const Progress *start);
extern bool held_delete(const OutboxCatalog *catalog, const HeldLane *lane);
extern bool held_update(const OutboxCatalog *catalog, const HeldLane *lane);

#endif							/* OUTBOX_HELD_H */
