/*
 * relay_limits.c
 *	  How large a batch the broker takes, topic by topic.
 *
 * A topic's max.message.bytes bounds a batch, not a message. The relay asks the
 * broker for it before it sends the first message of a topic, every five
 * minutes, when a batch was refused for its size, and when publishing refused a
 * message because of it. What it hears goes two ways.
 *
 * Into outbox.topic_limit, when it has changed: publishing refuses what cannot
 * fit (topic_limit.c). A topic whose limit the broker does not tell (any more)
 * has no row there.
 *
 * And into what is sent. The producer's batch.size holds for all topics, so it
 * is made no larger than the smallest limit of the topics in use; the producer
 * is remade for it when nothing is in flight, as for a change of its kind
 * (relay_producer.c). A topic whose limit is smaller than SMALL_BATCH must not
 * make the batches of all others tiny: it bounds what of it is in flight instead
 * (relay_topic.c), as any limit does until the producer is remade.
 *
 * Whoever may not ask (Kafka's ACL DESCRIBE_CONFIGS), and whoever has a broker
 * that does not answer, is no worse off than without all this: a batch that is
 * too large is refused, and isolated.
 */
#include "postgres.h"

#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "due.h"
#include "guc.h"
#include "relay_isolation.h"
#include "relay_limits.h"
#include "topic_limit.h"

/* How long an answer is good, and no answer. */
#define ANSWER_LIFETIME_MS (5 * 60 * 1000)
#define RETRY_MS 60000

/* How long the first message of a topic waits for the answer. */
#define AWAIT_MS 300

/* Refused publishers make the relay ask at most so often. */
#define DOUBT_INTERVAL_MS 2000

/* Until a locked table is tried again. */
#define STORE_RETRY_MS 100

/* A topic resolved within this time is in use; they are every five minutes. */
#define IN_USE_MS (15 * 60 * 1000)

/* Kafka's Java producers make batches of this size. */
#define SMALL_BATCH 16384

typedef struct KnownLimit
{
	char		topic[OUTBOX_TOPIC_MAX_LENGTH + 3]; /* hash key */
	int			bytes;			/* max.message.bytes; 0: not known */
	bool		asking;			/* an answer is under way */
	TimestampTz ask_at;			/* when it is asked for next; 0: at once */
	TimestampTz awaited_since;	/* by the first message; or 0 */
	TimestampTz used_at;		/* resolved last; 0: not by this relay */

	/* on disk */
	int			stored_bytes;	/* 0: no row */
	bool		stored_compressed;
} KnownLimit;

struct RelayLimits
{
	HTAB	   *table;
	int			asking;			/* how many answers are under way */
	TimestampTz ask_at;			/* the earliest of all, once ask_known */
	bool		ask_known;
	bool		news;			/* answers came, to be put to use */
	TimestampTz store_at;		/* something is to be stored then; or 0 */
	int			batch_size;		/* see limits_batch_size() */
	bool		more_used;		/* than it was chosen for */
	bool		awaited;		/* reading waits for an answer */
	bool		silent;			/* nothing was answered in time: waiting is in
								 * vain */
	uint32		doubted_seen;
	TimestampTz doubted_at;

	/* the main producer */
	char	   *brokers;		/* that it was made for, or NULL */
	int			producer_batch_size;
	int			producer_bound; /* that it was made with */
	bool		compresses;

	/* what went wrong, to be told once */
	char		denied_topic[OUTBOX_TOPIC_MAX_LENGTH + 3];
	bool		denied_told;
	char		no_answer[KAFKA_ERROR_LENGTH];
	bool		no_answer_told;
};

RelayLimits *
limits_create(MemoryContext context)
{
	RelayLimits *limits = MemoryContextAllocZero(context, sizeof(RelayLimits));
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(((KnownLimit *) NULL)->topic);
	ctl.entrysize = sizeof(KnownLimit);
	ctl.hcxt = context;
	limits->table = hash_create("outbox_kafka limits", 64, &ctl,
								HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	limits->ask_known = true;
	return limits;
}

static KnownLimit *
enter(RelayLimits *limits, const char *topic)
{
	bool		found;
	KnownLimit *limit = hash_search(limits->table, topic, HASH_ENTER, &found);

	if (!found)
	{
		memset((char *) limit + sizeof(limit->topic), 0,
			   sizeof(KnownLimit) - sizeof(limit->topic));
		limits->ask_at = 0;
		limits->ask_known = true;
	}
	return limit;
}

void
limits_load(Relay *relay, const OutboxCatalog *catalog)
{
	List	   *rows;
	ListCell   *lc;

	if (!topic_limit_read(catalog, CURSOR_NO_WAIT, &rows))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not read outbox.topic_limit, it is locked")));
	foreach(lc, rows)
	{
		const TopicLimit *row = (const TopicLimit *) lfirst(lc);
		KnownLimit *limit = enter(relay->limits, row->topic);

		limit->bytes = limit->stored_bytes = row->bytes;
		limit->stored_compressed = row->compressed;
	}
	relay->limits->doubted_seen = pg_atomic_read_u32(&relay->slot->limits_doubted);
}

/* ---- what is sent ---- */

/* The smallest limit in use that batches are made to fit. */
static void
choose_batch_size(RelayLimits *limits, TimestampTz now)
{
	HASH_SEQ_STATUS status;
	const KnownLimit *limit;

	limits->batch_size = 0;
	hash_seq_init(&status, limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
	{
		if (limit->bytes < SMALL_BATCH || limit->used_at == 0 ||
			TimestampDifferenceExceeds(limit->used_at, now, IN_USE_MS))
			continue;
		if (limits->batch_size == 0 || limit->bytes < limits->batch_size)
			limits->batch_size = limit->bytes;
	}
}

int
limits_batch_size(const Relay *relay)
{
	return relay->limits->batch_size;
}

bool
limits_batches_fit(const Relay *relay)
{
	const RelayLimits *limits = relay->limits;

	if (limits->batch_size > 0 && limits->batch_size < limits->producer_batch_size)
		return false;

	/* they can be larger, if it was a limit that bounded them */
	return limits->producer_bound != limits->producer_batch_size ||
		(limits->batch_size > 0 && limits->batch_size <= limits->producer_bound);
}

/* A topic was resolved: its limit matters. */
static void
use(Relay *relay, RelayTopic *topic, const KafkaProducer *producer, TimestampTz now)
{
	RelayLimits *limits = relay->limits;
	KnownLimit *limit = enter(limits, topic->name);
	bool		compresses;

	if (limit->used_at == 0 ||
		TimestampDifferenceExceeds(limit->used_at, now, IN_USE_MS))
		limits->more_used = true;
	limit->used_at = now;
	topic->max_message_bytes = limit->bytes;
	kafka_producer_batching(producer, &topic->batch_size, &compresses);
}

/* After the last use() in a row. */
static void
consider_used(RelayLimits *limits, TimestampTz now)
{
	if (limits->more_used)
		choose_batch_size(limits, now);
	limits->more_used = false;
}

bool
limits_resolve(Relay *relay, RelayTopic *topic, KafkaProducer *producer,
			   TimestampTz now, KafkaError *error)
{
	if (!relay_topic_resolve(topic, producer, RELAY_TOPIC_ANSWER_MS, now, error))
		return false;
	use(relay, topic, producer, now);
	consider_used(relay->limits, now);
	return true;
}

static void
use_expected(void *arg, RelayTopic *topic)
{
	Relay	   *relay = (Relay *) arg;

	use(relay, topic, relay->producer, topic->partitions_at);
}

void
limits_resolve_expected(Relay *relay, TimestampTz now)
{
	relay_topics_resolve_expected(relay->topics, relay->producer, RELAY_TOPIC_ANSWER_MS,
								  now, use_expected, relay);
	consider_used(relay->limits, now);
}

bool
limits_await(Relay *relay, const RelayTopic *topic, TimestampTz now)
{
	RelayLimits *limits = relay->limits;
	KnownLimit *limit = enter(limits, topic->name);

	limits->awaited = false;
	if (!limit->asking && limit->ask_at != 0)
	{
		limit->awaited_since = 0;
		return false;
	}
	if (limit->awaited_since == 0)
		limit->awaited_since = now;
	if (TimestampDifferenceExceeds(limit->awaited_since, now, AWAIT_MS))
		limits->silent = true;
	if (limits->silent)
		return false;
	limits->awaited = true;
	relay->retry_at = TimestampTzPlusMilliseconds(limit->awaited_since, AWAIT_MS + 1);
	return true;
}

/* ---- asking ---- */

static void
ask_at_once(RelayLimits *limits, KnownLimit *limit)
{
	limit->ask_at = 0;
	limits->ask_at = 0;
	limits->ask_known = true;
}

void
limits_doubt(Relay *relay, const char *topic)
{
	KnownLimit *limit = hash_search(relay->limits->table, topic, HASH_FIND, NULL);

	if (limit != NULL)
		ask_at_once(relay->limits, limit);
}

void
limits_ask_for_all(Relay *relay)
{
	HASH_SEQ_STATUS status;
	KnownLimit *limit;

	hash_seq_init(&status, relay->limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
		ask_at_once(relay->limits, limit);
	relay->limits->denied_told = relay->limits->no_answer_told = false;
}

/* What other brokers said is no reason to refuse anything. */
static void
forget_other_brokers(Relay *relay)
{
	RelayLimits *limits = relay->limits;
	HASH_SEQ_STATUS status;
	KnownLimit *limit;

	if (limits->brokers != NULL && strcmp(limits->brokers, guc_bootstrap_servers) == 0)
		return;
	if (limits->brokers != NULL)
	{
		hash_seq_init(&status, limits->table);
		while ((limit = hash_seq_search(&status)) != NULL)
			limit->bytes = 0;
		limits->news = true;
		pfree(limits->brokers);
	}
	limits->brokers = MemoryContextStrdup(relay->context, guc_bootstrap_servers);
	limits_ask_for_all(relay);
}

void
limits_producer_opened(Relay *relay)
{
	RelayLimits *limits = relay->limits;
	bool		compressed = limits->compresses;

	forget_other_brokers(relay);
	limits->producer_bound = limits->batch_size;
	kafka_producer_batching(relay->producer, &limits->producer_batch_size,
							&limits->compresses);
	if (limits->compresses != compressed)
		limits->news = true;
}

void
limits_producer_closed(Relay *relay)
{
	HASH_SEQ_STATUS status;
	KnownLimit *limit;

	/* what it was asked for it does not answer any more */
	relay->limits->awaited = false;
	if (relay->limits->asking == 0)
		return;
	relay->limits->asking = 0;
	hash_seq_init(&status, relay->limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
	{
		if (limit->asking)
		{
			limit->asking = false;
			ask_at_once(relay->limits, limit);
		}
	}
}

/* When the next one is to be asked for. */
static TimestampTz
next_ask_at(RelayLimits *limits)
{
	HASH_SEQ_STATUS status;
	const KnownLimit *limit;

	if (limits->ask_known)
		return limits->ask_at;
	limits->ask_at = DT_NOEND;
	limits->ask_known = true;
	hash_seq_init(&status, limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
	{
		if (!limit->asking)
			limits->ask_at = Min(limits->ask_at, limit->ask_at);
	}
	return limits->ask_at;
}

static void
ask(Relay *relay, TimestampTz now)
{
	RelayLimits *limits = relay->limits;
	const char *topics[KAFKA_LIMITS_AT_ONCE];
	int			count = 0;
	HASH_SEQ_STATUS status;
	KnownLimit *limit;

	hash_seq_init(&status, limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
	{
		if (limit->ask_at > now)
			continue;
		limit->asking = true;
		topics[count++] = limit->topic;
		if (count == KAFKA_LIMITS_AT_ONCE)
		{
			hash_seq_term(&status);
			break;
		}
	}
	limits->ask_known = false;
	limits->asking = count;
	if (count > 0)
		kafka_producer_ask_limits(relay->producer, topics, count);
}

/* Publishers were refused: what they were refused by may be out of date. */
static void
look_at_doubts(Relay *relay, TimestampTz now)
{
	RelayLimits *limits = relay->limits;
	uint32		doubted = pg_atomic_read_u32(&relay->slot->limits_doubted);
	HASH_SEQ_STATUS status;
	KnownLimit *limit;

	if (doubted == limits->doubted_seen ||
		!TimestampDifferenceExceeds(limits->doubted_at, now, DOUBT_INTERVAL_MS))
		return;
	limits->doubted_seen = doubted;
	limits->doubted_at = now;
	hash_seq_init(&status, limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
	{
		if (limit->bytes > 0)
			ask_at_once(limits, limit);
	}
}

/* ---- answers; limits_answer() must not raise an error ---- */

static void
answered(KnownLimit *limit, TimestampTz now, int lifetime_ms)
{
	limit->asking = false;
	limit->awaited_since = 0;
	limit->ask_at = TimestampTzPlusMilliseconds(now, lifetime_ms);
}

void
limits_answer(void *arg, const KafkaTopicLimit *answer)
{
	Relay	   *relay = (Relay *) arg;
	RelayLimits *limits = relay->limits;
	TimestampTz now = relay->last_ack_at;
	KnownLimit *limit;

	limits->news = true;
	limits->ask_known = false;
	if (answer->topic == NULL)
	{
		HASH_SEQ_STATUS status;

		limits->asking = 0;
		hash_seq_init(&status, limits->table);
		while ((limit = hash_seq_search(&status)) != NULL)
		{
			if (!limit->asking)
				continue;
			answered(limit, now, RETRY_MS);
			if (answer->error.class == KAFKA_ERROR_CLIENT)
				limit->bytes = 0;
		}
		if (answer->error.class != KAFKA_ERROR_NONE)
			strlcpy(limits->no_answer, answer->error.message, sizeof(limits->no_answer));
		return;
	}

	if (strlen(answer->topic) >= sizeof(limit->topic))
		return;
	limit = hash_search(limits->table, answer->topic, HASH_FIND, NULL);
	if (limit == NULL || !limit->asking)
		return;
	if (answer->error.class == KAFKA_ERROR_RETRY)
		return;					/* no answer, like those that are left out */
	answered(limit, now, ANSWER_LIFETIME_MS);
	limits->silent = false;
	limit->bytes = answer->bytes;
	if (kafka_error_is_denied(answer->error.code))
		strlcpy(limits->denied_topic, limit->topic, sizeof(limits->denied_topic));
}

/* Tell what is a matter for the administrator, once. */
static void
report_problems(RelayLimits *limits)
{
	if (limits->denied_topic[0] != '\0' && !limits->denied_told)
	{
		limits->denied_told = true;
		ereport(LOG,
				(errmsg("outbox_kafka is not allowed to ask for max.message.bytes of topic \"%s\"",
						limits->denied_topic),
				 errdetail("Messages that are too large for it are parked when the broker refuses them; publishing cannot refuse them."),
				 errhint("Allow the relay's Kafka user DESCRIBE_CONFIGS on the topics that it publishes to.")));
	}
	if (limits->no_answer[0] != '\0' && !limits->no_answer_told)
	{
		limits->no_answer_told = true;
		ereport(LOG,
				(errmsg("outbox_kafka was not told how large messages may be: %s", limits->no_answer),
				 errdetail("Messages that are too large for their topic are parked when the broker refuses them; publishing cannot refuse them.")));
	}
	limits->denied_topic[0] = limits->no_answer[0] = '\0';
}

static void
apply(RelayTopics *topics, const KnownLimit *limit)
{
	RelayTopic *topic = relay_topic_find(topics, limit->topic);

	if (topic != NULL)
		topic->max_message_bytes = limit->bytes;
}

static bool
must_be_stored(const RelayLimits *limits, const KnownLimit *limit)
{
	return limit->bytes != limit->stored_bytes ||
		(limit->bytes > 0 && limit->stored_compressed != limits->compresses);
}

static void
use_news(Relay *relay, TimestampTz now)
{
	RelayLimits *limits = relay->limits;
	HASH_SEQ_STATUS status;
	const KnownLimit *limit;

	limits->news = false;
	report_problems(limits);
	choose_batch_size(limits, now);
	hash_seq_init(&status, limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
	{
		apply(relay->topics, limit);
		apply(isolation_topics(relay), limit);
		if (must_be_stored(limits, limit))
			limits->store_at = now;
	}
	if (limits->awaited)
	{
		limits->awaited = false;
		relay->retry_at = 0;
	}
}

/* Store all that has changed, in one transaction. False: not now. */
static bool
store(Relay *relay)
{
	RelayLimits *limits = relay->limits;
	const OutboxCatalog *catalog;
	HASH_SEQ_STATUS status;
	KnownLimit *limit;
	List	   *changed = NIL;
	ListCell   *lc;
	bool		stored = true;

	/* nothing may be left open when a statement fails */
	hash_seq_init(&status, limits->table);
	while ((limit = hash_seq_search(&status)) != NULL)
	{
		if (must_be_stored(limits, limit))
			changed = lappend(changed, limit);
	}
	if (changed == NIL)
		return true;

	relay_begin(relay);
	foreach(lc, changed)
	{
		TopicLimit	row = {0};

		limit = (KnownLimit *) lfirst(lc);
		strlcpy(row.topic, limit->topic, sizeof(row.topic));
		row.bytes = limit->bytes;
		row.compressed = limits->compresses;
		catalog = relay_catalog(relay);
		stored = catalog != NULL && topic_limit_write(catalog, &row);
		if (!stored)
			break;
	}
	relay_commit(relay);
	if (!stored)
		return false;
	foreach(lc, changed)
	{
		limit = (KnownLimit *) lfirst(lc);
		limit->stored_bytes = limit->bytes;
		limit->stored_compressed = limits->compresses;
	}
	return true;
}

static bool
can_ask(const Relay *relay)
{
	return relay->limits->asking == 0 && relay->producer != NULL &&
		!relay->reset_needed && kafka_producer_is_connected(relay->producer);
}

void
limits_work(Relay *relay, TimestampTz now)
{
	RelayLimits *limits = relay->limits;

	look_at_doubts(relay, now);
	if (limits->news)
		use_news(relay, now);
	if (limits->store_at != 0 && limits->store_at <= now)
		limits->store_at = store(relay) ? 0 :
			TimestampTzPlusMilliseconds(now, STORE_RETRY_MS);
	if (can_ask(relay) && next_ask_at(limits) <= now)
		ask(relay, now);
}

TimestampTz
limits_due(const Relay *relay, TimestampTz now)
{
	RelayLimits *limits = relay->limits;
	TimestampTz due = limits->store_at;

	if (limits->news)
		due = now;
	if (pg_atomic_read_u32(&relay->slot->limits_doubted) != limits->doubted_seen)
		due = due_sooner(due, TimestampTzPlusMilliseconds(limits->doubted_at, DOUBT_INTERVAL_MS + 1));
	if (can_ask(relay))
	{
		TimestampTz ask_at = next_ask_at(limits);

		if (!TIMESTAMP_IS_NOEND(ask_at))
			due = due_sooner(due, Max(ask_at, now));
	}
	return due;
}
