/*
 * kafka_conf.c
 *	  The configuration of a producer of ours: what the promises rest on, then
 *	  what the settings say.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kafka_conf.h"
#include "kafka_conf_text.h"

/* Room in librdkafka's queue beyond what the relay keeps in flight. */
#define SPARE_MESSAGES 10000
#define SPARE_KILOBYTES (1024 * 1024)

/*
 * librdkafka sets memory aside for as much as a broker announces. An answer
 * about a topic takes some 30 bytes for each of its partitions.
 */
#define RECEIVE_MAX_BYTES "16000000"

/* So many batches a full window makes; no batch is larger than librdkafka's own default. */
#define BATCHES_IN_FLIGHT 10
#define BATCH_MESSAGES 10000

/* So long a dead relay's transaction keeps readers of its partitions waiting. */
#define TRANSACTION_TIMEOUT_MS "10000"

static bool
set_defaults(rd_kafka_conf_t *conf, const KafkaProducerConfig *config,
			 char *reason, size_t reason_size)
{
	int64_t		messages = 2 * (int64_t) config->max_in_flight + SPARE_MESSAGES;
	int64_t		kilobytes = 2 * (int64_t) config->max_in_flight_kb + SPARE_KILOBYTES;
	char		messages_text[32];
	char		kilobytes_text[32];
	char		batch_text[32];
	int			batch;
	bool		transactional = config->transactional_id != NULL;

	snprintf(messages_text, sizeof(messages_text), "%lld",
			 (long long) (messages < 10000000 ? messages : 10000000));
	snprintf(kilobytes_text, sizeof(kilobytes_text), "%lld",
			 (long long) (kilobytes < 2097151 ? kilobytes : 2097151));

	/* several batches fit into the window: none waits to be full for nothing */
	batch = config->max_in_flight / BATCHES_IN_FLIGHT;
	snprintf(batch_text, sizeof(batch_text), "%d",
			 batch < 1 ? 1 : batch < BATCH_MESSAGES ? batch : BATCH_MESSAGES);

	{
		const PropertyDefault defaults[] = {
			/* the promises */
			{"acks", "all", false},
			{"enable.idempotence", "true", false},
			/* an error ends a transaction, with all that would follow a gap */
			{"enable.gapless.guarantee", transactional ? "false" : "true", false},
			{"message.timeout.ms", "0", false},
			/* publish() has checked the size; the broker has the last word */
			{"message.max.bytes", "1000000000", false},
			/* the relay's own bounds come first */
			{"queue.buffering.max.messages", messages_text, false},
			{"queue.buffering.max.kbytes", kilobytes_text, false},

			/*
			 * a message that is there is sent at once, or full batches are; a
			 * transaction's last ones are waited for
			 */
			{"linger.ms", !config->bulk ? "0" : transactional ? "5" : "20", false},
			{"batch.num.messages", batch_text, false},
			{"reconnect.backoff.max.ms", "500", false},

			/*
			 * so long a transaction waits for the last one's markers, each
			 * time
			 */
			{"retry.backoff.ms", transactional ? "1" : "20", false},
			{"retry.backoff.max.ms", "1000", true},
			/* answers to a producer are small: bounds what a broker can send */
			{"receive.message.max.bytes", RECEIVE_MAX_BYTES, false},
		};
		const PropertyDefault of_transactions[] = {
			{"transactional.id", config->transactional_id, false},
			{"transaction.timeout.ms", TRANSACTION_TIMEOUT_MS, false},
		};

		return kafka_conf_client_defaults(conf, config->bootstrap_servers,
										  config->client_id, reason, reason_size) &&
			kafka_conf_defaults(conf, defaults, sizeof(defaults) / sizeof(defaults[0]),
								reason, reason_size) &&
			(!transactional ||
			 kafka_conf_defaults(conf, of_transactions,
								 sizeof(of_transactions) / sizeof(of_transactions[0]),
								 reason, reason_size));
	}
}

void
kafka_conf_batching(const rd_kafka_conf_t *conf, int *batch_size, bool *compresses)
{
	char		value[64];
	size_t		size = sizeof(value);

	*batch_size = INT_MAX;
	if (rd_kafka_conf_get(conf, "batch.size", value, &size) == RD_KAFKA_CONF_OK)
		*batch_size = (int) strtol(value, NULL, 10);
	size = sizeof(value);
	*compresses = rd_kafka_conf_get(conf, "compression.codec", value, &size) != RD_KAFKA_CONF_OK ||
		strcmp(value, "none") != 0;
}

/* Batches of a size that somebody chose are made smaller, never larger. */
static bool
bound_batches(rd_kafka_conf_t *conf, int max_bytes, char *reason, size_t reason_size)
{
	int			batch_size;
	bool		compresses;
	char		value[32];
	const PropertyDefault smaller = {"batch.size", value, false};

	kafka_conf_batching(conf, &batch_size, &compresses);
	if (max_bytes == 0 || batch_size <= max_bytes)
		return true;
	snprintf(value, sizeof(value), "%d", max_bytes);
	return kafka_conf_defaults(conf, &smaller, 1, reason, reason_size);
}

rd_kafka_conf_t *
kafka_conf_build(const KafkaProducerConfig *config,
				 char *reason, size_t reason_size)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	if (set_defaults(conf, config, reason, reason_size) &&
		kafka_conf_apply(conf, FOR_PRODUCER, config->properties, config->config_file,
						 reason, reason_size) &&
		bound_batches(conf, config->max_batch_bytes, reason, reason_size))
		return conf;
	rd_kafka_conf_destroy(conf);
	return NULL;
}

const char *
kafka_library_risk(void)
{
	static char text[KAFKA_ERROR_LENGTH];
	int			version = rd_kafka_version();

	if (version < 0x020100ff || version >= 0x020a00ff)
		return NULL;
	snprintf(text, sizeof(text),
			 "librdkafka %s can crash, and with it the server, on a broker's answer (its issue 4907)",
			 rd_kafka_version_str());
	return text;
}

const char *
kafka_conf_check(const char *properties)
{
	return kafka_conf_problem(FOR_PRODUCER, properties);
}
