/*
 * segment_choice.h
 *	  Which segment of the ring new messages are written to.
 */
#ifndef OUTBOX_SEGMENT_CHOICE_H
#define OUTBOX_SEGMENT_CHOICE_H

/*
 * The current segment, 0 to OUTBOX_SEGMENTS - 1: what the relay says in shared
 * memory, else what stands in outbox.segment. May be out of date by the time
 * it is used, which is harmless: the relay reads all segments. Needs a
 * transaction.
 */
extern int	segment_current(void);

#endif							/* OUTBOX_SEGMENT_CHOICE_H */
