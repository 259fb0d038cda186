/*
 * kafka_limit.h
 *	  Asking the broker how large a batch of a topic may be. For kafka.c only.
 */
#ifndef OUTBOX_KAFKA_LIMIT_H
#define OUTBOX_KAFKA_LIMIT_H

#include <librdkafka/rdkafka.h>

#include "kafka.h"

/*
 * Ask for max.message.bytes of these topics; the answer comes into the queue
 * as an event for kafka_limit_serve(), whatever happens. Never waits.
 */
extern void kafka_limit_ask(rd_kafka_t *rk, rd_kafka_queue_t *queue,
							const char *const *topics, int count);

/* Hand over what the answer says. */
extern void kafka_limit_serve(rd_kafka_event_t *event,
							  const KafkaEventHandlers *handlers, void *arg);

#endif							/* OUTBOX_KAFKA_LIMIT_H */
