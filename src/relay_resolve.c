/*
 * relay_resolve.c
 *	  Making topics known before anything is sent to them.
 *
 * The broker is asked how many partitions a topic has when its first message is
 * met. That is a round trip, and another one for its limit (relay_limits.c), in
 * which nothing is read: with a thousand topics, after each start, seconds. So
 * when a topic stops the reading, the rows after it are looked at for topics
 * that would stop it, too, and all of them are asked for together.
 *
 * A topic that the broker does not know, or does not allow, is held
 * (relay_held.c), and what follows goes on.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "record.h"
#include "relay_held.h"
#include "relay_internal.h"
#include "relay_limits.h"

/* Until a topic is asked for again; how long the broker may take to make one. */
#define TOPIC_RETRY_MS 100
#define TOPIC_RETRY_AWAY_MS 1000
#define TOPIC_PROPAGATION_MS 5000

/* A topic that the broker does not know or allow holds up others so long. */
#define TOPIC_PATIENCE_MS 300

void
relay_look_ahead(Relay *relay, CursorScan *scan, int rows)
{
	TimestampTz now = GetCurrentTimestamp();
	CursorRow	row;
	bool		others = false;

	while (rows-- > 0 && cursor_scan_next(scan, &row))
	{
		MemoryContext old;
		RelayTopic *topic;

		MemoryContextReset(relay->row_context);
		old = MemoryContextSwitchTo(relay->row_context);
		topic = record_topic(relay->topics, row.slot);
		MemoryContextSwitchTo(old);
		if (topic->nheld == 0 && topic != relay->unresolved && relay_topic_is_stale(topic, now))
		{
			topic->expected = true;
			others = true;
		}
	}
	relay->unresolved->expected = others;
}

bool
relay_resolve(Relay *relay)
{
	TimestampTz now = GetCurrentTimestamp();
	RelayTopic *topic = relay->unresolved;
	KafkaError	error = {0};
	bool		refused;
	int			patience;

	if (topic->expected)
		limits_resolve_expected(relay, now);
	if (!relay_topic_is_stale(topic, now) ||
		limits_resolve(relay, topic, relay->producer, now, &error))
	{
		if (limits_await(relay, topic, now))
			return false;
		relay->unresolved = NULL;
		relay->unresolved_since = 0;
		return true;
	}

	/* a topic that is just being made is unknown for a while */
	if (relay->unresolved_since == 0)
		relay->unresolved_since = now;
	relay->retry_at = TimestampTzPlusMilliseconds(now,
												  kafka_producer_is_connected(relay->producer) ?
												  TOPIC_RETRY_MS : TOPIC_RETRY_AWAY_MS);

	/* no useful answer for long, from somebody who is there: others may do */
	refused = (error.class == KAFKA_ERROR_TOPIC);
	patience = refused ? TOPIC_PATIENCE_MS : TOPIC_PROPAGATION_MS;
	if ((refused || kafka_producer_is_connected(relay->producer)) &&
		TimestampDifferenceExceeds(relay->unresolved_since, now, patience) &&
		relay_hold(relay, topic, HELD_WHOLE_TOPIC,
				   refused ? HELD_REFUSED : HELD_NO_ANSWER, error.message, now))
	{
		relay->unresolved = NULL;
		relay->unresolved_since = 0;
		relay->retry_at = 0;
		return true;
	}

	/* it cannot be held */
	if (refused &&
		TimestampDifferenceExceeds(relay->unresolved_since, now, TOPIC_PROPAGATION_MS))
	{
		relay->unresolved = NULL;
		relay->unresolved_since = 0;
		relay_fail(relay, topic,
				   psprintf("topic \"%s\": %s", topic->name, error.message));
	}
	return false;
}
