/*
 * kafka_limit.c
 *	  Asking the broker how large a batch of a topic may be.
 *
 * That is the topic's max.message.bytes, which brokers tell to whom they allow
 * DESCRIBE_CONFIGS. Only that one property is asked for. The request is one of
 * librdkafka's administrative ones: it waits in librdkafka's threads for the
 * broker that is to answer, and its outcome is an event, at the latest when its
 * time is over or the client ends.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "kafka_error.h"
#include "kafka_limit.h"

#define PROPERTY "max.message.bytes"
#define ANSWER_MS 5000

void
kafka_limit_ask(rd_kafka_t *rk, rd_kafka_queue_t *queue,
				const char *const *topics, int count)
{
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
	rd_kafka_ConfigResource_t *resources[KAFKA_LIMITS_AT_ONCE];
	char		ignored[128];

	if (count > KAFKA_LIMITS_AT_ONCE)
		count = KAFKA_LIMITS_AT_ONCE;
	rd_kafka_AdminOptions_set_request_timeout(options, ANSWER_MS, ignored, sizeof(ignored));
	for (int i = 0; i < count; i++)
	{
		resources[i] = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topics[i]);
		/* the value means nothing when it is asked for */
		rd_kafka_ConfigResource_set_config(resources[i], PROPERTY, "");
	}
	rd_kafka_DescribeConfigs(rk, resources, (size_t) count, options, queue);
	rd_kafka_ConfigResource_destroy_array(resources, (size_t) count);
	rd_kafka_AdminOptions_destroy(options);
}

/* A size in bytes, or 0 if it is none that counts. */
static int
to_bytes(const char *value)
{
	char	   *end;
	long long	number;

	if (value == NULL)
		return 0;
	errno = 0;
	number = strtoll(value, &end, 10);
	if (end == value || *end != '\0' || errno != 0 || number <= 0 || number > INT_MAX)
		return 0;
	return (int) number;
}

static int
limit_of(const rd_kafka_ConfigResource_t *resource)
{
	size_t		count;
	const rd_kafka_ConfigEntry_t **entries = rd_kafka_ConfigResource_configs(resource, &count);

	for (size_t i = 0; i < count; i++)
	{
		if (strcmp(rd_kafka_ConfigEntry_name(entries[i]), PROPERTY) == 0)
			return to_bytes(rd_kafka_ConfigEntry_value(entries[i]));
	}
	return 0;
}

void
kafka_limit_serve(rd_kafka_event_t *event, const KafkaEventHandlers *handlers,
				  void *arg)
{
	rd_kafka_resp_err_t code = rd_kafka_event_error(event);
	const rd_kafka_ConfigResource_t **resources = NULL;
	size_t		count = 0;
	KafkaTopicLimit limit = {0};

	if (handlers->limit == NULL)
		return;
	if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
		resources = rd_kafka_DescribeConfigs_result_resources(rd_kafka_event_DescribeConfigs_result(event), &count);
	for (size_t i = 0; i < count; i++)
	{
		rd_kafka_resp_err_t answer = rd_kafka_ConfigResource_error(resources[i]);

		limit.topic = rd_kafka_ConfigResource_name(resources[i]);
		limit.bytes = 0;
		if (answer == RD_KAFKA_RESP_ERR_NO_ERROR)
			limit.bytes = limit_of(resources[i]);
		kafka_fill_error(&limit.error, kafka_classify(answer, FROM_METADATA), answer, NULL);
		handlers->limit(arg, &limit);
	}

	limit.topic = NULL;
	limit.bytes = 0;
	kafka_fill_error(&limit.error,
					 code == RD_KAFKA_RESP_ERR_NO_ERROR ? KAFKA_ERROR_NONE :
					 code == RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE ? KAFKA_ERROR_CLIENT :
					 KAFKA_ERROR_RETRY,
					 code, rd_kafka_event_error_string(event));
	handlers->limit(arg, &limit);
}
