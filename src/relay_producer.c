/*
 * relay_producer.c
 *	  Making, serving, losing and dropping the producer.
 *
 * A producer is made anew when it cannot be used any more (a permanent error
 * of a batch is fatal for it: anything sent after that batch could overtake
 * it) and when its settings changed. What was in its hands and is not
 * acknowledged without a gap is read and sent again; that is the "at least" in
 * at least once, and at most outbox_kafka.max_in_flight messages each time.
 *
 * There are two kinds. The ordinary one sends a message as soon as it has it.
 * With a backlog that makes many small batches, for which relay and broker
 * pay; so after so many chunks without an end (BULK_CHUNKS) another one takes
 * over that waits a few milliseconds for a batch to fill, until the end of the
 * backlog is found and all is acknowledged. The same when batches have to be
 * smaller for a topic that is sent to now (relay_limits.c). The change is made
 * when nothing is in flight: nothing is repeated by it, and no order changes.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "relay_discard.h"
#include "relay_held.h"
#include "relay_internal.h"
#include "relay_isolation.h"
#include "relay_limits.h"
#include "relay_transaction.h"

/* Between tries after a failure: doubled each time, up to the maximum. */
#define RETRY_MIN_MS 500
#define RETRY_MAX_MS 30000

/*
 * How long reports of a failed producer's other messages are waited for. Those
 * of the refused lane do not come.
 */
#define RESET_DRAIN_MS 300

/* Chunks of 2,000 messages read without finding the end. */
#define BULK_CHUNKS 10

/* Numbers in a batch that say so before anything was sent: some may be unused. */
#define BULK_IDS 100000

/* librdkafka repeats itself while it reconnects. */
#define LOG_INTERVAL_MS 10000

/* The ordinary one and the isolation's; kept here for the exit callback. */
#define MAX_PRODUCERS 2
static KafkaProducer *running[MAX_PRODUCERS];

/* ---- events; these handlers must not raise an error ---- */

/* The first refusal says most; the others follow from it. */
static void
note_refusal(Relay *relay, RelayTopic *topic, int partition, int64 id,
			 const KafkaDelivery *delivery)
{
	if (relay->refusal != KAFKA_ERROR_NONE &&
		(relay->refusal != KAFKA_ERROR_PURGED || delivery->class == KAFKA_ERROR_PURGED))
		return;
	relay->refusal = delivery->class;
	relay->refusal_code = delivery->code;
	relay->refused_topic = topic;
	relay->refused_partition = partition;
	snprintf(relay->refusal_text, sizeof(relay->refusal_text),
			 "message " INT64_FORMAT " to topic \"%s\" partition %d: %s",
			 id, topic->name, partition, kafka_error_text(delivery->code));
}

static void
delivered(void *arg, const KafkaDelivery *delivery)
{
	Relay	   *relay = (Relay *) arg;
	WindowEntry *entry;
	RelayTopic *topic;
	RelayRefusal refused = {0};

	entry = window_entry(relay->window, delivery->tag);
	if (entry == NULL || entry->acknowledged)
	{
		/* not the main cursor's, or not any more */
		(void) relay_held_report(relay, delivery, &refused);
		if (refused.topic != NULL)
			note_refusal(relay, refused.topic, refused.partition, refused.id, delivery);
		return;
	}
	topic = (RelayTopic *) entry->topic;

	if (delivery->class == KAFKA_ERROR_NONE)
	{
		/* relay->last_ack_at is the time of this round of serving */
		relay_topic_acknowledged(topic, entry->partition, entry->bytes,
								 relay->last_ack_at);
		relay->acknowledged_at = relay->last_ack_at;
		if (topic == relay->unproven && entry->partition == relay->unproven_partition)
			relay->unproven = NULL;
		window_acknowledge(relay->window, delivery->tag);
		return;
	}

	note_refusal(relay, topic, entry->partition, entry->id, delivery);
}

void
relay_producer_event(void *arg, const KafkaError *error)
{
	Relay	   *relay = (Relay *) arg;

	/* connections come and go; what matters is remembered for the view */
	strlcpy(relay->event_text, error->message, sizeof(relay->event_text));
	relay->event_pending = true;
}

void
relay_producer_log(void *arg, int syslog_level, const char *text)
{
	Relay	   *relay = (Relay *) arg;

	/* one line at a time: the most recent one of the interval */
	if (syslog_level <= 4)
	{
		strlcpy(relay->log_text, text, sizeof(relay->log_text));
		relay->log_pending = true;
	}
}

static void
forbidden(void *arg, const char *name, int code)
{
	Relay	   *relay = (Relay *) arg;

	if (relay->refusal != KAFKA_ERROR_NONE && relay->refusal != KAFKA_ERROR_PURGED)
		return;
	relay->refusal = KAFKA_ERROR_TOPIC;
	relay->refusal_code = code;
	relay->refused_topic = relay_topic(relay->topics, name, (int) strlen(name));
	relay->refused_partition = 0;
	snprintf(relay->refusal_text, sizeof(relay->refusal_text), "topic \"%s\": %s",
			 name, kafka_error_text(code));
}

static const KafkaEventHandlers handlers = {
	.delivered = delivered,
	.error = relay_producer_event,
	.log = relay_producer_log,
	.limit = limits_answer,
	.forbidden = forbidden,
};

/* Tell what the handlers noted, now that no frame of librdkafka is below. */
static void
report_events(Relay *relay, TimestampTz now)
{
	if (relay->event_pending)
	{
		relay->event_pending = false;
		shmem_set_error(&relay->slot->worker, relay->event_text);
	}
	if (relay->log_pending &&
		TimestampDifferenceExceeds(relay->logged_at, now, LOG_INTERVAL_MS))
	{
		relay->log_pending = false;
		relay->logged_at = now;
		ereport(LOG,
				(errmsg("outbox_kafka client: %s", relay->log_text)));
	}
}

/* Everything that the connection depends on, as one text to compare. */
static char *
present_settings(void)
{
	return psprintf("%d\n%d\n%s\n%s\n%s\n%d\n%d\n%d\n%d\n%s",
					guc_delivery, guc_max_transaction_messages,
					guc_bootstrap_servers, guc_producer_config, guc_config_file,
					guc_max_in_flight, guc_max_in_flight_size,
					guc_headers, guc_record_timestamp, guc_source);
}

bool
relay_producer_is_outdated(const Relay *relay)
{
	char	   *settings;
	bool		result;

	if (relay->producer_settings == NULL)
		return true;

	/* what the file says now is not known: credentials may have changed */
	if (guc_config_file[0] != '\0')
		return true;

	/* this database may send no longer */
	if (identity_problem(relay->identity) != NULL)
		return true;

	settings = present_settings();
	result = strcmp(settings, relay->producer_settings) != 0;
	pfree(settings);
	return result;
}

/*
 * At exit: librdkafka's threads must have ended before the process does.
 */
static void
end_at_exit(int code, Datum arg)
{
	for (int i = 0; i < MAX_PRODUCERS; i++)
		relay_producer_end(running[i]);
}

KafkaProducer *
relay_producer_start(Relay *relay, int number, bool bulk, char **reason)
{
	static bool exit_callback_set = false;
	KafkaProducerConfig config;
	KafkaProducer *producer;
	KafkaError	error;
	int			place = 0;

	*reason = identity_problem(relay->identity);
	if (*reason != NULL)
		return NULL;

	config.bootstrap_servers = guc_bootstrap_servers;
	config.client_id = psprintf("outbox_kafka/%s", relay->database);
	config.properties = guc_producer_config;
	config.config_file = guc_config_file;
	config.bulk = bulk;
	config.transactional_id = relay_transaction_id(relay, number);
	config.max_batch_bytes = limits_batch_size(relay);
	config.max_in_flight = guc_max_in_flight;
	config.max_in_flight_kb = guc_max_in_flight_size;

	if (!exit_callback_set)
	{
		before_shmem_exit(end_at_exit, (Datum) 0);
		exit_callback_set = true;
	}
	while (running[place] != NULL)
		place++;
	Assert(place < MAX_PRODUCERS);
	producer = running[place] = kafka_producer_create(&config, &error);
	if (producer == NULL)
		*reason = pstrdup(error.message);
	return producer;
}

void
relay_producer_end(KafkaProducer *producer)
{
	for (int i = 0; i < MAX_PRODUCERS; i++)
	{
		if (running[i] == producer)
			running[i] = NULL;
	}
	kafka_producer_destroy(producer);
}

void
relay_producer_open(Relay *relay)
{
	char	   *reason;

	if (relay->producer != NULL || guc_bootstrap_servers[0] == '\0' || relay->conflict)
		return;

	relay->bulk = relay->bulk_wanted;
	relay->producer = relay_producer_start(relay, TRANSACTION_MAIN, relay->bulk, &reason);
	if (relay->producer == NULL)
	{
		relay_fail(relay, NULL, reason);
		return;
	}

	limits_producer_opened(relay);
	relay->producer_since = GetCurrentTimestamp();
	if (relay->producer_settings)
		pfree(relay->producer_settings);
	relay->producer_settings = MemoryContextStrdup(relay->context, present_settings());
	window_resize(relay->window, relay->exact ?
				  Max(guc_max_in_flight, guc_max_transaction_messages) : guc_max_in_flight);
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	strlcpy(relay->slot->broker, guc_bootstrap_servers, SLOT_BROKER_LENGTH);
	LWLockRelease(shared_state->lock);
	relay_set_wait_events(relay);
	relay_transaction_opened(relay, TRANSACTION_MAIN, relay->producer);
}

/*
 * All that a failed producer had to report has come: what was it? A broker
 * refuses a whole batch for one of its records, so any message of the refused
 * lane that was in flight may be the one: the lane is held, to be isolated when
 * the producer is gone (it is returned), and the others go on.
 */
static RelayHeld *
judge(Relay *relay, TimestampTz now)
{
	KafkaErrorClass class = relay->refusal;
	RelayTopic *topic = relay->refused_topic;
	bool		whole = (class == KAFKA_ERROR_TOPIC);
	int			partition = whole ? HELD_WHOLE_TOPIC : relay->refused_partition;
	KafkaError	error;

	if (class == KAFKA_ERROR_RECORD && kafka_error_is_size(relay->refusal_code))
		limits_doubt(relay, topic->name);

	if ((class == KAFKA_ERROR_NONE || class == KAFKA_ERROR_PURGED) &&
		kafka_producer_is_dead(relay->producer, &error))
		relay_fail(relay, NULL, error.message);
	else if ((class != KAFKA_ERROR_RECORD && class != KAFKA_ERROR_TOPIC) ||
			 !relay_hold(relay, topic, partition, whole ? HELD_REFUSED : HELD_ISOLATED,
						 kafka_error_text(relay->refusal_code), now))
		relay_fail(relay, topic, relay->refusal_text);
	else
	{
		RelayHeld  *held = relay_held_find(topic, partition);

		/* of a topic with many held partitions, all of it is held */
		return held ? held : relay_held_find(topic, HELD_WHOLE_TOPIC);
	}
	return NULL;
}

/*
 * The same when the transaction is lost with the producer: first it is ended,
 * so that nothing is in flight, then the lane is held.
 */
static void
judge_transaction(Relay *relay, TimestampTz now)
{
	KafkaErrorClass class = relay->refusal;
	RelayTopic *topic = relay->refused_topic;
	bool		whole = (class == KAFKA_ERROR_TOPIC);
	int			partition = whole ? HELD_WHOLE_TOPIC : relay->refused_partition;
	int			partitions = topic ? topic->partitions : 0;
	const char *reason = kafka_error_text(relay->refusal_code);
	RelayHeld  *held;
	KafkaError	error;
	bool		dead = kafka_producer_is_dead(relay->producer, &error);
	const char *lost = pstrdup(relay->lost_text);

	if (class == KAFKA_ERROR_RECORD && kafka_error_is_size(relay->refusal_code))
		limits_doubt(relay, topic->name);

	relay_producer_close(relay);
	if (class != KAFKA_ERROR_RECORD && class != KAFKA_ERROR_TOPIC)
		relay_fail(relay, NULL, dead ? error.message :
				   lost[0] != '\0' ? lost : relay->refusal_text);
	else if (!relay_transaction_hold_now(relay, topic, partition, partitions,
										 whole ? HELD_REFUSED : HELD_ISOLATED, reason, now))
		relay_fail(relay, topic, relay->refusal_text);
	else
	{
		/* of a topic with many held partitions, all of it is held */
		held = relay_held_find(topic, partition);
		if (held == NULL)
			held = relay_held_find(topic, HELD_WHOLE_TOPIC);
		if (held != NULL)
			relay_held_isolate(held, whole ? HELD_REFUSED : HELD_ISOLATED, now);
		if (held != NULL && whole)
			relay_held_failed(held, now);
	}
}

bool
relay_producer_is_changing(const Relay *relay)
{
	return relay->producer != NULL &&
		(relay->bulk != relay->bulk_wanted || !limits_batches_fit(relay));
}

bool
relay_producer_expects_bulk(Relay *relay, const CursorBound *batch, int64 position)
{
	int64		read_id = Max(position, window_read_bound(relay->window)->max_id);

	if (relay->bulk || window_oldest(relay->window) != NULL ||
		relay_held_in_flight(relay) > 0 || relay_transaction_has_begun(relay) ||
		batch->max_id - read_id < BULK_IDS)
		return false;
	relay->bulk_wanted = true;
	return true;
}

/* Decide which kind is wanted, and drop the other one when it is idle. */
static void
choose_kind(Relay *relay)
{
	/* what a silent lane still has in flight is no reason to wait */
	bool		idle = window_oldest(relay->window) == NULL &&
	relay_held_in_flight(relay) == 0;

	if (relay->full_chunks >= BULK_CHUNKS)
		relay->bulk_wanted = true;
	else if (relay->caught_up && idle)
		relay->bulk_wanted = false;

	if (relay_producer_is_changing(relay) && idle)
	{
		bool		caught_up = relay->caught_up;

		relay_producer_close(relay);

		/* nothing was in flight: what was read stays read */
		relay->caught_up = caught_up;
	}
}

void
relay_producer_lose(Relay *relay, const char *text, TimestampTz now)
{
	if (relay->reset_needed)
		return;
	strlcpy(relay->lost_text, text, sizeof(relay->lost_text));
	relay->reset_needed = true;
	kafka_producer_purge(relay->producer, false);
	relay->reset_by = TimestampTzPlusMilliseconds(now, RESET_DRAIN_MS);
}

void
relay_producer_serve(Relay *relay)
{
	TimestampTz now = GetCurrentTimestamp();

	relay->last_ack_at = now;
	if (relay->producer == NULL)
	{
		if (relay->exact)
			relay_transaction_serve(relay, TRANSACTION_MAIN, now);
		return;
	}
	while (kafka_producer_serve(relay->producer, &handlers, relay, 1000) >= 1000)
		;
	report_events(relay, now);

	if (relay->exact)
	{
		relay_transaction_serve(relay, TRANSACTION_MAIN, now);
		if (relay->producer == NULL)
			return;
	}
	if (!relay->reset_needed &&
		(relay->refusal != KAFKA_ERROR_NONE ||
		 kafka_producer_is_dead(relay->producer, NULL)))
	{
		/* what it still has to report says more: wait a little for it */
		relay->reset_needed = true;
		kafka_producer_purge(relay->producer, false);
		relay->reset_by = TimestampTzPlusMilliseconds(now, RESET_DRAIN_MS);
	}
	else if (window_has_delivered(relay->window, relay->failed_tag))
		relay->failures = 0;	/* what failed before went through */

	if (relay->reset_needed &&
		(kafka_producer_outstanding(relay->producer) == 0 ||
		 now >= relay->reset_by))
	{
		bool		whole = (relay->refusal == KAFKA_ERROR_TOPIC);
		RelayHeld  *held;

		if (relay->exact)
		{
			judge_transaction(relay, now);
			return;
		}
		held = judge(relay, now);
		if (whole && held != NULL && held->nleftovers > 1)
			relay_topic_warn_refused(held->topic, held->lane.error);
		relay_producer_close(relay);
		if (held != NULL)
			relay_held_isolate(held, whole ? HELD_REFUSED : HELD_ISOLATED, now);
		if (held != NULL && whole)
			relay_held_failed(held, now);
	}
	else if (!relay->reset_needed)
		choose_kind(relay);
}

void
relay_producer_close(Relay *relay)
{
	uint64		before = relay->repeated;

	if (relay->producer == NULL)
		return;
	if (window_in_flight(relay->window) > 0)
		discard_doubt(relay);

	/* what is not committed is not there, for those who read what is */
	if (!relay->exact)
		relay->repeated += window_in_flight(relay->window) +
			window_acknowledged_out_of_order(relay->window);
	relay_held_forget_producer(relay, false);
	if (relay->repeated > before)
		ereport(LOG,
				(errmsg("outbox_kafka closes a producer with " UINT64_FORMAT " messages not acknowledged in order",
						relay->repeated - before),
				 errdetail("They are sent again.")));

	relay_topics_forget_producer(relay->topics);
	limits_producer_closed(relay);
	relay_producer_end(relay->producer);
	relay->producer = NULL;
	relay->reset_needed = false;
	relay->lost_text[0] = '\0';
	relay->refusal = KAFKA_ERROR_NONE;
	relay->unresolved = NULL;
	relay->unresolved_since = 0;
	relay->unproven = NULL;
	window_reset(relay->window);
	relay_transaction_closed(relay, TRANSACTION_MAIN);
	relay->caught_up = false;
	relay_set_wait_events(relay);
}

void
relay_fail(Relay *relay, RelayTopic *topic, const char *text)
{
	TimestampTz now = GetCurrentTimestamp();
	int			wait = RETRY_MIN_MS << Min(relay->failures, 6);

	wait = Max(Min(wait, RETRY_MAX_MS), relay_transaction_patience(relay));
	relay->failed = true;
	relay->failures++;
	relay->failed_tag = window_next_tag(relay->window);
	relay->retry_at = TimestampTzPlusMilliseconds(now, wait);
	shmem_set_error(&relay->slot->worker, text);
	if (topic != NULL)
		relay_topic_failed(topic, text);

	/* the same failure again is not news */
	if (strcmp(relay->last_failure, text) != 0 || relay->failures == 1)
		ereport(WARNING,
				(errmsg("outbox_kafka cannot send: %s", text),
				 errdetail("Nothing is lost; what follows waits. It is tried again in %d ms, then less often.",
						   wait)));
	strlcpy(relay->last_failure, text, sizeof(relay->last_failure));
}
