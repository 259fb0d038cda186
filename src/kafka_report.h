/*
 * kafka_report.h
 *	  What a delivery report says. For kafka.c only.
 */
#ifndef OUTBOX_KAFKA_REPORT_H
#define OUTBOX_KAFKA_REPORT_H

#include <librdkafka/rdkafka.h>

#include "kafka.h"

extern void kafka_report_read(const rd_kafka_message_t *message, KafkaDelivery *delivery);

#endif							/* OUTBOX_KAFKA_REPORT_H */
