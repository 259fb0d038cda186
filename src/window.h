/*
 * window.h
 *	  Messages handed to the broker and not all acknowledged yet, in the order
 *	  they were sent, and the batches they belong to.
 *
 * Acknowledgements come in any order; what counts as delivered is the prefix
 * without a gap. From it follows the progress to store.
 */
#ifndef OUTBOX_WINDOW_H
#define OUTBOX_WINDOW_H

#include "datatype/timestamp.h"

#include "cursor.h"
#include "progress.h"

typedef struct WindowEntry
{
	int64		id;
	TimestampTz created_at;
	uint32		bytes;
	int			partition;
	void	   *topic;			/* the caller's */
	bool		acknowledged;
} WindowEntry;

typedef struct Window Window;

/*
 * Room for capacity messages. Allocates in context, also later on. start is
 * the stored progress, whose references pass to the window.
 */
extern Window *window_create(int capacity, const Progress *start,
							 MemoryContext context);
extern void window_destroy(Window *window);
extern void window_resize(Window *window, int capacity);

/* Forget what is not acknowledged; it is to be read again. */
extern void window_reset(Window *window);

/* The bound below which everything has been read (sent or delivered). */
extern CursorBound *window_read_bound(const Window *window);

/*
 * The batch being read, with the id up to which it was read; NULL when the
 * last one was read to its end.
 */
extern CursorBound *window_open_batch(const Window *window, int64 *position);

/*
 * The newest bound that a batch was opened with, whether or not it has been
 * read: another cursor may read up to it. And whether that batch is being read.
 */
extern CursorBound *window_newest_bound(const Window *window);
extern bool window_is_reading(const Window *window);

/* A new batch is read from now on; takes over the reference. */
extern void window_begin_batch(Window *window, CursorBound *batch);

/* The batch was read to its end. */
extern void window_end_batch(Window *window);

extern bool window_is_full(const Window *window);
extern int	window_in_flight(const Window *window);
extern uint64 window_in_flight_bytes(const Window *window);

/* acknowledged behind a gap: they would be sent again after a reset */
extern int	window_acknowledged_out_of_order(const Window *window);

/* The tag of the message that is sent next, for window_acknowledge(). */
extern uint64 window_next_tag(const Window *window);

/* Up to this id, nothing that was read in the open batch was for this cursor. */
extern void window_passed(Window *window, int64 id);

/* That message was sent. The window must not be full. */
extern void window_sent(Window *window, const WindowEntry *entry);

/* The tag of the oldest one not delivered; equal to the next one if none is. */
extern uint64 window_oldest_tag(const Window *window);

/*
 * Exactly once: what is acknowledged counts as delivered when its transaction
 * is committed, not before. Nothing is in the window when this is changed.
 */
extern void window_set_transactional(Window *window, bool transactional);

/* The transaction is committed: all in the window is delivered. */
extern void window_commit(Window *window);

/* What was read last in the open batch; that of a batch read to its end. */
extern int64 window_read_position(const Window *window);

/*
 * The oldest batch has a definition with this nonce; without a nonce it has
 * none. window_nonce(): whether it has one, and which.
 */
extern void window_define(Window *window, const pg_uuid_t *nonce);
extern bool window_nonce(const Window *window, pg_uuid_t *nonce);

/* In the oldest batch more is delivered than was known. The window is empty. */
extern void window_skip_to(Window *window, int64 position);

/* The oldest one that is not acknowledged, or NULL. Reads all entries. */
extern const WindowEntry *window_oldest_unacknowledged(const Window *window);

/* The entry of a tag that is in flight, else NULL. */
extern WindowEntry *window_entry(Window *window, uint64 tag);
extern void window_acknowledge(Window *window, uint64 tag);

/*
 * Messages delivered without a gap since the window was made, and the highest
 * id among them.
 */
extern uint64 window_delivered(const Window *window);
extern int64 window_highest_delivered(const Window *window);

/* Whether a message is, which was sent after the last reset. */
extern bool window_has_delivered(const Window *window, uint64 tag);

/* The oldest one not delivered, or NULL. */
extern const WindowEntry *window_oldest(const Window *window);

/* What to store: valid until the window changes. Nothing is handed over. */
extern Progress window_progress(const Window *window);

#endif							/* OUTBOX_WINDOW_H */
