/*
 * kafka_conf_consumer.h
 *	  The configuration of a consumer. For kafka_consumer.c only.
 */
#ifndef OUTBOX_KAFKA_CONF_CONSUMER_H
#define OUTBOX_KAFKA_CONF_CONSUMER_H

#include <librdkafka/rdkafka.h>

#include "kafka_consumer.h"

/* As kafka_conf_build() of kafka_conf.h. */
extern rd_kafka_conf_t *kafka_conf_build_consumer(const KafkaConsumerConfig *config,
												  char *reason, size_t reason_size);

#endif							/* OUTBOX_KAFKA_CONF_CONSUMER_H */
