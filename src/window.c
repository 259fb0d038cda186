/*
 * window.c
 *	  Messages in flight and the batches they belong to.
 *
 * A ring of entries, addressed by tag: the number of the message since the
 * window was made. head is the first one that is not acknowledged; what lies
 * before it is delivered. Batches stand in a queue; the first one that is not
 * wholly delivered and the id before head are the progress to store. Several
 * batches can be in flight: at a thousand transactions a second each of them
 * is a batch, and waiting for one before reading the next would cost a round
 * trip to the broker each.
 *
 * A batch that turned out to be empty moves the end of the one before it: no
 * row lies between the two bounds, so delivering the one delivers both, and
 * the queue is never longer than the ring.
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"

#include "window.h"

typedef struct Batch
{
	dlist_node	node;
	CursorBound *bound;			/* its definition */
	CursorBound *end;			/* what done becomes when it is delivered */
	uint64		first_tag;
	uint64		end_tag;		/* after its last message, when complete */
	int64		start_position; /* delivered before the window was (re)made */
	bool		complete;
	bool		has_nonce;
	pg_uuid_t	nonce;
} Batch;

struct Window
{
	MemoryContext context;
	WindowEntry *ring;
	int			ring_size;		/* a power of two >= capacity */
	int			capacity;
	uint64		head;			/* first tag not acknowledged */
	uint64		delivered;		/* messages, since the window was made */
	uint64		next;			/* tag of the next message */
	bool		transactional;	/* head waits for window_commit() */
	int			acknowledged;	/* between head and next */
	uint64		bytes;			/* between head and next */
	int64		highest_delivered;
	CursorBound *done;
	dlist_head	batches;
	int64		read_position;	/* of the open batch */
	int64		head_position;	/* id of the entry before head */
};

/* dlist's functions do not know const */
static inline dlist_head *
queue(const Window *window)
{
	return unconstify(dlist_head *, &window->batches);
}

static Batch *
last_batch(const Window *window)
{
	if (dlist_is_empty(queue(window)))
		return NULL;
	return dlist_tail_element(Batch, node, queue(window));
}

static Batch *
first_batch(const Window *window)
{
	if (dlist_is_empty(queue(window)))
		return NULL;
	return dlist_head_element(Batch, node, queue(window));
}

/* NULL for the first one. */
static Batch *
previous_batch(const Window *window, Batch *batch)
{
	if (!dlist_has_prev(queue(window), &batch->node))
		return NULL;
	return dlist_container(Batch, node, batch->node.prev);
}

static Batch *
push_batch(Window *window, CursorBound *bound)
{
	Batch	   *batch = MemoryContextAllocZero(window->context, sizeof(Batch));

	batch->bound = bound;
	batch->end = cursor_bound_share(bound);
	batch->first_tag = window->next;
	dlist_push_tail(&window->batches, &batch->node);
	return batch;
}

static void
drop_batch(Batch *batch)
{
	dlist_delete(&batch->node);
	cursor_bound_release(batch->bound);
	cursor_bound_release(batch->end);
	pfree(batch);
}

Window *
window_create(int capacity, const Progress *start, MemoryContext context)
{
	Window	   *window = MemoryContextAllocZero(context, sizeof(Window));

	window->context = context;
	window->done = start->done;
	dlist_init(&window->batches);
	window_resize(window, capacity);

	if (start->batch != NULL)
	{
		Batch	   *batch = push_batch(window, start->batch);

		batch->start_position = start->position;
		batch->has_nonce = start->has_nonce;
		batch->nonce = start->nonce;
		window->read_position = start->position;
		window->highest_delivered = start->position;
	}
	return window;
}

void
window_destroy(Window *window)
{
	while (first_batch(window) != NULL)
		drop_batch(first_batch(window));
	cursor_bound_release(window->done);
	pfree(window->ring);
	pfree(window);
}

/* Change how many may be in flight; what is in flight stays. */
void
window_resize(Window *window, int capacity)
{
	int			needed = Max(capacity, (int) (window->next - window->head));
	int			size = pg_nextpower2_32(Max(needed, 16));
	WindowEntry *ring;

	window->capacity = capacity;
	if (size == window->ring_size)
		return;

	ring = MemoryContextAllocHuge(window->context, sizeof(WindowEntry) * size);
	for (uint64 tag = window->head; tag < window->next; tag++)
		ring[tag & (size - 1)] = window->ring[tag & (window->ring_size - 1)];
	if (window->ring)
		pfree(window->ring);
	window->ring = ring;
	window->ring_size = size;
}

static inline WindowEntry *
entry_at(const Window *window, uint64 tag)
{
	return &window->ring[tag & (window->ring_size - 1)];
}

/* Where the first batch stands: the id up to which it is delivered. */
static int64
delivered_position(const Window *window, const Batch *batch)
{
	return window->head > batch->first_tag ?
		window->head_position : batch->start_position;
}

void
window_reset(Window *window)
{
	Batch	   *batch = first_batch(window);
	int64		position = batch ? delivered_position(window, batch) : 0;

	while (batch != NULL && last_batch(window) != batch)
		drop_batch(last_batch(window));
	if (batch != NULL)
	{
		/* read on in the first one; its end is not known any more */
		cursor_bound_release(batch->end);
		batch->end = cursor_bound_share(batch->bound);
		batch->start_position = position;
		batch->first_tag = window->next;
		batch->complete = false;
		window->read_position = position;
	}
	window->head = window->next;
	window->acknowledged = 0;
	window->bytes = 0;
}

CursorBound *
window_read_bound(const Window *window)
{
	Batch	   *batch = last_batch(window);
	Batch	   *previous;

	if (batch == NULL)
		return window->done;
	if (batch->complete)
		return batch->end;

	/* the open batch starts where the one before it, or done, ends */
	previous = previous_batch(window, batch);
	return previous ? previous->end : window->done;
}

CursorBound *
window_open_batch(const Window *window, int64 *position)
{
	Batch	   *batch = last_batch(window);

	if (batch == NULL || batch->complete)
		return NULL;
	*position = window->read_position;
	return batch->bound;
}

CursorBound *
window_newest_bound(const Window *window)
{
	Batch	   *batch = last_batch(window);

	if (batch == NULL)
		return window->done;
	return batch->complete ? batch->end : batch->bound;
}

bool
window_is_reading(const Window *window)
{
	Batch	   *batch = last_batch(window);

	return batch != NULL && !batch->complete;
}

void
window_begin_batch(Window *window, CursorBound *bound)
{
	Assert(last_batch(window) == NULL || last_batch(window)->complete);
	push_batch(window, bound);
	window->read_position = 0;
}

/* Batches at the front that are delivered become the new done. */
static void
retire_batches(Window *window)
{
	Batch	   *batch;

	while ((batch = first_batch(window)) != NULL &&
		   batch->complete && window->head >= batch->end_tag)
	{
		cursor_bound_release(window->done);
		window->done = cursor_bound_share(batch->end);
		drop_batch(batch);
	}
}

void
window_end_batch(Window *window)
{
	Batch	   *batch = last_batch(window);
	Batch	   *previous = previous_batch(window, batch);

	Assert(batch != NULL && !batch->complete);
	batch->complete = true;
	batch->end_tag = window->next;

	if (batch->first_tag == batch->end_tag && previous != NULL)
	{
		cursor_bound_release(previous->end);
		previous->end = cursor_bound_share(batch->end);
		drop_batch(batch);
	}
	retire_batches(window);
}

bool
window_is_full(const Window *window)
{
	return window->next - window->head >= (uint64) window->capacity;
}

int
window_in_flight(const Window *window)
{
	return (int) (window->next - window->head) - window->acknowledged;
}

uint64
window_in_flight_bytes(const Window *window)
{
	return window->bytes;
}

int
window_acknowledged_out_of_order(const Window *window)
{
	return window->acknowledged;
}

uint64
window_next_tag(const Window *window)
{
	return window->next;
}

void
window_passed(Window *window, int64 id)
{
	Batch	   *batch = last_batch(window);

	Assert(batch != NULL && !batch->complete);
	window->read_position = id;
	if (batch == NULL || window->head != window->next || first_batch(window) != batch)
		return;
	if (window->head > batch->first_tag)
		window->head_position = id;
	else
		batch->start_position = id;
}

void
window_sent(Window *window, const WindowEntry *entry)
{
	WindowEntry *place = entry_at(window, window->next);

	Assert(!window_is_full(window));
	*place = *entry;
	place->acknowledged = false;
	window->bytes += entry->bytes;
	window->read_position = entry->id;
	window->next++;
}

uint64
window_oldest_tag(const Window *window)
{
	return window->head;
}

WindowEntry *
window_entry(Window *window, uint64 tag)
{
	if (tag < window->head || tag >= window->next)
		return NULL;
	return entry_at(window, tag);
}

/* What is acknowledged without a gap is delivered. */
static void
advance(Window *window)
{
	WindowEntry *entry;

	while (window->head < window->next &&
		   (entry = entry_at(window, window->head))->acknowledged)
	{
		window->head_position = entry->id;
		window->highest_delivered = Max(window->highest_delivered, entry->id);
		window->bytes -= entry->bytes;
		window->acknowledged--;
		window->delivered++;
		window->head++;
	}
	retire_batches(window);
}

void
window_acknowledge(Window *window, uint64 tag)
{
	WindowEntry *entry = window_entry(window, tag);

	if (entry == NULL || entry->acknowledged)
		return;
	entry->acknowledged = true;
	window->acknowledged++;
	if (window->transactional)
	{
		/* it does not take memory of the producer's any more */
		window->bytes -= entry->bytes;
		entry->bytes = 0;
		return;
	}
	if (tag == window->head)
		advance(window);
}

void
window_set_transactional(Window *window, bool transactional)
{
	Assert(window->head == window->next);
	window->transactional = transactional;
}

void
window_commit(Window *window)
{
	Assert(window->acknowledged == (int) (window->next - window->head));
	advance(window);
}

int64
window_read_position(const Window *window)
{
	return window->read_position;
}

void
window_define(Window *window, const pg_uuid_t *nonce)
{
	Batch	   *batch = first_batch(window);

	if (batch == NULL)
		elog(ERROR, "there is no batch to define");
	batch->has_nonce = true;
	batch->nonce = *nonce;
}

bool
window_nonce(const Window *window, pg_uuid_t *nonce)
{
	Batch	   *batch = first_batch(window);

	if (batch == NULL || !batch->has_nonce)
		return false;
	*nonce = batch->nonce;
	return true;
}

void
window_skip_to(Window *window, int64 position)
{
	Batch	   *batch = first_batch(window);

	Assert(window->head == window->next && batch == last_batch(window));
	if (batch == NULL || position <= delivered_position(window, batch))
		return;
	batch->start_position = position;
	batch->first_tag = window->next;
	window->read_position = position;
	window->highest_delivered = Max(window->highest_delivered, position);
}

const WindowEntry *
window_oldest_unacknowledged(const Window *window)
{
	for (uint64 tag = window->head; tag < window->next; tag++)
		if (!entry_at(window, tag)->acknowledged)
			return entry_at(window, tag);
	return NULL;
}

uint64
window_delivered(const Window *window)
{
	return window->delivered;
}

bool
window_has_delivered(const Window *window, uint64 tag)
{
	return window->head > tag;
}

int64
window_highest_delivered(const Window *window)
{
	return window->highest_delivered;
}

const WindowEntry *
window_oldest(const Window *window)
{
	if (window->head == window->next)
		return NULL;
	return entry_at(window, window->head);
}

Progress
window_progress(const Window *window)
{
	Batch	   *batch = first_batch(window);
	Progress	progress = {.done = window->done};

	if (batch != NULL)
	{
		int64		position = delivered_position(window, batch);

		if (position > 0 || batch->has_nonce)
		{
			progress.batch = batch->bound;
			progress.position = position;
			progress.has_nonce = batch->has_nonce;
			progress.nonce = batch->nonce;
		}
	}
	return progress;
}
