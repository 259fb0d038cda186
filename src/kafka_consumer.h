/*
 * kafka_consumer.h
 *	  All the extension knows of librdkafka's consumer, without its types.
 *
 * As with kafka.h: plain structs, no SPI, no shared memory, no setting, nothing
 * of PostgreSQL called from another thread. Each partition is read from an
 * offset that the caller gives, into a queue of its own.
 */
#ifndef OUTBOX_KAFKA_CONSUMER_H
#define OUTBOX_KAFKA_CONSUMER_H

#include "kafka.h"

typedef struct KafkaConsumer KafkaConsumer;
typedef struct KafkaPartition KafkaPartition;

typedef struct KafkaConsumerConfig
{
	const char *bootstrap_servers;
	const char *client_id;
	const char *group_id;		/* under which positions are mirrored */
	const char *properties;		/* "k=v; k=v" of allowed names, or "" */
	const char *config_file;	/* properties file, or "" */
	int			queue_kb;		/* read ahead, of each partition */
} KafkaConsumerConfig;

typedef enum KafkaItemKind
{
	KAFKA_ITEM_MESSAGE,
	KAFKA_ITEM_END,				/* all before offset has been read; there is
								 * no more for now */
	KAFKA_ITEM_ERROR
} KafkaItemKind;

/* Why a partition yields nothing. */
typedef enum KafkaPartitionError
{
	KAFKA_PARTITION_LATER,		/* librdkafka goes on by itself */
	KAFKA_PARTITION_RANGE,		/* there is no such offset */
	KAFKA_PARTITION_MISSING,	/* no such topic or partition */
	KAFKA_PARTITION_DENIED		/* not for us to read */
} KafkaPartitionError;

typedef struct KafkaItem
{
	KafkaItemKind kind;
	int64_t		offset;
	KafkaPartitionError problem;	/* of an error; see kafka_item_text() */
	/* of a message; memory is the handle's */
	int64_t		timestamp_ms;	/* -1: none */
	const void *key;			/* NULL: no key */
	size_t		key_length;
	const void *value;			/* NULL: tombstone */
	size_t		value_length;
	int32_t		leader_epoch;	/* -1: not told */
	void	   *handle;			/* for kafka_item_free() */
} KafkaItem;

/* A topic as the broker described it; see kafka_consumer_topics(). */
typedef struct KafkaTopicInfo
{
	const char *name;
	int			partitions;		/* 0: see error */
	KafkaError	error;			/* class TOPIC: unknown or forbidden */
} KafkaTopicInfo;

typedef struct KafkaPosition
{
	const char *topic;
	int			partition;
	int64_t		offset;
} KafkaPosition;

/* See kafka_conf_check() of kafka.h. */
extern const char *kafka_consumer_conf_check(const char *properties);

/*
 * Make a consumer that reads nothing yet. NULL: error says which property is
 * refused. Does not wait for a broker. Signals are blocked while threads start.
 */
extern KafkaConsumer *kafka_consumer_create(const KafkaConsumerConfig *config,
											KafkaError *error);

/*
 * End its threads, and its partitions. Items that were taken have to be freed
 * before. Some milliseconds, whatever the broker does.
 */
extern void kafka_consumer_destroy(KafkaConsumer *consumer);

/*
 * A descriptor that is readable while there is something to serve or to take.
 * Clear it before looking, with kafka_consumer_serve().
 */
extern int	kafka_consumer_fd(const KafkaConsumer *consumer);

/*
 * Hand errors and log lines over; see KafkaEventHandlers. Clears the
 * descriptor. Never waits.
 */
extern void kafka_consumer_serve(KafkaConsumer *consumer,
								 const KafkaEventHandlers *handlers, void *arg);

/* Make the descriptor readable: something was left for the next time. */
extern void kafka_consumer_wake(const KafkaConsumer *consumer);

/* The id of the cluster, or NULL if no answer came in so many milliseconds. */
extern const char *kafka_consumer_cluster(KafkaConsumer *consumer, int timeout_ms);

/*
 * Ask for one topic, or for all if topic is NULL; found() is called for each in
 * the caller's thread and must return normally. False, with error: no answer
 * in so many milliseconds.
 */
extern bool kafka_consumer_topics(KafkaConsumer *consumer, const char *topic,
								  int timeout_ms,
								  void (*found) (void *arg, const KafkaTopicInfo *info),
								  void *arg, KafkaError *error);

/* First offset and the one behind the last. False: no answer, see error. */
extern bool kafka_consumer_watermarks(KafkaConsumer *consumer, const char *topic,
									  int partition, int64_t *low, int64_t *high,
									  int timeout_ms, KafkaError *error);

/*
 * The first offset of that time or later, in milliseconds since 1970; the end
 * if there is none. False: no answer, see error.
 */
extern bool kafka_consumer_offset_at(KafkaConsumer *consumer, const char *topic,
									 int partition, int64_t time_ms, int64_t *offset,
									 int timeout_ms, KafkaError *error);

/*
 * Store positions under the group's name, for those who watch it. Best effort:
 * does not wait, and nobody learns what became of it.
 */
extern void kafka_consumer_mirror(KafkaConsumer *consumer,
								  const KafkaPosition *positions, int count);

/*
 * Read a partition from an offset. Once for a consumer and partition, unless it
 * was stopped. NULL, with error, if librdkafka does not want to.
 */
extern KafkaPartition *kafka_partition_start(KafkaConsumer *consumer,
											 const char *topic, int partition,
											 int64_t offset, KafkaError *error);

/* What was read ahead is dropped. May wait for some milliseconds. */
extern void kafka_partition_stop(KafkaPartition *partition);

/* Up to max items in the order of their offsets. Never waits. */
extern int	kafka_partition_take(KafkaPartition *partition, KafkaItem *items, int max);

/* The offset behind the last message that can be read, as last heard; or -1. */
extern int64_t kafka_partition_end(KafkaPartition *partition);

extern void kafka_item_free(KafkaItem *item);

/* Of an error: one line of ASCII. */
extern void kafka_item_text(const KafkaItem *item, char *text, size_t size);

/* Header number n; false: there are fewer. Memory is the item's. */
extern bool kafka_item_header(const KafkaItem *item, int n, const char **name,
							  const void **value, size_t *length);

/* Free what the last function has made; it makes it anew when it is asked. */
extern void kafka_item_forget_headers(const KafkaItem *item);

#endif							/* OUTBOX_KAFKA_CONSUMER_H */
