/*
 * kafka_producer.h
 *	  What the files of the producer's wrapper know of each other. For kafka*.c
 *	  only.
 */
#ifndef OUTBOX_KAFKA_PRODUCER_H
#define OUTBOX_KAFKA_PRODUCER_H

#include <librdkafka/rdkafka.h>

#include "kafka.h"

typedef struct KafkaTransactions KafkaTransactions;

/* kafka.c */
extern rd_kafka_t *kafka_producer_handle(const KafkaProducer *producer);
extern KafkaTransactions *kafka_producer_transactions(const KafkaProducer *producer);

extern rd_kafka_topic_t *kafka_topic_handle(const KafkaTopic *topic);
extern KafkaProducer *kafka_topic_producer(const KafkaTopic *topic);

/* Make the descriptor readable. From any thread. */
extern void kafka_producer_wake(const KafkaProducer *producer);

/* Throw away what the queue holds, waiting for it at most so long. */
extern void kafka_producer_discard_events(KafkaProducer *producer, int timeout_ms);

/* kafka_transaction.c */

/*
 * For a producer with this transactional.id; takes over a copy of its
 * configuration. NULL: no thread, no memory.
 */
extern KafkaTransactions *kafka_transactions_create(KafkaProducer *producer,
													const char *id,
													rd_kafka_conf_t *conf);

/*
 * End the thread. What is under way is given up; a transaction that is open is
 * aborted, if that is a matter of a moment.
 */
extern void kafka_transactions_end(KafkaTransactions *transactions);

#endif							/* OUTBOX_KAFKA_PRODUCER_H */
