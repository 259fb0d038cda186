/*
 * kafka_transaction.h
 *	  Transactions of a producer that was made with a transactional.id.
 *
 * The calls wait for brokers, so they are made by a thread of the wrapper's
 * own, one at a time: kafka_transaction_call() starts one, the producer's
 * descriptor becomes readable when it has ended, kafka_transaction_result()
 * says how. Nothing here waits, but for kafka_transaction_begin(), which asks
 * librdkafka's own thread and no broker.
 */
#ifndef OUTBOX_KAFKA_TRANSACTION_H
#define OUTBOX_KAFKA_TRANSACTION_H

#include "kafka.h"

/* The topic whose offsets carry positions; nothing is ever written to it. */
#define KAFKA_PROGRESS_TOPIC "outbox_kafka_progress"

#define KAFKA_NONCE_LENGTH 64
#define KAFKA_CLUSTER_LENGTH 128

typedef enum KafkaTransactionCall
{
	KAFKA_CALL_NONE = 0,
	KAFKA_CALL_OPEN,			/* fence predecessors, read the position back */
	KAFKA_CALL_POSITION,		/* make the position part of the transaction */
	KAFKA_CALL_COMMIT
} KafkaTransactionCall;

typedef struct KafkaTransactionResult
{
	KafkaTransactionCall call;
	bool		ok;
	KafkaError	error;			/* if not ok: this producer is of no use */

	/* of KAFKA_CALL_OPEN */
	char		cluster[KAFKA_CLUSTER_LENGTH];
	bool		found;			/* there is a position */
	int64_t		position;
	char		nonce[KAFKA_NONCE_LENGTH];	/* ASCII, cut to size */
} KafkaTransactionResult;

/*
 * Start a call. None is under way, and the result of the last one was taken.
 * position and nonce are for KAFKA_CALL_POSITION.
 */
extern void kafka_transaction_call(KafkaProducer *producer, KafkaTransactionCall call,
								   int64_t position, const char *nonce);

/* The result of the call that has ended since, once. False: there is none. */
extern bool kafka_transaction_result(KafkaProducer *producer,
									 KafkaTransactionResult *result);

/* Begin one; records that are produced from now on belong to it. */
extern bool kafka_transaction_begin(KafkaProducer *producer, KafkaError *error);

#endif							/* OUTBOX_KAFKA_TRANSACTION_H */
