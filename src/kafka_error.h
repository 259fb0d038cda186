/*
 * kafka_error.h
 *	  What librdkafka's error codes mean to the relay. For kafka.c only.
 */
#ifndef OUTBOX_KAFKA_ERROR_H
#define OUTBOX_KAFKA_ERROR_H

#include <librdkafka/rdkafka.h>

#include "kafka.h"

/* Where an error code comes from: it means different things there. */
typedef enum KafkaErrorSource
{
	FROM_PRODUCE,				/* refused before it was queued */
	FROM_REPORT,				/* delivery report: this record has failed */
	FROM_EVENT,					/* nobody's error in particular */
	FROM_METADATA				/* an answer about a topic */
} KafkaErrorSource;

extern KafkaErrorClass kafka_classify(rd_kafka_resp_err_t code,
									  KafkaErrorSource source);

/*
 * Copy text for people, cut to size, as one line of printable ASCII. Parts of
 * librdkafka's texts come from whoever answers at a broker's address: they must
 * neither start lines of their own in the server's log nor bring bytes into a
 * view that are not valid in the database's encoding.
 */
extern void kafka_copy_text(char *target, size_t size, const char *text);

/* Fill error and return its class. message NULL: the code's own text. */
extern KafkaErrorClass kafka_fill_error(KafkaError *error, KafkaErrorClass class,
										rd_kafka_resp_err_t code,
										const char *message);

/*
 * Whether a line of librdkafka's log says that a transaction has failed because
 * a topic may not be written to; which one. No report tells that: all messages
 * of the transaction are reported as purged. The line has it as
 * ... partition "NAME" [0] to transaction: ...
 */
extern bool kafka_error_forbids(const char *facility, const char *line,
								char *topic, size_t size);

#endif							/* OUTBOX_KAFKA_ERROR_H */
