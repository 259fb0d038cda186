/*
 * relay_held_leftover.c
 *	  What the main producer still had of a lane when it was held.
 *
 * librdkafka goes on trying, and its reports say when the lane answers again.
 * These leftovers are remembered by their tags, so that what arrives after all
 * is not sent a second time when the lane's cursor comes to it. But what has
 * arrived in a partition behind something that has not is sent a second time:
 * only a topic that was made anew takes it, and readers are to see all of it in
 * order once.
 */
#include "postgres.h"

#include "nodes/bitmapset.h"

#include "relay_discard.h"
#include "relay_held.h"

static bool
is_in(const WindowEntry *entry, const RelayTopic *topic, int partition)
{
	return entry->topic == topic &&
		(partition == HELD_WHOLE_TOPIC || entry->partition == partition);
}

void
relay_held_take_leftovers(Relay *relay, RelayHeld *held)
{
	uint64		next = window_next_tag(relay->window);
	uint64		tag = window_oldest_tag(relay->window);
	int			count = 0;

	for (uint64 t = tag; t < next; t++)
		count += is_in(window_entry(relay->window, t), held->topic, held->lane.partition);
	if (count == 0)
		return;
	held->leftovers = MemoryContextAlloc(relay->context, sizeof(RelayLeftover) * count);
	for (uint64 t = tag; t < next; t++)
	{
		const WindowEntry *entry = window_entry(relay->window, t);
		RelayLeftover *leftover;

		if (!is_in(entry, held->topic, held->lane.partition))
			continue;
		leftover = &held->leftovers[held->nleftovers++];
		leftover->tag = t;
		leftover->id = entry->id;
		leftover->bytes = entry->bytes;
		leftover->partition = entry->partition;
		leftover->acknowledged = leftover->reported = entry->acknowledged;
		if (!entry->acknowledged)
		{
			held->unreported++;
			held->lane.waiting++;
		}
	}
	for (int i = 0; i < held->nleftovers; i++)
	{
		if (!held->leftovers[i].acknowledged)
			relay->passed_count++;
		window_acknowledge(relay->window, held->leftovers[i].tag);
	}
	if (held->topic == relay->unproven &&
		(held->lane.partition == HELD_WHOLE_TOPIC ||
		 held->lane.partition == relay->unproven_partition))
		relay->unproven = NULL;
}

RelayLeftover *
relay_held_leftover(const RelayHeld *held, uint64 tag)
{
	int			low = 0;
	int			high = held->nleftovers - 1;

	while (low <= high)
	{
		int			middle = low + (high - low) / 2;
		RelayLeftover *leftover = &held->leftovers[middle];

		if (leftover->tag == tag)
			return leftover;
		if (leftover->tag < tag)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return NULL;
}

static int
compare_ids(const void *a, const void *b)
{
	int64		ia = *(const int64 *) a;
	int64		ib = *(const int64 *) b;

	return ia < ib ? -1 : (ia > ib ? 1 : 0);
}

void
relay_held_settle_leftovers(Relay *relay, RelayHeld *held)
{
	Bitmapset  *gaps = NULL;

	if (held->unreported > 0)
		discard_doubt(relay);
	held->unreported = 0;
	held->narrived = 0;
	if (held->nleftovers == 0)
		return;
	if (held->arrived == NULL)
		held->arrived = MemoryContextAlloc(relay->context,
										   sizeof(int64) * held->nleftovers);
	for (int i = 0; i < held->nleftovers; i++)
	{
		const RelayLeftover *leftover = &held->leftovers[i];

		if (!leftover->acknowledged)
			gaps = bms_add_member(gaps, leftover->partition);
		else if (!bms_is_member(leftover->partition, gaps))
			held->arrived[held->narrived++] = leftover->id;
	}
	bms_free(gaps);
	qsort(held->arrived, held->narrived, sizeof(int64), compare_ids);
}

bool
relay_held_was_delivered(const RelayHeld *held, int64 id)
{
	return bsearch(&id, held->arrived, held->narrived, sizeof(int64), compare_ids) != NULL;
}
