/*
 * relay_held_progress.c
 *	  What held lanes have on disk.
 *
 * The progress of their cursors is stored like the main one's (see
 * relay_progress.c), in the same transactions; how many messages wait, and why,
 * about once a second while that changes.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "due.h"
#include "relay_held.h"

#define STORE_INTERVAL_MS 100
#define UPDATE_INTERVAL_MS 1000

void
relay_held_note_stored(RelayHeld *held)
{
	Progress	progress = window_progress(held->window);

	if (held->stored_done)
		cursor_bound_release(held->stored_done);
	if (held->stored_batch)
		cursor_bound_release(held->stored_batch);
	held->stored_done = cursor_bound_share(progress.done);
	held->stored_batch = progress.batch ? cursor_bound_share(progress.batch) : NULL;
	held->stored_delivered = window_delivered(held->window);
	held->stored_at = GetCurrentTimestamp();
}

static bool
has_progress(const RelayHeld *held)
{
	Progress	progress = window_progress(held->window);

	return window_delivered(held->window) != held->stored_delivered ||
		progress.done != held->stored_done;
}

TimestampTz
relay_held_progress_due(const Relay *relay, bool at_once)
{
	TimestampTz due = 0;
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		const RelayHeld *held = (const RelayHeld *) lfirst(lc);

		if (held->changed)
			due = due_sooner(due, TimestampTzPlusMilliseconds(held->updated_at,
															  UPDATE_INTERVAL_MS));
		if (has_progress(held) || held->define)
			due = due_sooner(due, at_once ? held->stored_at :
							 TimestampTzPlusMilliseconds(held->stored_at, STORE_INTERVAL_MS));
	}
	return due;
}

bool
relay_held_progress_write(Relay *relay, const OutboxCatalog *catalog, TimestampTz now)
{
	OutboxCatalog copy = *catalog;
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		if (has_progress(held) || held->define)
		{
			Progress	progress = window_progress(held->window);
			ProgressResult result;

			result = progress_write(&copy, held->lane.cursor_id, &held->place, &progress,
									progress.done != held->stored_done ||
									progress.batch != held->stored_batch || held->define);
			held->define = false;
			if (result == PROGRESS_MISSING)
				progress_raise_missing();
			if (result != PROGRESS_OK)
				return false;
			relay_held_note_stored(held);
		}
		if (held->changed &&
			TimestampDifferenceMilliseconds(held->updated_at, now) >= UPDATE_INTERVAL_MS)
		{
			if (!held_update(&copy, &held->lane))
				return false;
			held->changed = false;
			held->updated_at = now;
		}
	}
	return true;
}

/* Bounds of one history: the later one shows all that the earlier one shows. */
static bool
is_earlier(const CursorBound *a, const CursorBound *b)
{
	if (a->next_xid != b->next_xid)
		return a->next_xid < b->next_xid;
	if (a->snapshot->xmax != b->snapshot->xmax)
		return a->snapshot->xmax < b->snapshot->xmax;
	/* with the same range, the earlier one lists more as running */
	return a->snapshot->nxip > b->snapshot->nxip;
}

const CursorBound *
relay_held_oldest(const Relay *relay, const CursorBound *done)
{
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		const CursorBound *bound =
		window_progress(((const RelayHeld *) lfirst(lc))->window).done;

		if (is_earlier(bound, done))
			done = bound;
	}
	return done;
}
