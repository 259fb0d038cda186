/*
 * relay_held.c
 *	  Held lanes: what must not stop the others.
 *
 * When a partition does not answer while others do, or a topic is unknown,
 * forbidden or paused, the lane is held: it gets a cursor of its own that stays
 * where the lane stopped, and the main cursor passes over its messages and goes
 * on at full speed. The rows stay where they are. When the lane can be sent to
 * again, its cursor reads what the main one has left out, in the same order and
 * by the same rule, until it stands where the main one stands; then the lane
 * is the main cursor's again (relay_catchup.c).
 *
 * Which cursor a message belongs to must never be in doubt. So a lane's rows
 * in outbox.held_lane, outbox.relay_state and outbox.relay_position appear in
 * one transaction, before any progress of the main cursor that passes over a
 * message of it; they go in one transaction, when both cursors stand at the
 * same bound with nothing of the lane in flight. A message's lane depends on
 * the message and the number of partitions alone, and that number is kept as
 * long as a partition of the topic is held.
 *
 * What the producer still had of the lane stays with it (relay_held_leftover.c).
 *
 * A lane of which a batch was refused is held in the same way, and its cursor
 * sends by the second producer, in small numbers (relay_isolation.c), until
 * nothing has been refused for a while.
 *
 * Not every silence is one lane's. If no lane has answered since, the broker or
 * the network is away, and to hold each lane would only cost. So a lane is
 * held when some other one was acknowledged well after it fell silent; or,
 * because nobody can be acknowledged while a full window waits for one
 * partition, a few without that evidence.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "durability.h"
#include "guc.h"
#include "relay_discard.h"
#include "relay_held.h"
#include "relay_transaction.h"

/* More than so many are not held; then the main cursor waits. */
#define MAX_HELD 1000

/* More at a time make no difference any more. */
#define MAX_LIMIT 2000

/* What was refused together is sent again in so many parts. */
#define SUSPECT_GROUPS 8

/* Between tries of what was refused: doubled each time, up to the maximum. */
#define TRY_MIN_MS 100
#define TRY_MAX_MS 30000

uint64
relay_held_tag(const RelayHeld *held)
{
	return HELD_TAG | ((uint64) held->lane.cursor_id << HELD_TAG_SHIFT) |
		window_next_tag(held->window);
}

RelayHeld *
relay_held_of(const RelayTopic *topic, TupleTableSlot *slot)
{
	RelayHeld  *whole = NULL;
	int			seen = 0;

	for (int i = 0; seen < topic->nheld; i++)
	{
		RelayHeld  *held = topic->held[i];

		if (held == NULL)
			continue;
		seen++;
		if (held->lane.partition == HELD_WHOLE_TOPIC)
			whole = held;
		else if (held_contains(&held->lane, slot))
			return held;
	}
	return whole;
}

RelayHeld *
relay_held_find(const RelayTopic *topic, int partition)
{
	for (int i = 0; i < RELAY_TOPIC_HELD && topic->nheld > 0; i++)
	{
		RelayHeld  *held = topic->held[i];

		if (held != NULL && held->lane.partition == partition)
			return held;
	}
	return NULL;
}

/* ---- memory ---- */

static void
enter(Relay *relay, RelayHeld *held)
{
	MemoryContext old = MemoryContextSwitchTo(relay->context);
	RelayTopic *topic = held->topic;
	int			free = 0;

	while (topic->held[free] != NULL)
		free++;
	topic->held[free] = held;
	topic->nheld++;
	if (held->lane.partition != HELD_WHOLE_TOPIC)
		topic->pinned_partitions = held->lane.partitions;
	relay->held = lappend(relay->held, held);
	MemoryContextSwitchTo(old);
	discard_begin_lane(relay, held);
}

/* Takes over the references in start. */
static RelayHeld *
make(Relay *relay, const HeldLane *lane, const Progress *start)
{
	RelayHeld  *held = MemoryContextAllocZero(relay->context, sizeof(RelayHeld));

	held->lane = *lane;
	held->limit = 1;
	held->topic = relay_topic(relay->topics, lane->topic, (int) strlen(lane->topic));
	held->batch_end = durability_position();
	held->window = window_create(1, start, relay->context);
	window_set_transactional(held->window, relay->exact);
	relay_held_note_stored(held);
	return held;
}

void
relay_held_remove(Relay *relay, RelayHeld *held)
{
	RelayTopic *topic = held->topic;
	bool		pinned = false;

	relay_transaction_forget_held(relay, held);
	relay->held = list_delete_ptr(relay->held, held);
	for (int i = 0; i < RELAY_TOPIC_HELD; i++)
	{
		if (topic->held[i] == held)
			topic->held[i] = NULL;
		else if (topic->held[i] != NULL &&
				 topic->held[i]->lane.partition != HELD_WHOLE_TOPIC)
			pinned = true;
	}
	topic->nheld--;
	if (!pinned && topic->pinned_partitions > 0)
	{
		topic->pinned_partitions = 0;
		topic->partitions_at = 0;
	}
	for (int i = 0; i < held->nleftovers; i++)
	{
		if (!held->leftovers[i].reported)
			relay_topic_lost(topic, held->leftovers[i].partition);
	}
	window_destroy(held->window);
	cursor_bound_release(held->stored_done);
	if (held->stored_batch)
		cursor_bound_release(held->stored_batch);
	if (held->discards_after)
		cursor_bound_release(held->discards_after);
	if (held->leftovers)
		pfree(held->leftovers);
	if (held->arrived)
		pfree(held->arrived);
	pfree(held);
}

/* ---- life ---- */

void
relay_held_load(Relay *relay, const OutboxCatalog *catalog)
{
	OutboxCatalog copy = *catalog;
	List	   *lanes;
	ListCell   *lc;

	if (!held_read(&copy, CURSOR_NO_WAIT, &lanes, CurrentMemoryContext))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not read outbox.held_lane, it is locked")));
	foreach(lc, lanes)
	{
		const HeldLane *lane = (const HeldLane *) lfirst(lc);
		Progress	start = {0};
		RelayHeld  *held;

		if (progress_read(&copy, lane->cursor_id, CURSOR_NO_WAIT, &start,
						  relay->context) != PROGRESS_OK)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the progress of held lane %d (topic \"%s\") is locked, gone, or another database's",
							lane->cursor_id, lane->topic)));
		held = make(relay, lane, &start);
		held->announced = true;
		held->isolated = (lane->reason == HELD_ISOLATED || lane->reason == HELD_REFUSED);
		enter(relay, held);
	}
}

/* The id for a new cursor. One that is free has nothing in flight. */
static int
free_cursor_id(const Relay *relay)
{
	int			result = MAIN_CURSOR;
	ListCell   *lc;

	foreach(lc, relay->held)
		result = Max(result, ((RelayHeld *) lfirst(lc))->lane.cursor_id);
	return result + 1;
}

char *
relay_held_name(const RelayHeld *held)
{
	if (held->lane.partition == HELD_WHOLE_TOPIC)
		return psprintf("topic \"%s\"", held->lane.topic);
	return psprintf("topic \"%s\" partition %d", held->lane.topic, held->lane.partition);
}

void
relay_held_isolate(RelayHeld *held, HeldReason reason, TimestampTz now)
{
	held->isolated = true;
	held->limit = 1;
	held->refused_at = now;
	held->state = RELAY_HELD_WAITING;
	if (held->lane.reason != reason)
	{
		held->lane.reason = reason;
		held->changed = true;
	}
}

bool
relay_hold(Relay *relay, RelayTopic *topic, int partition, HeldReason reason,
		   const char *error, TimestampTz now)
{
	const OutboxCatalog *catalog;
	HeldLane	lane = {0};
	Progress	start = window_progress(relay->window);
	RelayHeld  *held;
	bool		written = false;

	if (list_length(relay->held) >= MAX_HELD)
		return false;

	/* the last place is for the topic as a whole */
	if (partition != HELD_WHOLE_TOPIC && topic->nheld >= RELAY_TOPIC_HELD - 1)
		partition = HELD_WHOLE_TOPIC;
	if (relay_held_find(topic, partition) != NULL)
		return true;

	/* its messages in an open transaction are neither delivered nor not */
	if (relay->exact && window_oldest(relay->window) != NULL)
		return relay_transaction_hold_later(relay, topic, partition, reason, error);

	/* the batch is another one's definition */
	start.has_nonce = false;

	lane.cursor_id = free_cursor_id(relay);
	strlcpy(lane.topic, topic->name, sizeof(lane.topic));
	lane.partition = partition;
	lane.partitions = partition == HELD_WHOLE_TOPIC ? 0 : topic->partitions;
	lane.since = now;
	lane.reason = reason;
	strlcpy(lane.error, error, sizeof(lane.error));

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog != NULL)
		written = held_insert(catalog, &lane, &start);

	/* the main cursor's position in Kafka will be past it */
	if (relay->exact)
		ForceSyncCommit();
	relay_commit(relay);
	if (!written)
		return false;
	if (relay->exact)
		relay->standby_awaited = XactLastCommitEnd;

	cursor_bound_share(start.done);
	if (start.batch)
		cursor_bound_share(start.batch);
	held = make(relay, &lane, &start);
	relay_held_take_leftovers(relay, held);
	held->paused = (reason == HELD_PAUSED);
	held->isolated = relay->exact;
	enter(relay, held);
	if (reason != HELD_PAUSED)
	{
		relay_topic_failed(topic, error);
		shmem_set_error(&relay->slot->worker, psprintf("%s: %s", relay_held_name(held), error));
	}
	return true;
}

void
relay_held_pause(Relay *relay, List *topics, TimestampTz now)
{
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);
		bool		paused = false;
		ListCell   *name;

		foreach(name, topics)
			paused = paused || strcmp((char *) lfirst(name), held->lane.topic) == 0;
		if (held->paused && !paused)
			held->next_try_at = 0;
		held->paused = paused;
	}
	foreach(lc, topics)
	{
		const char *name = (const char *) lfirst(lc);
		RelayTopic *topic;

		if (strlen(name) > OUTBOX_TOPIC_MAX_LENGTH)
			continue;
		topic = relay_topic(relay->topics, name, (int) strlen(name));
		if (relay_held_find(topic, HELD_WHOLE_TOPIC) == NULL &&
			!relay_hold(relay, topic, HELD_WHOLE_TOPIC, HELD_PAUSED, "", now))
			relay->control_known = false;	/* come again */
	}
}

void
relay_held_try_now(Relay *relay)
{
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		held->next_try_at = 0;
		held->failures = 0;
	}
}

/* ---- reports ---- */

/* by: as the producer that sent it knows the topic. */
static void
acknowledged(Relay *relay, RelayHeld *held, RelayTopic *by, int partition, uint32 bytes)
{
	relay_topic_acknowledged(by, partition, bytes, relay->last_ack_at);
	if (by == held->topic)
		relay->acknowledged_at = relay->last_ack_at;
	relay->held_delivered++;
	if (held->lane.waiting > 0)
		held->lane.waiting--;
	held->changed = true;
	held->failures = 0;

	/* whatever kept the client from sending does so no more */
	relay->failures = 0;
}

bool
relay_held_report(Relay *relay, const KafkaDelivery *delivery, RelayRefusal *refusal)
{
	int			cursor_id = (int) ((delivery->tag & ~HELD_TAG) >> HELD_TAG_SHIFT);
	uint64		tag = delivery->tag & ((UINT64CONST(1) << HELD_TAG_SHIFT) - 1);
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		if ((delivery->tag & HELD_TAG) == 0)
		{
			RelayLeftover *leftover = relay_held_leftover(held, delivery->tag);

			if (leftover == NULL)
				continue;
			if (leftover->reported)
				return true;
			leftover->reported = true;
			if (held->unreported > 0)
				held->unreported--;
			if (delivery->class == KAFKA_ERROR_NONE)
			{
				leftover->acknowledged = true;
				acknowledged(relay, held, held->topic, leftover->partition,
							 leftover->bytes);
			}
			else
			{
				refusal->topic = held->topic;
				refusal->partition = leftover->partition;
				refusal->id = leftover->id;
			}
			return true;
		}
		if (held->lane.cursor_id == cursor_id)
		{
			WindowEntry *entry = window_entry(held->window, tag);

			if (entry == NULL || entry->acknowledged)
				return true;
			held->next_try_at = 0;
			if (delivery->class == KAFKA_ERROR_NONE)
			{
				held->proven = true;
				acknowledged(relay, held, held->sends_as, entry->partition, entry->bytes);
				window_acknowledge(held->window, tag);
				if (held->suspects > 0)
					held->suspects--;
				else if (held->isolated && ++held->taken >= held->limit)
				{
					held->limit = Min(held->limit * 2, MAX_LIMIT);
					held->taken = 0;
				}
			}
			else
			{
				refusal->topic = held->topic;
				refusal->partition = entry->partition;
				refusal->id = entry->id;
			}
			return true;
		}
	}
	return (delivery->tag & HELD_TAG) != 0;
}

void
relay_held_failed(RelayHeld *held, TimestampTz now)
{
	int			wait = Min(TRY_MIN_MS << Min(held->failures, 10), TRY_MAX_MS);

	held->state = RELAY_HELD_WAITING;
	held->failures++;
	held->next_try_at = TimestampTzPlusMilliseconds(now, wait);
}

void
relay_held_refused(Relay *relay, const RelayRefusal *refusal, KafkaErrorClass class,
				   int code, TimestampTz now)
{
	RelayHeld  *held = NULL;
	int			suspects;
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		RelayHeld  *candidate = (RelayHeld *) lfirst(lc);

		if (candidate->topic == refusal->topic && candidate->isolated &&
			(candidate->lane.partition == HELD_WHOLE_TOPIC ||
			 candidate->lane.partition == refusal->partition))
			held = candidate;
	}
	if (held == NULL)
		return;

	suspects = window_in_flight(held->window) +
		window_acknowledged_out_of_order(held->window);
	held->refused_at = now;
	strlcpy(held->lane.error, kafka_error_text(code), sizeof(held->lane.error));
	held->changed = true;
	if (class == KAFKA_ERROR_TOPIC)
	{
		held->lane.reason = HELD_REFUSED;
		if (suspects > 1 && !relay->exact)
			relay_topic_warn_refused(held->topic, held->lane.error);
		relay_held_failed(held, now);
	}
	else if (class == KAFKA_ERROR_RECORD && suspects == 1)
	{
		/* refused alone: this is the one */
		if (kafka_error_is_timestamp(code) && held->dated_now_id != refusal->id)
			held->dated_now_id = refusal->id;
		else
		{
			held->park_id = refusal->id;
			strlcpy(held->park_error, kafka_error_text(code), sizeof(held->park_error));
		}
	}
	held->suspects = suspects;
	held->taken = 0;
	held->limit = Max(suspects / SUSPECT_GROUPS, 1);
}

void
relay_held_forget_producer(Relay *relay, bool isolation)
{
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		if (held->unreported > 0 || window_in_flight(held->window) > 0)
			discard_doubt(relay);
		if (!isolation)
		{
			relay->repeated += held->unreported;
			held->unreported = 0;
			for (int i = 0; i < held->nleftovers; i++)
				held->leftovers[i].reported = true;
		}
		if (held->isolated != isolation)
			continue;
		if (relay->exact)
			relay->held_delivered -= window_acknowledged_out_of_order(held->window);
		else
			relay->repeated += window_in_flight(held->window);
		held->proven = false;
		held->next_try_at = 0;
		window_reset(held->window);
	}
}

int
relay_held_in_flight(const Relay *relay)
{
	int			result = 0;
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		const RelayHeld *held = (const RelayHeld *) lfirst(lc);

		if (held->proven && !held->isolated)
			result += window_in_flight(held->window);
	}
	return result;
}

uint64
relay_held_bytes(const Relay *relay)
{
	uint64		result = 0;
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		const RelayHeld *held = (const RelayHeld *) lfirst(lc);

		if (held->state == RELAY_HELD_SENDING)
			result += window_in_flight_bytes(held->window);
	}
	return result;
}

uint64
relay_held_waiting(const Relay *relay)
{
	uint64		result = 0;
	ListCell   *lc;

	foreach(lc, relay->held)
		result += (uint64) ((const RelayHeld *) lfirst(lc))->lane.waiting;
	return result;
}

TimestampTz
relay_held_since(const Relay *relay)
{
	TimestampTz result = 0;
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		const RelayHeld *held = (const RelayHeld *) lfirst(lc);

		if (held->lane.waiting > 0 && (result == 0 || held->lane.since < result))
			result = held->lane.since;
	}
	return result;
}
