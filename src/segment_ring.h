/*
 * segment_ring.h
 *	  Moving publishing on to the next segment, and emptying delivered ones.
 */
#ifndef OUTBOX_SEGMENT_RING_H
#define OUTBOX_SEGMENT_RING_H

#include "datatype/timestamp.h"

#include "catalog.h"
#include "cursor.h"

typedef struct SegmentRing SegmentRing;

/* Read outbox.segment. Inside a transaction; the result lives in context. */
extern SegmentRing *segment_ring_load(const OutboxCatalog *catalog,
									  MemoryContext context);

extern int	segment_ring_current(const SegmentRing *ring);

/* How many segments were emptied since it was loaded. */
extern uint64 segment_ring_emptied(const SegmentRing *ring);

/*
 * Room is scarce: segments are left and emptied as soon as that is possible,
 * whatever segment_size and retention say.
 */
extern void segment_ring_hurry(SegmentRing *ring, bool hurry);

/*
 * Do what is due: turn the ring, note which segments are delivered, empty
 * those whose retention is over. Runs transactions of its own, none of which
 * waits for a lock. done covers what is delivered. Returns when to come again,
 * or 0 when nothing is stored in any segment.
 */
extern TimestampTz segment_ring_maintain(SegmentRing *ring,
										 const CursorBound *done);

#endif							/* OUTBOX_SEGMENT_RING_H */
