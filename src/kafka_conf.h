/*
 * kafka_conf.h
 *	  From plain settings to a librdkafka configuration. For kafka.c only:
 *	  everybody else asks kafka_conf_check() of kafka.h.
 */
#ifndef OUTBOX_KAFKA_CONF_H
#define OUTBOX_KAFKA_CONF_H

#include <librdkafka/rdkafka.h>

#include "kafka.h"

#if RD_KAFKA_VERSION < 0x010900ff
#error "outbox_kafka needs librdkafka 1.9 or newer"
#endif

/*
 * Our defaults, then config->properties, then the file. Returns NULL and puts
 * the reason, which holds no value of a property, into reason. The caller owns
 * the result.
 */
extern rd_kafka_conf_t *kafka_conf_build(const KafkaProducerConfig *config,
										 char *reason, size_t reason_size);

/* See kafka_producer_batching(). */
extern void kafka_conf_batching(const rd_kafka_conf_t *conf,
								int *batch_size, bool *compresses);

#endif							/* OUTBOX_KAFKA_CONF_H */
