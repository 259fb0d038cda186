/*
 * relay_topic.h
 *	  What the relay knows of each topic it sends to, and of its lanes: a lane
 *	  is one partition of one topic, the unit whose order matters.
 */
#ifndef OUTBOX_RELAY_TOPIC_H
#define OUTBOX_RELAY_TOPIC_H

#include "datatype/timestamp.h"

#include "kafka.h"
#include "outbox_kafka.h"

#define TOPIC_ERROR_LENGTH 256

/* Partitions of a topic that can be held one by one; if more, all of it is. */
#define RELAY_TOPIC_HELD 32

typedef struct RelayLane
{
	int			in_flight;
	bool		proven;			/* this producer has had an acknowledgement */
	TimestampTz waiting_since;	/* for the next acknowledgement, if in_flight */
	TimestampTz last_acknowledged_at;
	size_t		round_bytes;	/* sent since nothing was in flight */
	size_t		asked_bytes;	/* of the record asked about last */
} RelayLane;

typedef struct RelayTopic
{
	char		name[OUTBOX_TOPIC_MAX_LENGTH + 3];	/* hash key */
	KafkaTopic *handle;			/* of the present producer, or NULL */
	int			partitions;		/* 0: to be asked for */
	TimestampTz partitions_at;	/* when the broker was asked last */
	RelayLane  *lanes;			/* [partitions] */
	KafkaHeaders *headers;		/* the constant ones, or NULL: to be made */
	int			max_message_bytes;	/* of a batch, says the broker; 0: not
									 * known */
	int			batch_size;		/* that the producer fills, if known */
	struct RelayHeld *held[RELAY_TOPIC_HELD];	/* see relay_held.h; NULL:
												 * free */
	int			nheld;			/* how many of them */
	int			pinned_partitions;	/* while one of them is held; else 0 */
	bool		expected;		/* to be asked for, with others */

	/* counters since the last report */
	uint64		published;
	uint64		published_bytes;
	int			in_flight;
	bool		changed;
	char		error[TOPIC_ERROR_LENGTH];	/* since the last report, or "" */
} RelayTopic;

typedef struct RelayTopics RelayTopics;

/*
 * One for each producer. Only the main one's says how many messages are in
 * flight, and how many partitions there are, in the statistics.
 */
extern RelayTopics *relay_topics_create(bool is_main, MemoryContext context);

/* Look up or enter. name need not be terminated. */
extern RelayTopic *relay_topic(RelayTopics *topics, const char *name, int length);

/* Look up; NULL: nothing was sent to it. Allocates nothing. */
extern RelayTopic *relay_topic_find(const RelayTopics *topics, const char *name);

/* The producer is gone, and with it handles, counts and what was in flight. */
extern void relay_topics_forget_producer(RelayTopics *topics);

/* How long the broker may take to tell of a topic, in the relay's loop. */
#define RELAY_TOPIC_ANSWER_MS 250

/*
 * Make sure handle and partitions are known, asking the broker if they are not
 * or the answer is old; waits at most timeout_ms. error is filled otherwise.
 */
extern bool relay_topic_resolve(RelayTopic *topic, KafkaProducer *producer,
								int timeout_ms, TimestampTz now,
								KafkaError *error);

/*
 * The same for all that are expected and not known, in one request: resolved is
 * called for those that the broker knows. What is left is expected no more, and
 * has to be asked for alone.
 */
typedef void (*RelayTopicVisitor) (void *arg, RelayTopic *topic);
extern void relay_topics_resolve_expected(RelayTopics *topics, KafkaProducer *producer,
										  int timeout_ms, TimestampTz now,
										  RelayTopicVisitor resolved, void *arg);

/* Whether relay_topic_resolve() has to be called before sending. */
extern bool relay_topic_is_stale(const RelayTopic *topic, TimestampTz now);

/*
 * Whether a record may be sent now: the first one of a producer to a partition
 * travels alone (if alone), and no more may be on the way together than the
 * broker takes in a batch, see relay_topic.c. When not, it may as soon as
 * nothing is in flight to its partition.
 */
extern bool relay_topic_may_send(RelayTopic *topic, const KafkaRecord *record,
								 bool alone, TimestampTz now);

/*
 * Call for each lane that has been waiting for an acknowledgement for longer.
 */
typedef void (*RelayLaneVisitor) (void *arg, RelayTopic *topic, int partition);
extern void relay_topics_visit_stalled(RelayTopics *topics, TimestampTz now,
									   int longer_than_ms,
									   RelayLaneVisitor visitor, void *arg);

/* It was sent, which relay_topic_may_send() was asked about last. */
extern void relay_topic_sent(RelayTopic *topic, int partition, TimestampTz now);
extern void relay_topic_acknowledged(RelayTopic *topic, int partition,
									 uint32 bytes, TimestampTz now);

/* Nobody waits any more for what became of one. */
extern void relay_topic_lost(RelayTopic *topic, int partition);

/*
 * Messages that were on their way to it were refused, and later ones may not
 * have been: not without a sound.
 */
extern void relay_topic_warn_refused(const RelayTopic *topic, const char *reason);

/* Something could not be sent to it. */
extern void relay_topic_failed(RelayTopic *topic, const char *text);

/* Hand changed counters to the shared statistics. */
extern void relay_topics_report(RelayTopics *topics);

#endif							/* OUTBOX_RELAY_TOPIC_H */
