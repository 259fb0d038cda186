/*
 * kafka_headers.h
 *	  Lists of headers that serve for one record after another. For kafka*.c
 *	  only.
 */
#ifndef OUTBOX_KAFKA_HEADERS_H
#define OUTBOX_KAFKA_HEADERS_H

#include <librdkafka/rdkafka.h>

#include "kafka.h"

/* Lists kept for all topics of a producer together: a window's. */
#define KAFKA_SPARE_HEADERS_MAX 8192

/* Of a topic: those that kafka_headers_recurring() made and no record has now. */
typedef struct KafkaSpareHeaders
{
	rd_kafka_headers_t **lists;
	int			count;
	int			room;
	int		   *total;			/* of all topics of the producer */
} KafkaSpareHeaders;

/* kafka.c */
extern KafkaSpareHeaders *kafka_topic_spare_headers(KafkaTopic *topic);

/*
 * Take the list out of a message that is reported and was sent with it; the
 * message must not be asked for headers afterwards. Does nothing when enough
 * are kept.
 */
extern void kafka_headers_take_back(KafkaSpareHeaders *spare,
									const rd_kafka_message_t *message);

extern void kafka_headers_free_spare(KafkaSpareHeaders *spare);

#endif							/* OUTBOX_KAFKA_HEADERS_H */
