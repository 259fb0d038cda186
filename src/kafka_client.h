/*
 * kafka_client.h
 *	  Starting a client of librdkafka's. For kafka.c only.
 */
#ifndef OUTBOX_KAFKA_CLIENT_START_H
#define OUTBOX_KAFKA_CLIENT_START_H

#include <librdkafka/rdkafka.h>
#include <stddef.h>

/*
 * Start a producer or a consumer; takes conf over in any case.
 * register_interceptors, unless it is NULL, is called with arg when conf is
 * known to be usable. All signals are blocked while threads start. NULL: it
 * could not be, reason says why.
 */
extern rd_kafka_t *kafka_client_start(rd_kafka_type_t type, rd_kafka_conf_t *conf,
									  void (*register_interceptors) (rd_kafka_conf_t *conf, void *arg),
									  void *arg, char *reason, size_t reason_size);

#endif							/* OUTBOX_KAFKA_CLIENT_START_H */
