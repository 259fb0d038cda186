/*
 * kafka_conf_text.h
 *	  Properties of librdkafka from text. For kafka_conf*.c only.
 *
 * reason gets what is wrong; it never holds the value of a property.
 */
#ifndef OUTBOX_KAFKA_CONF_TEXT_H
#define OUTBOX_KAFKA_CONF_TEXT_H

#include <librdkafka/rdkafka.h>
#include <stdbool.h>
#include <stddef.h>

#include "kafka_conf_rules.h"

/*
 * A property of ours. Those that an older or newer librdkafka may not have are
 * optional.
 */
typedef struct PropertyDefault
{
	const char *name;
	const char *value;
	bool		optional;
} PropertyDefault;

extern bool kafka_conf_defaults(rd_kafka_conf_t *conf, const PropertyDefault *defaults,
								size_t count, char *reason, size_t reason_size);

/* Those of any client of ours. */
extern bool kafka_conf_client_defaults(rd_kafka_conf_t *conf, const char *bootstrap_servers,
									   const char *client_id,
									   char *reason, size_t reason_size);

/* What stands in a setting ("k=v; k=v"), then in a file unless it is "". */
extern bool kafka_conf_apply(rd_kafka_conf_t *conf, PropertyUser user,
							 const char *properties, const char *file,
							 char *reason, size_t reason_size);

/* What is wrong with such a setting, or NULL. Valid until the next call. */
extern const char *kafka_conf_problem(PropertyUser user, const char *properties);

#endif							/* OUTBOX_KAFKA_CONF_TEXT_H */
