/*
 * relay_isolation.c
 *	  The second producer, for what may be refused.
 *
 * A broker refuses a whole batch for one of its records, and a permanent error
 * of a batch is the end of a producer that must not leave gaps. So what is
 * suspected does not travel with what is not: the cursor of an isolated lane
 * (relay_held.c) and parked messages that are tried again go through a producer
 * of their own. When it ends, nothing of the other one is repeated.
 *
 * An isolated lane sends one message at first, then twice as many each time
 * that so many were taken. When something is refused, what was in flight is sent
 * again in parts of an eighth, and the refused part again in parts of that, and
 * so on. What is refused alone is the culprit: it is parked (with another time
 * tried first, if that was the reason), and its lane goes on. So a bad message
 * among thousands of good ones costs its own lane a few new producers and a few
 * dozen round trips.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "relay_held.h"
#include "relay_isolation.h"
#include "relay_limits.h"
#include "relay_parked.h"
#include "relay_transaction.h"

/* How long reports of a failed producer's other messages are waited for. */
#define RESET_DRAIN_MS 2000

/* How long it is kept without a need, and how soon it is made again. */
#define IDLE_MS 10000
#define RETRY_MS 1000

struct RelayIsolation
{
	KafkaProducer *producer;	/* or NULL */
	RelayTopics *topics;
	TimestampTz used_at;
	TimestampTz retry_at;

	bool		failed;
	TimestampTz reset_by;		/* if so, it is dropped then at the latest */
	int			given_up;		/* what it will not send again: why, or 0 */

	/* the first refusal since it was made */
	KafkaErrorClass class;		/* or KAFKA_ERROR_NONE */
	RelayRefusal refusal;		/* topic NULL: of a parked message */
	int			code;
};

RelayIsolation *
isolation_create(MemoryContext context)
{
	RelayIsolation *isolation = MemoryContextAllocZero(context, sizeof(RelayIsolation));

	isolation->topics = relay_topics_create(false, context);
	return isolation;
}

RelayTopics *
isolation_topics(const Relay *relay)
{
	return relay->isolation->topics;
}

KafkaProducer *
isolation_producer(Relay *relay, TimestampTz now)
{
	RelayIsolation *isolation = relay->isolation;
	char	   *reason;

	if (isolation->failed || isolation->retry_at > now || relay->conflict)
		return NULL;
	isolation->used_at = now;
	if (isolation->producer != NULL)
		return relay->exact && !relay_transaction_is_open(relay, TRANSACTION_SECOND) ?
			NULL : isolation->producer;

	isolation->producer = relay_producer_start(relay, TRANSACTION_SECOND, false, &reason);
	if (isolation->producer == NULL)
	{
		shmem_set_error(&relay->slot->worker, reason);
		isolation->retry_at = TimestampTzPlusMilliseconds(now, RETRY_MS);
		return NULL;
	}
	relay->isolation_fd = kafka_producer_fd(isolation->producer);
	relay_set_wait_events(relay);
	relay_transaction_opened(relay, TRANSACTION_SECOND, isolation->producer);
	return relay->exact ? NULL : isolation->producer;
}

void
isolation_close(Relay *relay)
{
	RelayIsolation *isolation = relay->isolation;

	if (isolation->producer == NULL)
		return;
	relay_topics_forget_producer(isolation->topics);
	relay_producer_end(isolation->producer);
	isolation->producer = NULL;
	isolation->failed = false;
	isolation->given_up = 0;
	isolation->class = KAFKA_ERROR_NONE;
	memset(&isolation->refusal, 0, sizeof(isolation->refusal));
	relay->parked_unresolved = NULL;
	parked_forget_producer(relay->parked);
	if (relay->exact)
		parked_forget_delivered(relay->parked);
	relay_held_forget_producer(relay, true);
	relay_transaction_closed(relay, TRANSACTION_SECOND);
	relay->isolation_fd = -1;
	relay_set_wait_events(relay);
}

bool
isolation_lose(Relay *relay, const char *text, TimestampTz now)
{
	RelayIsolation *isolation = relay->isolation;

	if (isolation->producer == NULL || isolation->failed)
		return false;
	shmem_set_error(&relay->slot->worker, text);
	ereport(isolation->given_up != 0 ? WARNING : LOG,
			(errmsg("outbox_kafka makes its second producer anew: %s", text),
			 isolation->given_up != 0 && !relay->exact ?
			 errdetail("What was sent behind these messages may have arrived before them. They are sent again with all that follows, in order.") : 0));
	isolation->failed = true;
	kafka_producer_purge(isolation->producer, true);
	isolation->reset_by = TimestampTzPlusMilliseconds(now, RESET_DRAIN_MS);
	return true;
}

/* ---- events; these handlers must not raise an error ---- */

static void
delivered(void *arg, const KafkaDelivery *delivery)
{
	Relay	   *relay = (Relay *) arg;
	RelayIsolation *isolation = relay->isolation;
	RelayRefusal refusal = {0};

	if (delivery->tag & PARKED_TAG)
		parked_delivered(relay->parked, delivery->tag, delivery);
	else
		(void) relay_held_report(relay, delivery, &refusal);
	if (delivery->class == KAFKA_ERROR_NONE)
		return;
	if (delivery->class == KAFKA_ERROR_PURGED)
	{
		/* not because we gave it up: this producer will not send it again */
		if (!isolation->failed)
			isolation->given_up = delivery->code;
		return;
	}

	/* the first refusal says most; the others follow from it */
	if (isolation->class == KAFKA_ERROR_NONE)
	{
		isolation->refusal = refusal;
		isolation->class = delivery->class;
		isolation->code = delivery->code;
	}
}

static void
forbidden(void *arg, const char *name, int code)
{
	Relay	   *relay = (Relay *) arg;
	RelayIsolation *isolation = relay->isolation;

	if (isolation->class != KAFKA_ERROR_NONE)
		return;
	isolation->class = KAFKA_ERROR_TOPIC;
	isolation->code = code;
	isolation->refusal.topic = relay_topic(relay->topics, name, (int) strlen(name));
}

static const KafkaEventHandlers handlers = {
	.delivered = delivered,
	.error = relay_producer_event,
	.log = relay_producer_log,
	.forbidden = forbidden,
};

/*
 * All reports have come: what was it? A parked message's outcome is its own
 * business (relay_parked.c).
 */
static void
judge(Relay *relay, TimestampTz now)
{
	RelayIsolation *isolation = relay->isolation;

	if (isolation->refusal.topic != NULL && kafka_error_is_size(isolation->code))
		limits_doubt(relay, isolation->refusal.topic->name);
	if (isolation->refusal.topic != NULL)
		relay_held_refused(relay, &isolation->refusal, isolation->class,
						   isolation->code, now);
}

void
isolation_serve(Relay *relay, TimestampTz now)
{
	RelayIsolation *isolation = relay->isolation;

	if (isolation->producer == NULL)
		return;
	while (kafka_producer_serve(isolation->producer, &handlers, relay, 1000) >= 1000)
		;
	if (isolation->given_up != 0)
		(void) isolation_lose(relay, kafka_error_text(isolation->given_up), now);
	if (!isolation->failed &&
		(isolation->class != KAFKA_ERROR_NONE ||
		 kafka_producer_is_dead(isolation->producer, NULL)))
	{
		/* what it still has to report says more: wait a little for it */
		isolation->failed = true;
		kafka_producer_purge(isolation->producer, true);
		isolation->reset_by = TimestampTzPlusMilliseconds(now, RESET_DRAIN_MS);
	}
	if (isolation->failed)
	{
		if (kafka_producer_outstanding(isolation->producer) == 0 ||
			now >= isolation->reset_by)
		{
			if (isolation->class == KAFKA_ERROR_NONE)
				isolation->retry_at = TimestampTzPlusMilliseconds(now, RETRY_MS);
			judge(relay, now);
			isolation_close(relay);
		}
	}
	else if (kafka_producer_outstanding(isolation->producer) == 0 &&
			 relay_transaction_is_idle(relay, TRANSACTION_SECOND) &&
			 TimestampDifferenceExceeds(isolation->used_at, now, IDLE_MS))
		isolation_close(relay);

	if (relay->exact)
		relay_transaction_serve(relay, TRANSACTION_SECOND, now);
}

TimestampTz
isolation_due(const Relay *relay)
{
	const RelayIsolation *isolation = relay->isolation;

	if (isolation->producer == NULL)
		return 0;
	if (isolation->failed)
		return isolation->reset_by;
	if (kafka_producer_outstanding(isolation->producer) > 0)
		return 0;
	return TimestampTzPlusMilliseconds(isolation->used_at, IDLE_MS + 1);
}
