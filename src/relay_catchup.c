/*
 * relay_catchup.c
 *	  When lanes are held, when they are tried, how they come back.
 *
 * A held lane waits until the reports of what the producer still had of it
 * have come, or until its topic can be asked for again: after a pause that
 * doubles each time, or when somebody called outbox.retry(). Then its cursor
 * reads what the main one has left out, up to the newest bound that the main
 * cursor has opened a batch with. A lane that stays silent keeps one message
 * in flight, whose report starts it again.
 *
 * When it has sent all of that, and the main cursor has read its batch to the
 * end, both stand at the same bound. The main cursor then opens no other batch
 * for a moment, until the lane's last messages are acknowledged, and the lane
 * is given back to it. Should that take too long, the main cursor goes on, and
 * it is tried again later.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "due.h"
#include "guc.h"
#include "relay_catchup.h"
#include "relay_discard.h"
#include "relay_isolation.h"
#include "relay_limits.h"
#include "relay_transaction.h"

/* A lane that has not answered for so long is held, */
#define LANE_TIMEOUT_MS 2000

/* if another one has answered at least so long after it fell silent, */
#define EVIDENCE_MS 1000

/* or if others of the same Kafka transaction have, after this time, */
#define TOGETHER_MS 1500

/* or if it stops all others, or for being silent for very long; so many at
 * most until one answers. */
#define LONG_SILENCE_MS 10000
#define FIRST_ANSWER_MS 5000	/* a new client has to make itself known first */
#define MAX_SPECULATIVE 4

/* How often that is looked at, while messages are in flight. */
#define CHECK_INTERVAL_MS 500

/* Room in a lane's own window while it sends. */
#define HELD_WINDOW 2000

/* Until a topic is asked for again when nobody has answered. */
#define TRY_AWAY_MS 1000

/* A topic that is just being made is unknown for a while: no warning yet. */
#define ANNOUNCE_MS 5000

/* When nothing could be read though there is room. */
#define BLOCKED_MS 20

/* How long the main cursor waits for one that has all but caught up. */
#define MERGE_MS 300
#define MERGE_RETRY_MS 5000

/* An isolated lane is given back when nothing was refused for so long. */
#define CLEAN_MS 3000

/* Cursors that catch up at the same time. */
#define MAX_SENDING 16

/* ---- who is silent ---- */

typedef struct SilentLane
{
	const Relay *relay;
	RelayTopic *topic;			/* the first that is to be held */
	int			partition;
	List	   *others;			/* of SilentLane */
} SilentLane;

/* Visitor: whether this one is silent while others are not. */
static void
look_at_silent_lane(void *arg, RelayTopic *topic, int partition)
{
	SilentLane *silent = (SilentLane *) arg;

	if (silent->topic != NULL ||
		relay_held_find(topic, partition) != NULL ||
		relay_held_find(topic, HELD_WHOLE_TOPIC) != NULL)
		return;
	if (TimestampDifferenceExceeds(topic->lanes[partition].waiting_since,
								   silent->relay->acknowledged_at, EVIDENCE_MS))
	{
		silent->topic = topic;
		silent->partition = partition;
	}
}

/*
 * The lane of the oldest message, if it has been silent for long while
 * everybody waits for it, or for very long.
 */
static bool
find_blocking_lane(Relay *relay, TimestampTz now, RelayTopic **topic, int *partition)
{
	const WindowEntry *oldest = relay->exact ?
	window_oldest_unacknowledged(relay->window) : window_oldest(relay->window);
	int			patience = LONG_SILENCE_MS;
	bool		blocks = relay->unproven != NULL || !relay_has_room(relay) ||
	relay_transaction_is_ending(relay);

	if (oldest == NULL)
		return false;
	if (blocks)
		patience = relay->acknowledged_at > relay->producer_since ?
			LANE_TIMEOUT_MS : FIRST_ANSWER_MS;
	*topic = (RelayTopic *) oldest->topic;
	*partition = oldest->partition;
	return *partition < (*topic)->partitions &&
		relay_held_find(*topic, *partition) == NULL &&
		TimestampDifferenceExceeds((*topic)->lanes[*partition].waiting_since, now,
								   patience);
}

/* Visitor: whether others of its transaction have been acknowledged. */
static void
collect_silent_lane(void *arg, RelayTopic *topic, int partition)
{
	SilentLane *silent = (SilentLane *) arg;
	SilentLane *lane;

	if (relay_held_find(topic, partition) != NULL ||
		relay_held_find(topic, HELD_WHOLE_TOPIC) != NULL ||
		topic->lanes[partition].waiting_since >= silent->relay->acknowledged_at)
		return;
	lane = palloc0(sizeof(SilentLane));
	lane->topic = topic;
	lane->partition = partition;
	silent->others = lappend(silent->others, lane);
}

/*
 * One silent lane costs a Kafka transaction, and all that wait for it two
 * seconds. So those that would cost the next ones the same are held with it.
 */
static void
hold_with_it(Relay *relay, TimestampTz now)
{
	SilentLane	silent = {.relay = relay};
	ListCell   *lc;

	relay_topics_visit_stalled(relay->topics, now, TOGETHER_MS,
							   collect_silent_lane, &silent);
	foreach(lc, silent.others)
	{
		const SilentLane *lane = (const SilentLane *) lfirst(lc);

		(void) relay_hold(relay, lane->topic, lane->partition, HELD_NO_ANSWER,
						  psprintf("no acknowledgement for %.1f s", TOGETHER_MS / 1000.0), now);
	}
}

void
catchup_check_lanes(Relay *relay, TimestampTz now)
{
	SilentLane	silent = {.relay = relay};

	if (relay->producer == NULL || relay->reset_needed ||
		!kafka_producer_is_connected(relay->producer))
		return;

	if (relay->acknowledged_at > relay->speculated_at)
		relay->speculative = 0;

	relay_topics_visit_stalled(relay->topics, now, LANE_TIMEOUT_MS,
							   look_at_silent_lane, &silent);
	if (silent.topic == NULL)
	{
		if (relay->speculative >= MAX_SPECULATIVE ||
			!find_blocking_lane(relay, now, &silent.topic, &silent.partition))
			return;
		relay->speculative++;
		relay->speculated_at = now;
	}
	(void) relay_hold(relay, silent.topic, silent.partition, HELD_NO_ANSWER,
					  psprintf("no acknowledgement for %d s", LANE_TIMEOUT_MS / 1000), now);
	if (relay->exact)
		hold_with_it(relay, now);
}

/* ---- what is held ---- */

static void
announce(RelayHeld *held, TimestampTz now)
{
	if (held->announced || held->lane.reason == HELD_PAUSED ||
		(held->lane.reason == HELD_REFUSED &&
		 !TimestampDifferenceExceeds(held->lane.since, now, ANNOUNCE_MS)))
		return;
	held->announced = true;
	ereport(WARNING,
			(errmsg("outbox_kafka holds %s: %s", relay_held_name(held), held->lane.error),
			 errdetail("Nothing is lost: its messages wait, in order, and the others go on. It is tried again from time to time."),
			 errhint("See outbox.held_lanes.")));
}

/* Whether cursors may send at all. */
static bool
may_send(const Relay *relay)
{
	return relay->held != NIL && relay->control_known && !relay->paused &&
		!relay->reset_needed &&
		relay->producer != NULL && !relay->failed &&
		!relay_producer_is_changing(relay) &&
		kafka_producer_is_connected(relay->producer);
}

static int
count_sending(const Relay *relay)
{
	int			count = 0;
	ListCell   *lc;

	foreach(lc, relay->held)
		count += ((const RelayHeld *) lfirst(lc))->state == RELAY_HELD_SENDING;
	return count;
}

/*
 * Whether only time keeps a waiting lane from being tried. A topic does not
 * wait for ever for what one silent partition of it still has in flight.
 */
static bool
can_be_tried(const RelayHeld *held, TimestampTz now)
{
	return held->state == RELAY_HELD_WAITING && !held->paused &&
		(held->unreported == 0 ||
		 (held->lane.partition == HELD_WHOLE_TOPIC &&
		  TimestampDifferenceExceeds(held->lane.since, now, LONG_SILENCE_MS))) &&
		(held->lane.partition == HELD_WHOLE_TOPIC ||
		 relay_held_find(held->topic, HELD_WHOLE_TOPIC) == NULL);
}

static void
try_lane(Relay *relay, RelayHeld *held, TimestampTz now)
{
	KafkaError	error = {0};
	KafkaProducer *producer = relay->producer;
	RelayTopic *topic = held->topic;

	if (held->isolated)
	{
		producer = isolation_producer(relay, now);
		if (producer == NULL)
		{
			held->next_try_at = TimestampTzPlusMilliseconds(now, BLOCKED_MS);
			return;
		}
		topic = relay_topic(isolation_topics(relay), held->lane.topic,
							(int) strlen(held->lane.topic));
		topic->pinned_partitions = held->topic->pinned_partitions;
	}
	if (!relay_topic_is_stale(topic, now) ||
		limits_resolve(relay, topic, producer, now, &error))
	{
		held->sends_as = topic;
		relay_held_settle_leftovers(relay, held);
		window_resize(held->window, Min(guc_max_in_flight, HELD_WINDOW));
		held->state = RELAY_HELD_SENDING;
		held->next_try_at = 0;
		held->proven = false;
		return;
	}
	if (error.class == KAFKA_ERROR_RETRY)
	{
		/* a new client has not connected yet */
		held->next_try_at = TimestampTzPlusMilliseconds(now,
														kafka_producer_is_connected(producer) ?
														TRY_AWAY_MS : BLOCKED_MS);
		return;
	}
	relay_held_failed(held, now);
	if (held->lane.reason == HELD_PAUSED || strcmp(held->lane.error, error.message) != 0)
	{
		held->lane.reason = HELD_REFUSED;
		strlcpy(held->lane.error, error.message, sizeof(held->lane.error));
		held->changed = true;
	}
	relay_topic_failed(held->topic, error.message);
}

/* The lane and the main cursor stand at the same bound. */
static void
merge(Relay *relay, RelayHeld *held, TimestampTz now)
{
	const OutboxCatalog *catalog;
	bool		done = false;

	relay_begin(relay);
	catalog = relay_catalog(relay);

	/*
	 * What the main cursor passed over and has not stored would be sent again
	 * after a crash: let that be no more than a window.
	 */
	if (catalog != NULL && held_lock(catalog) &&
		relay_progress_write(relay, relay_catalog(relay), false))
		done = held_delete(relay_catalog(relay), &held->lane);
	relay_commit(relay);
	if (!done)
	{
		held->next_try_at = TimestampTzPlusMilliseconds(now, BLOCKED_MS);
		return;
	}
	relay_progress_written(relay, now, false);
	if (held->announced)
		ereport(LOG,
				(errmsg("outbox_kafka does not hold %s any more", relay_held_name(held))));
	relay_held_remove(relay, held);
}

static bool
has_room(const Relay *relay, const RelayHeld *held)
{
	int			in_flight = window_in_flight(held->window);

	if (relay->exact)
		return relay_transaction_may_read(relay, held) && relay_has_room_for_bytes(relay);
	if (!held->proven && in_flight > 0)
		return false;
	if (held->isolated && in_flight >= held->limit)
		return false;
	return !window_is_full(held->window) && relay_has_room_for_bytes(relay);
}

/* Returns true when there is more to read at once. */
static bool
send(Relay *relay, RelayHeld *held, TimestampTz now)
{
	CursorBound *newest = window_newest_bound(relay->window);
	ReadResult	result;
	bool		more = false;

	if (held->paused)
	{
		held->merging_since = 0;
		if (window_oldest(held->window) == NULL)
			held->state = RELAY_HELD_WAITING;
		return false;
	}
	if (held->next_try_at > now)
		return false;
	held->next_try_at = 0;

	if (window_is_reading(held->window) || window_read_bound(held->window) != newest)
	{
		held->merging_since = 0;
		if (relay->exact && isolation_producer(relay, now) == NULL)
		{
			held->next_try_at = TimestampTzPlusMilliseconds(now, BLOCKED_MS);
			return false;
		}
		if (!has_room(relay, held))
			return false;
		result = relay_read_held(relay, held);
		if (result == READ_BLOCKED && held->state == RELAY_HELD_SENDING &&
			held->next_try_at == 0)
			held->next_try_at = TimestampTzPlusMilliseconds(now, BLOCKED_MS);
		more = (result == READ_MORE);
		if (window_is_reading(held->window) || window_read_bound(held->window) != newest)
			return more;
	}
	discard_came_to(relay, held);
	if (held->discards || window_is_reading(relay->window) ||
		(held->isolated && !TimestampDifferenceExceeds(held->refused_at, now, CLEAN_MS)))
		return more;

	/* what a lost transaction passed over would be read again, and sent */
	if (window_oldest(held->window) == NULL &&
		(!relay->exact || window_oldest(relay->window) == NULL))
		merge(relay, held, now);
	else if (held->merging_since == 0)
	{
		if (held->merge_retry_at <= now)
			held->merging_since = now;
	}
	else if (TimestampDifferenceExceeds(held->merging_since, now, MERGE_MS))
	{
		held->merging_since = 0;
		held->merge_retry_at = TimestampTzPlusMilliseconds(now, MERGE_RETRY_MS);
	}
	return more;
}

static bool
is_at_newest(const Relay *relay, const RelayHeld *held)
{
	return !window_is_reading(held->window) &&
		window_read_bound(held->window) == window_newest_bound(relay->window);
}

/* Whether a lane that cannot be sent to is read for what is to be given up. */
static bool
can_discard(const RelayHeld *held)
{
	return held->discarding && held->state == RELAY_HELD_WAITING &&
		held->unreported == 0;
}

/*
 * Read one for what is to be given up; if nothing else was in it, there is
 * nothing to hold. Returns true when there is more to read at once.
 */
static bool
discard(Relay *relay, RelayHeld *held, TimestampTz now)
{
	if (held->discard_at > now)
		return false;
	held->discard_at = 0;
	if (!is_at_newest(relay, held))
	{
		ReadResult	result;

		relay_held_settle_leftovers(relay, held);
		result = relay_read_held(relay, held);
		if (result == READ_BLOCKED && held->discarding)
			held->discard_at = TimestampTzPlusMilliseconds(now, BLOCKED_MS);
		if (!is_at_newest(relay, held))
			return result == READ_MORE;
	}
	discard_came_to(relay, held);
	if (held->discards)
		return false;
	if (held->paused)
		held->discarding = false;
	else if (!window_is_reading(relay->window) && window_oldest(held->window) == NULL)
	{
		held->discard_at = TimestampTzPlusMilliseconds(now, BLOCKED_MS);
		merge(relay, held, now);
	}
	return false;
}

bool
catchup_work(Relay *relay, TimestampTz now)
{
	List	   *all;
	ListCell   *lc;
	int			sending;
	bool		more = false;

	if (relay->held == NIL)
		return false;
	foreach(lc, relay->held)
		announce((RelayHeld *) lfirst(lc), now);

	all = list_copy(relay->held);
	foreach(lc, all)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		if (relay->control_known && !relay->superseded && can_discard(held))
			more = discard(relay, held, now) || more;
	}
	if (!may_send(relay) || relay->superseded)
		return more;

	sending = count_sending(relay);
	all = list_copy(relay->held);
	foreach(lc, all)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		if (can_be_tried(held, now) && held->next_try_at <= now && sending < MAX_SENDING)
		{
			try_lane(relay, held, now);
			sending += (held->state == RELAY_HELD_SENDING);
		}
		if (held->state == RELAY_HELD_SENDING && relay->producer != NULL)
			more = send(relay, held, now) || more;
		if (relay->superseded)
			break;
	}
	return more;
}

/* A time that has come already is waited for by nobody. */
static TimestampTz
ahead(TimestampTz start, int ms, TimestampTz now)
{
	TimestampTz time = TimestampTzPlusMilliseconds(start, ms + 1);

	return time > now ? time : 0;
}

TimestampTz
catchup_due(const Relay *relay, TimestampTz now)
{
	TimestampTz due = 0;
	bool		sendable = may_send(relay);
	bool		slot_free;
	ListCell   *lc;

	if (window_oldest(relay->window) != NULL)
		due = TimestampTzPlusMilliseconds(now, CHECK_INTERVAL_MS);
	if (relay->held == NIL)
		return due;
	slot_free = count_sending(relay) < MAX_SENDING;
	foreach(lc, relay->held)
	{
		const RelayHeld *held = (const RelayHeld *) lfirst(lc);

		if (!held->announced && held->lane.reason != HELD_PAUSED)
			due = due_sooner(due, TimestampTzPlusMilliseconds(held->lane.since, ANNOUNCE_MS));
		if (relay->control_known && can_discard(held) &&
			(held->discard_at > now || !is_at_newest(relay, held)))
			due = due_sooner(due, Max(held->discard_at, now));
		if (!sendable)
			continue;
		if (can_be_tried(held, now) && slot_free)
			due = due_sooner(due, Max(held->next_try_at, now));
		if (held->state == RELAY_HELD_SENDING)
		{
			due = due_sooner(due, held->next_try_at);
			if (held->isolated)
				due = due_sooner(due, ahead(held->refused_at, CLEAN_MS, now));
			if (held->merging_since != 0)
				due = due_sooner(due, ahead(held->merging_since, MERGE_MS, now));
		}
	}
	return due;
}

bool
catchup_merges(const Relay *relay, TimestampTz now)
{
	ListCell   *lc;

	if (relay->held == NIL || window_is_reading(relay->window) || !may_send(relay))
		return false;
	foreach(lc, relay->held)
	{
		const RelayHeld *held = (const RelayHeld *) lfirst(lc);

		if (held->merging_since != 0 &&
			!TimestampDifferenceExceeds(held->merging_since, now, MERGE_MS))
			return true;
	}
	return false;
}
