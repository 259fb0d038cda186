/*
 * unit.h
 *	  What the unit tests share: TAP, producers and what they report, brokers.
 *
 * Each *_test.c is a program that tests one subject of kafka.h: unit_start(),
 * the tests, unit_end(). Brokers are librdkafka's mock cluster in its process,
 * or sockets that refuse or ignore connections. Everything is waited for by its
 * condition, never by time, except where the point is that nothing happens.
 */
#ifndef OUTBOX_KAFKA_UNIT_H
#define OUTBOX_KAFKA_UNIT_H

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#include "kafka.h"

#define WAIT_MS 15000			/* at most, for anything */
#define MAX_TAGS 4096
#define SECRET "s3cr3t-value"	/* no message may repeat it */

/*
 * TAP, on standard output. unit_start() comes first: it ends the program should
 * it hang, ignores SIGPIPE and tells the version of librdkafka. ok() prints a
 * check with its name and returns whether it passed, diag() a remark.
 * unit_end() prints how many checks there were and returns the exit code.
 */
extern void unit_start(void);
extern bool ok(bool passed, const char *format,...) __attribute__((format(printf, 2, 3)));
extern void diag(const char *format,...) __attribute__((format(printf, 1, 2)));
extern int	unit_end(void);

/* Milliseconds since some moment; the clock is never set. */
extern double now_ms(void);

/*
 * A producer with room for 20000 messages; properties and file may be "". NULL
 * if it is refused: error, which may be NULL, then says why.
 */
extern KafkaProducer *make_producer(const char *servers, const char *properties,
									const char *file, KafkaError *error);

/* Queue a record; key and value may be NULL. The result is kafka_produce()'s. */
extern KafkaErrorClass send_text(KafkaProducer *producer, const char *topic,
								 int partition, const char *key,
								 const char *value, uint64_t tag);

/* What a producer reported: all zero at first, and the argument of handlers. */
typedef struct Seen
{
	int			delivered;
	int			failed;
	int			errors;
	int			logs;
	int			limits;			/* answers that name a topic */
	int			limits_ended;
	KafkaErrorClass limits_class;	/* of the end */
	KafkaErrorClass last_failure;
	KafkaErrorClass last_error;
	uint64_t	last_tag;		/* acknowledged */
	bool		tags[MAX_TAGS];
	int64_t		offsets[MAX_TAGS];
	int			partitions[MAX_TAGS];
} Seen;

extern const KafkaEventHandlers handlers;

/* Something about a producer; what wanted means is up to the condition. */
typedef bool (*Condition) (KafkaProducer *producer, Seen *seen, int wanted);

/* So many messages are outstanding. */
extern bool nothing_outstanding(KafkaProducer *producer, Seen *seen, int wanted);

/* It is connected, or is not (wanted 0). */
extern bool is_connected(KafkaProducer *producer, Seen *seen, int wanted);

/* It is dead, whatever is wanted. */
extern bool is_dead(KafkaProducer *producer, Seen *seen, int wanted);

/*
 * Serve until the condition holds; sleeps on the descriptor only. False: it did
 * not within WAIT_MS.
 */
extern bool serve_until(KafkaProducer *producer, Seen *seen, Condition condition,
						int wanted);

/* Whether the descriptor becomes readable within so many milliseconds. */
extern bool is_readable(KafkaProducer *producer, int timeout_ms);

/* The threads of this process, with the one that asks. */
extern int	count_threads(void);

/* Threads other than the first one that would take one of the usual signals. */
extern int	count_open_to_signals(void);

/*
 * A mock cluster of one broker with topics "orders" (four partitions),
 * "recurring" and "single" (one each). Its threads take no signals. One at a
 * time; producers have to be gone before it is stopped.
 */
extern void start_mock(void);
extern void stop_mock(void);

/* While there is one: itself, and its bootstrap servers. */
extern rd_kafka_mock_cluster_t *mock;
extern char mock_servers[256];

#endif							/* OUTBOX_KAFKA_UNIT_H */
