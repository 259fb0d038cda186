/*
 * relay_backlog.c
 *	  Measuring what is on disk, for the limit to it (backlog.c).
 *
 * About once a second while somebody publishes under a limit, and while half
 * of the limit is taken; never while idle. With half of it taken, what is
 * delivered is given up at once, whatever the retention: the segments are
 * turned and emptied every second.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "backlog.h"
#include "relay_internal.h"

#define MEASURE_INTERVAL_MS 1000

static void
measure(Relay *relay, TimestampTz now)
{
	const OutboxCatalog *catalog;

	/* what is published from here on wants another look */
	pg_atomic_write_u32(&relay->slot->backlog_wanted, 0);
	pg_memory_barrier();

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog != NULL)
	{
		uint64		size = backlog_measure(catalog);

		pg_atomic_write_u64(&relay->slot->backlog, size);
		relay->backlog_tight = backlog_limit() > 0 && size >= backlog_limit() / 2;
	}
	relay_commit(relay);
	relay->backlog_at = now;
}

void
relay_backlog(Relay *relay, TimestampTz now)
{
	bool		wanted = relay->backlog_tight ||
	pg_atomic_read_u32(&relay->slot->backlog_wanted) != 0 ||
	(relay->backlog_at == 0 && backlog_limit() > 0);

	relay->backlog_due = 0;
	if (!wanted)
		return;
	if (relay->backlog_at == 0 ||
		TimestampDifferenceExceeds(relay->backlog_at, now, MEASURE_INTERVAL_MS))
	{
		measure(relay, now);
		segment_ring_hurry(relay->ring, relay->backlog_tight);
		if (!relay->backlog_tight)
			return;
		relay->ring_due = now;
	}
	relay->backlog_due = TimestampTzPlusMilliseconds(relay->backlog_at,
													 MEASURE_INTERVAL_MS);
}
