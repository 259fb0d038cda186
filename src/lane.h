/*
 * lane.h
 *	  Which partition a message goes to.
 *
 * A lane is one partition of one topic, the unit whose order matters. The
 * answer depends on the message and the number of partitions alone, so that
 * whoever asks, whenever, finds a message in the same lane.
 */
#ifndef OUTBOX_LANE_H
#define OUTBOX_LANE_H

#include "executor/tuptable.h"

/*
 * The partition of a row of outbox.message (a slot of that shape), given the
 * topic's number of partitions. A partition that the publisher asked for is
 * returned as it is, also if there is none such.
 */
extern int	lane_of_message(TupleTableSlot *slot, int partitions);

#endif							/* OUTBOX_LANE_H */
