/*
 * relay_topic.c
 *	  What the relay knows of each topic it sends to, and of its lanes.
 *
 * The relay computes the partition itself, so that it knows which lane a
 * message is in before it hands it over; therefore it has to know how many
 * partitions a topic has. The broker is asked once, and again every five
 * minutes so that added partitions are used some time (their keys move then,
 * as with any Kafka client).
 *
 * A broker that knows nothing of a producer accepts any sequence number of it
 * in a partition. So if the first batch is refused and the next one is on its
 * way already, the next one is accepted, and what is sent again later has been
 * overtaken. Once a batch was accepted, the broker refuses what follows a gap.
 * Therefore the first message of a producer to a partition travels alone; the
 * same after a long silence, when the broker may have forgotten the producer.
 * In a Kafka transaction it need not: what follows a refused batch is given up
 * with it.
 *
 * A broker refuses a batch that is larger than the topic's max.message.bytes. The
 * producer's batches are kept below that where it costs little (relay_limits.c);
 * where they are not, no more than fits into one is on the way to a partition at
 * a time, however the client cuts it into batches.
 *
 * While a partition of a topic is held (relay_held.c), the number of its
 * partitions stays what it was: a key that moved to another one could be sent
 * by two cursors, or by none.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "relay_topic.h"
#include "topic_stats.h"

#define PARTITIONS_LIFETIME_MS (5 * 60 * 1000)

/* Brokers remember producers for a day by default; it can be set lower. */
#define FORGOTTEN_MS (10 * 60 * 1000)

/* What was sent while no limit mattered fits into none with others. */
#define UNCOUNTED_BYTES ((size_t) 1 << 40)

struct RelayTopics
{
	MemoryContext context;
	HTAB	   *table;
	bool		is_main;
	RelayTopic *last;			/* the one found last */
};

RelayTopics *
relay_topics_create(bool is_main, MemoryContext context)
{
	RelayTopics *topics = MemoryContextAllocZero(context, sizeof(RelayTopics));
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(((RelayTopic *) NULL)->name);
	ctl.entrysize = sizeof(RelayTopic);
	ctl.hcxt = context;
	topics->is_main = is_main;
	topics->context = context;
	topics->table = hash_create("outbox_kafka topics", 64, &ctl,
								HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	return topics;
}

RelayTopic *
relay_topic(RelayTopics *topics, const char *name, int length)
{
	char		key[sizeof(((RelayTopic *) NULL)->name)];
	RelayTopic *topic = topics->last;
	bool		found;

	if (topic != NULL && strncmp(topic->name, name, length) == 0 &&
		topic->name[length] == '\0')
		return topic;

	memcpy(key, name, length);
	key[length] = '\0';
	topic = hash_search(topics->table, key, HASH_ENTER, &found);
	if (!found)
		memset((char *) topic + sizeof(key), 0, sizeof(RelayTopic) - sizeof(key));
	topics->last = topic;
	return topic;
}

RelayTopic *
relay_topic_find(const RelayTopics *topics, const char *name)
{
	return hash_search(topics->table, name, HASH_FIND, NULL);
}

void
relay_topics_forget_producer(RelayTopics *topics)
{
	HASH_SEQ_STATUS status;
	RelayTopic *topic;

	hash_seq_init(&status, topics->table);
	while ((topic = hash_seq_search(&status)) != NULL)
	{
		topic->handle = NULL;
		if (topic->headers)
			kafka_headers_free(topic->headers);
		topic->headers = NULL;
		topic->partitions = 0;
		if (topic->lanes)
			pfree(topic->lanes);
		topic->lanes = NULL;
		topic->changed |= (topic->in_flight != 0);
		topic->in_flight = 0;
	}
}

bool
relay_topic_is_stale(const RelayTopic *topic, TimestampTz now)
{
	return topic->handle == NULL || topic->partitions == 0 ||
		TimestampDifferenceExceeds(topic->partitions_at, now, PARTITIONS_LIFETIME_MS);
}

static void
take_answer(RelayTopic *topic, int partitions, TimestampTz now)
{
	if (topic->pinned_partitions > 0)
		partitions = topic->pinned_partitions;
	if (partitions != topic->partitions)
	{
		RelayLane  *lanes = MemoryContextAllocZero(TopMemoryContext,
												   sizeof(RelayLane) * partitions);

		if (topic->lanes)
		{
			memcpy(lanes, topic->lanes,
				   sizeof(RelayLane) * Min(partitions, topic->partitions));
			pfree(topic->lanes);
		}
		topic->lanes = lanes;
		topic->partitions = partitions;
		topic->changed = true;
	}
	topic->partitions_at = now;
}

bool
relay_topic_resolve(RelayTopic *topic, KafkaProducer *producer, int timeout_ms,
					TimestampTz now, KafkaError *error)
{
	int			partitions;

	if (topic->handle == NULL)
		topic->handle = kafka_topic(producer, topic->name);

	partitions = kafka_topic_partitions(topic->handle, timeout_ms, error);
	if (partitions <= 0)
	{
		/* an old answer is better than none while the broker is busy */
		if (error->class == KAFKA_ERROR_RETRY && topic->partitions > 0)
		{
			topic->partitions_at = now;
			return true;
		}
		return false;
	}

	take_answer(topic, partitions, now);
	return true;
}

typedef struct TopicAnswers
{
	RelayTopics *topics;
	TimestampTz now;
	RelayTopicVisitor resolved;
	void	   *arg;
} TopicAnswers;

static void
take_expected(void *arg, const char *name, int partitions)
{
	const TopicAnswers *answers = (const TopicAnswers *) arg;
	RelayTopic *topic = relay_topic_find(answers->topics, name);

	if (topic == NULL || !topic->expected || !relay_topic_is_stale(topic, answers->now))
		return;
	take_answer(topic, partitions, answers->now);
	answers->resolved(answers->arg, topic);
}

void
relay_topics_resolve_expected(RelayTopics *topics, KafkaProducer *producer,
							  int timeout_ms, TimestampTz now,
							  RelayTopicVisitor resolved, void *arg)
{
	TopicAnswers answers = {topics, now, resolved, arg};
	HASH_SEQ_STATUS status;
	RelayTopic *topic;

	hash_seq_init(&status, topics->table);
	while ((topic = hash_seq_search(&status)) != NULL)
	{
		if (topic->expected && topic->handle == NULL)
			topic->handle = kafka_topic(producer, topic->name);
	}
	(void) kafka_producer_partitions(producer, timeout_ms, take_expected, &answers);

	hash_seq_init(&status, topics->table);
	while ((topic = hash_seq_search(&status)) != NULL)
		topic->expected = false;
}

bool
relay_topic_may_send(RelayTopic *topic, const KafkaRecord *record, bool alone,
					 TimestampTz now)
{
	RelayLane  *lane = &topic->lanes[record->partition];
	bool		bounded = topic->max_message_bytes > 0 &&
	topic->max_message_bytes < topic->batch_size;

	lane->asked_bytes = bounded ? kafka_record_size(record) : 0;
	if (lane->in_flight == 0)
	{
		if (TimestampDifferenceExceeds(lane->last_acknowledged_at, now, FORGOTTEN_MS))
			lane->proven = false;
		return true;
	}
	return (lane->proven || !alone) &&
		(!bounded ||
		 KAFKA_BATCH_OVERHEAD + lane->round_bytes + lane->asked_bytes <=
		 (size_t) topic->max_message_bytes);
}

void
relay_topic_sent(RelayTopic *topic, int partition, TimestampTz now)
{
	RelayLane  *lane = &topic->lanes[partition];

	topic->in_flight++;
	topic->changed = true;
	if (lane->in_flight++ == 0)
	{
		lane->waiting_since = now;
		lane->round_bytes = 0;
	}
	lane->round_bytes += lane->asked_bytes > 0 ? lane->asked_bytes : UNCOUNTED_BYTES;
}

void
relay_topic_acknowledged(RelayTopic *topic, int partition, uint32 bytes,
						 TimestampTz now)
{
	topic->in_flight--;
	topic->published++;
	topic->published_bytes += bytes;
	topic->changed = true;
	if (partition < topic->partitions)
	{
		topic->lanes[partition].in_flight--;
		topic->lanes[partition].proven = true;
		topic->lanes[partition].last_acknowledged_at = now;
		topic->lanes[partition].waiting_since = now;
	}
}

void
relay_topic_lost(RelayTopic *topic, int partition)
{
	if (topic->in_flight > 0)
		topic->in_flight--;
	topic->changed = true;
	if (partition < topic->partitions && topic->lanes[partition].in_flight > 0)
		topic->lanes[partition].in_flight--;
}

void
relay_topics_visit_stalled(RelayTopics *topics, TimestampTz now, int longer_than_ms,
						   RelayLaneVisitor visitor, void *arg)
{
	HASH_SEQ_STATUS status;
	RelayTopic *topic;

	hash_seq_init(&status, topics->table);
	while ((topic = hash_seq_search(&status)) != NULL)
	{
		if (topic->in_flight == 0)
			continue;
		for (int i = 0; i < topic->partitions; i++)
		{
			const RelayLane *lane = &topic->lanes[i];

			if (lane->in_flight > 0 &&
				TimestampDifferenceExceeds(lane->waiting_since, now, longer_than_ms))
				visitor(arg, topic, i);
		}
	}
}

void
relay_topic_failed(RelayTopic *topic, const char *text)
{
	strlcpy(topic->error, text, sizeof(topic->error));
	topic->changed = true;
}

void
relay_topic_warn_refused(const RelayTopic *topic, const char *reason)
{
	ereport(WARNING,
			(errmsg("outbox_kafka had messages on their way to topic \"%s\" when it was refused: %s",
					topic->name, reason),
			 errdetail("They are sent again, in order. If the topic is just being made anew, it may have taken some of them before what is ahead of them.")));
}

void
relay_topics_report(RelayTopics *topics)
{
	HASH_SEQ_STATUS status;
	RelayTopic *topic;

	hash_seq_init(&status, topics->table);
	while ((topic = hash_seq_search(&status)) != NULL)
	{
		if (!topic->changed)
			continue;
		topic_stats_report(topic->name,
						   topics->is_main && topic->partitions > 0 ? topic->partitions : -1,
						   topic->published, topic->published_bytes,
						   topics->is_main ? topic->in_flight : -1,
						   topic->error[0] != '\0' ? topic->error : NULL);
		topic->error[0] = '\0';
		topic->published = 0;
		topic->published_bytes = 0;
		topic->changed = false;
	}
}
