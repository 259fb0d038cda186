/*
 * kafka_conf_consumer.c
 *	  The configuration of a consumer of ours: positions come from the database
 *	  and go there, only what was committed is read, and memory is bounded.
 */
#include <stdio.h>

#include "kafka_conf_consumer.h"
#include "kafka_conf_text.h"

rd_kafka_conf_t *
kafka_conf_build_consumer(const KafkaConsumerConfig *config,
						  char *reason, size_t reason_size)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char		queue_kb[32];

	snprintf(queue_kb, sizeof(queue_kb), "%d", config->queue_kb);
	{
		const PropertyDefault defaults[] = {
			/* the promises */
			{"enable.auto.commit", "false", false},
			{"auto.commit.enable", "false", true},
			{"enable.auto.offset.store", "false", false},
			{"auto.offset.reset", "error", false},
			{"isolation.level", "read_committed", false},
			{"check.crcs", "true", false},
			/* tells when all that is there has been read */
			{"enable.partition.eof", "true", false},
			/* of each partition; what a fetch brings may come on top */
			{"queued.max.messages.kbytes", queue_kb, false},
			/* a full queue is looked at again soon; before 2.3 after a second */
			{"fetch.queue.backoff.ms", "20", true},
			{"fetch.error.backoff.ms", "100", false},
			{"reconnect.backoff.max.ms", "1000", false},
			{"topic.metadata.refresh.interval.ms", "60000", false},
			{"allow.auto.create.topics", "false", false},
#if RD_KAFKA_VERSION < 0x020000ff
			/* for commits, see kafka_consumer_mirror() */
			{"group.id", config->group_id, false},
#endif
		};

		if (kafka_conf_client_defaults(conf, config->bootstrap_servers,
									   config->client_id, reason, reason_size) &&
			kafka_conf_defaults(conf, defaults, sizeof(defaults) / sizeof(defaults[0]),
								reason, reason_size) &&
			kafka_conf_apply(conf, FOR_CONSUMER, config->properties, config->config_file,
							 reason, reason_size))
			return conf;
	}
	rd_kafka_conf_destroy(conf);
	return NULL;
}

const char *
kafka_consumer_conf_check(const char *properties)
{
	return kafka_conf_problem(FOR_CONSUMER, properties);
}
