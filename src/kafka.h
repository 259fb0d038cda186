/*
 * kafka.h
 *	  All the extension knows of librdkafka's producer, without its types.
 *
 * The wrapper takes plain structs and returns plain structs: it knows no SPI,
 * no shared memory and no setting. It never raises an error across a
 * librdkafka frame and calls nothing of PostgreSQL from another thread: events
 * are taken from queues by the caller's own thread, in kafka_producer_serve().
 */
#ifndef OUTBOX_KAFKA_CLIENT_H
#define OUTBOX_KAFKA_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct KafkaProducer KafkaProducer;
typedef struct KafkaTopic KafkaTopic;
typedef struct KafkaHeaders KafkaHeaders;

#define KAFKA_ERROR_LENGTH 512

/* What an error means for what was to be sent (design: failures). */
typedef enum KafkaErrorClass
{
	KAFKA_ERROR_NONE = 0,
	KAFKA_ERROR_RETRY,			/* temporary: librdkafka tries again itself */
	KAFKA_ERROR_QUEUE_FULL,		/* at produce: serve events, then try again */
	KAFKA_ERROR_RECORD,			/* the record, or another one of its batch */
	KAFKA_ERROR_TOPIC,			/* the topic: unknown, forbidden, no such
								 * partition */
	KAFKA_ERROR_PURGED,			/* not sent, or perhaps sent: send again, with
								 * another producer */
	KAFKA_ERROR_CLIENT			/* this producer is of no use any more */
} KafkaErrorClass;

typedef struct KafkaError
{
	KafkaErrorClass class;
	int			code;			/* rd_kafka_resp_err_t */
	char		message[KAFKA_ERROR_LENGTH];	/* one line of ASCII; no
												 * secret, no payload */
} KafkaError;

typedef struct KafkaProducerConfig
{
	const char *bootstrap_servers;
	const char *client_id;
	const char *properties;		/* "k=v; k=v" of allowed names, or "" */
	const char *config_file;	/* properties file, or "" */
	bool		bulk;			/* batches rather than latency */
	int			max_batch_bytes;	/* no larger batches; 0: as configured */
	int			max_in_flight;	/* messages */
	int			max_in_flight_kb;
	const char *transactional_id;	/* or NULL: no transactions */
} KafkaProducerConfig;

typedef struct KafkaRecord
{
	KafkaTopic *topic;
	int			partition;
	const void *key;			/* NULL: no key */
	size_t		key_length;
	const void *value;			/* NULL: tombstone */
	size_t		value_length;
	int64_t		timestamp_ms;	/* 0: now */
	KafkaHeaders *headers;		/* or NULL; taken over when it succeeds */
	bool		recurring;		/* they are of kafka_headers_recurring() */
	uint64_t	tag;			/* below 2^63; comes back with the delivery
								 * report */
} KafkaRecord;

typedef struct KafkaDelivery
{
	uint64_t	tag;
	int			partition;
	int64_t		offset;
	KafkaErrorClass class;		/* KAFKA_ERROR_NONE: acknowledged */
	int			code;
} KafkaDelivery;

/*
 * Part of the answer to kafka_producer_ask_limits(): what the broker says of
 * one topic; at its end one with topic NULL, whose error says why there is no
 * answer for those that were left out (class CLIENT: brokers like this one tell
 * no limits).
 */
typedef struct KafkaTopicLimit
{
	const char *topic;
	int			bytes;			/* max.message.bytes, or 0: not told */
	KafkaError	error;			/* class TOPIC: unknown or forbidden */
} KafkaTopicLimit;

/*
 * Called from kafka_producer_serve() in the caller's thread. They must return
 * normally: no ereport(ERROR), no longjmp. Strings live for the call only, and
 * are single lines of ASCII.
 */
typedef struct KafkaEventHandlers
{
	void		(*delivered) (void *arg, const KafkaDelivery *delivery);
	void		(*error) (void *arg, const KafkaError *error);
	void		(*log) (void *arg, int syslog_level, const char *text);
	void		(*limit) (void *arg, const KafkaTopicLimit *limit);

	/* a transaction has failed because this topic may not be written to */
	void		(*forbidden) (void *arg, const char *topic, int code);
} KafkaEventHandlers;

/*
 * What is wrong with the librdkafka that was found, for the log; NULL: nothing
 * that we know.
 */
extern const char *kafka_library_risk(void);

/*
 * Check the text of outbox_kafka.producer_config without making a client.
 * Returns NULL when it is acceptable, else a description that names the
 * offending property (never its value), valid until the next call. Starts no
 * thread, so check hooks may call it in any process.
 */
extern const char *kafka_conf_check(const char *properties);

/*
 * Make a producer: acks=all, idempotent, gapless, no delivery timeout. Returns
 * NULL and fills error when a property is refused or the file is not ours to
 * read. Does not wait for a broker. Signals are blocked while threads start.
 */
extern KafkaProducer *kafka_producer_create(const KafkaProducerConfig *config,
											KafkaError *error);

/*
 * Drop what is queued and end the threads: milliseconds, whatever the broker
 * does, or half a second if a transaction has to be aborted. Topics and headers of this producer are gone with it.
 */
extern void kafka_producer_destroy(KafkaProducer *producer);

/*
 * A descriptor that is readable while kafka_producer_serve() has something to
 * do, and after the last connection went or the first one came. It lives as
 * long as the producer.
 */
extern int	kafka_producer_fd(const KafkaProducer *producer);

/*
 * Hand over what the queue holds, at most max_events queue entries (one entry
 * can carry many delivery reports). Returns the number of entries handled; less
 * than max_events means the queue was emptied. Never waits.
 */
extern int	kafka_producer_serve(KafkaProducer *producer,
								 const KafkaEventHandlers *handlers,
								 void *arg, int max_events);

/*
 * Give up what has not been sent yet, and what was and is not answered:
 * reports come at once, as purged. A producer that failed sends nothing more,
 * and what the broker refused after a gap stays with it for ever.
 */
extern void kafka_producer_purge(KafkaProducer *producer, bool in_flight);

/* Messages in the producer's hands, queued or sent, not reported yet. */
extern int	kafka_producer_outstanding(const KafkaProducer *producer);

/*
 * True once nothing more can come of this producer (class KAFKA_ERROR_CLIENT);
 * fills error. Reports of what was in its hands may still come: those sent are
 * acknowledged or refused, the rest is KAFKA_ERROR_PURGED. After a failed
 * authentication none may come: do not wait for them without a limit.
 */
extern bool kafka_producer_is_dead(const KafkaProducer *producer,
								   KafkaError *error);

/* At least one connection to a broker is up, logged in and ready, right now. */
extern bool kafka_producer_is_connected(const KafkaProducer *producer);

/*
 * A handle by name; made once a producer and name, cheap afterwards. NULL when
 * librdkafka refuses the name or memory is short.
 */
extern KafkaTopic *kafka_topic(KafkaProducer *producer, const char *name);

/*
 * How many partitions the topic has, from the broker, waiting at most
 * timeout_ms. Returns the count, or 0 and fills error (class TOPIC: the broker
 * says there is none or it is forbidden; RETRY: no answer in time). A topic the
 * broker is just creating is at first reported as unknown: ask again. topic may
 * be NULL (class TOPIC).
 */
extern int	kafka_topic_partitions(KafkaTopic *topic, int timeout_ms,
								   KafkaError *error);

/*
 * The same for all topics that kafka_topic() has made for a producer, in one
 * request: answered() is called for each that has partitions; an error that it
 * raises leaks the answer. False: nobody answered in time.
 */
typedef void (*KafkaPartitionsHandler) (void *arg, const char *topic, int partitions);
extern bool kafka_producer_partitions(KafkaProducer *producer, int timeout_ms,
									  KafkaPartitionsHandler answered, void *arg);

/*
 * Ask how large a batch of each of these topics may be, at most
 * KAFKA_LIMITS_AT_ONCE of them. Never waits: the handler "limit" gets the
 * answer, some seconds later at most, unless the producer is ended before.
 */
#define KAFKA_LIMITS_AT_ONCE 100
extern void kafka_producer_ask_limits(KafkaProducer *producer,
									  const char *const *topics, int count);

/*
 * The largest batch that it makes of several records, in bytes before they are
 * compressed; and whether it compresses them at all.
 */
extern void kafka_producer_batching(const KafkaProducer *producer,
									int *batch_size, bool *compresses);

/* The partition the Java clients take for a key (murmur2). key is not NULL. */
extern int	kafka_partition_for_key(const void *key, size_t length,
									int partitions);

/*
 * Queue a record; key and value are copied. Never waits. On any result but
 * KAFKA_ERROR_NONE error is filled and the headers stay the caller's.
 */
extern KafkaErrorClass kafka_produce(KafkaProducer *producer,
									 const KafkaRecord *record,
									 KafkaError *error);

extern KafkaHeaders *kafka_headers_new(int expected);
extern void kafka_headers_free(KafkaHeaders *headers);

/* name need not be terminated; value NULL: a header without a value. */
extern void kafka_headers_add(KafkaHeaders *headers,
							  const char *name, int name_length,
							  const void *value, int value_length);

/*
 * A copy of constant with one more header, for a record of this topic that is
 * marked as recurring: once it is acknowledged its headers serve again. For one
 * handle, constant and name must be the same each time.
 */
extern KafkaHeaders *kafka_headers_recurring(KafkaTopic *topic,
											 const KafkaHeaders *constant, const char *name,
											 const void *value, int value_length);

/*
 * What a record takes in a batch before it is compressed: at most so many
 * bytes. The batch itself takes KAFKA_BATCH_OVERHEAD.
 */
#define KAFKA_BATCH_OVERHEAD 61
extern size_t kafka_record_size(const KafkaRecord *record);

/* Whether the broker refuses the time, or the size, of a record or a batch. */
extern bool kafka_error_is_timestamp(int code);
extern bool kafka_error_is_size(int code);

/* Whether it says that another producer has the transactional.id by now. */
extern bool kafka_error_is_fenced(int code);

/* Whether the broker does not let us know or do something. */
extern bool kafka_error_is_denied(int code);

/* What a code means, in English. Static memory. */
extern const char *kafka_error_text(int code);

/* "2.0.2" as loaded, not as compiled against. */
extern const char *kafka_library_version(void);

#endif							/* OUTBOX_KAFKA_CLIENT_H */
