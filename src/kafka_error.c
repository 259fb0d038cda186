/*
 * kafka_error.c
 *	  What librdkafka's error codes mean to the relay.
 *
 * The same code means different things at different places: a time-out in a
 * delivery report is a message to send again, in an answer about a topic it
 * says nothing of the topic. Codes that nobody knows are taken for a refusal
 * of the record if they are a broker's, and for the end of the client if they
 * are librdkafka's own.
 */
#include <stdio.h>
#include <string.h>

#include "kafka_error.h"

/* It got the nonce wrong before, which only older brokers let pass (#4895). */
#define SCRAM_WITH_KAFKA_4 0x020601ff

static KafkaErrorClass
classify_code(rd_kafka_resp_err_t code)
{
	switch (code)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			return KAFKA_ERROR_NONE;

		case RD_KAFKA_RESP_ERR__QUEUE_FULL:
			return KAFKA_ERROR_QUEUE_FULL;

		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			return KAFKA_ERROR_TOPIC;

		case RD_KAFKA_RESP_ERR__PURGE_QUEUE:
		case RD_KAFKA_RESP_ERR__PURGE_INFLIGHT:
		case RD_KAFKA_RESP_ERR__DESTROY:
		case RD_KAFKA_RESP_ERR__MSG_TIMED_OUT:
		case RD_KAFKA_RESP_ERR__NO_OFFSET:	/* acknowledged without one */
			return KAFKA_ERROR_PURGED;

		case RD_KAFKA_RESP_ERR__FATAL:
		case RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE:
		case RD_KAFKA_RESP_ERR__FENCED:
		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
		case RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE:
		case RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE:
		case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM:
		case RD_KAFKA_RESP_ERR_ILLEGAL_SASL_STATE:
		case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER:
		case RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID:
		case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH:
		case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING:
		case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
		case RD_KAFKA_RESP_ERR_TRANSACTION_COORDINATOR_FENCED:
		case RD_KAFKA_RESP_ERR_INVALID_TXN_STATE:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION:
			return KAFKA_ERROR_CLIENT;

		case RD_KAFKA_RESP_ERR__TRANSPORT:
		case RD_KAFKA_RESP_ERR__RESOLVE:
		case RD_KAFKA_RESP_ERR__SSL:
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
		case RD_KAFKA_RESP_ERR__TIMED_OUT:
		case RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE:
		case RD_KAFKA_RESP_ERR__WAIT_CACHE:
		case RD_KAFKA_RESP_ERR__WAIT_COORD:
		case RD_KAFKA_RESP_ERR__ISR_INSUFF:
		case RD_KAFKA_RESP_ERR__RETRY:
		case RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION:
		case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
		case RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_STALE_CTRL_EPOCH:
		case RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION:
		case RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS:
		case RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_NOT_COORDINATOR:
		case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS:
		case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND:
		case RD_KAFKA_RESP_ERR_NOT_CONTROLLER:
		case RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR:
		case RD_KAFKA_RESP_ERR_LOG_DIR_NOT_FOUND:
		case RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS:
		case RD_KAFKA_RESP_ERR_LISTENER_NOT_FOUND:
		case RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH:
		case RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH:
		case RD_KAFKA_RESP_ERR_STALE_BROKER_EPOCH:
		case RD_KAFKA_RESP_ERR_PREFERRED_LEADER_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_ELIGIBLE_LEADERS_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED:
			return KAFKA_ERROR_RETRY;

		default:
			/* a broker's code that we do not know, or one of librdkafka's */
			return (code >= RD_KAFKA_RESP_ERR_UNKNOWN) ?
				KAFKA_ERROR_RECORD : KAFKA_ERROR_CLIENT;
	}
}

KafkaErrorClass
kafka_classify(rd_kafka_resp_err_t code, KafkaErrorSource source)
{
	KafkaErrorClass class = classify_code(code);

	switch (source)
	{
		case FROM_PRODUCE:
			break;
		case FROM_REPORT:
			/* librdkafka has given it up: whatever passes is to be sent again */
			if (class == KAFKA_ERROR_RETRY || class == KAFKA_ERROR_QUEUE_FULL)
				return KAFKA_ERROR_PURGED;
			break;
		case FROM_EVENT:
			/* no record is meant, and librdkafka goes on if it is not fatal */
			if (class == KAFKA_ERROR_RECORD)
				return KAFKA_ERROR_RETRY;
			break;
		case FROM_METADATA:
			if (class != KAFKA_ERROR_NONE && class != KAFKA_ERROR_TOPIC)
				return KAFKA_ERROR_RETRY;
			break;
	}
	return class;
}

void
kafka_copy_text(char *target, size_t size, const char *text)
{
	size_t		n = 0;

	for (; *text != '\0' && n < size - 1; text++)
	{
		if (*text == '\n' || *text == '\t')
			target[n++] = ' ';
		else if (*text < ' ' || *text > '~')
			target[n++] = '?';
		else
			target[n++] = *text;
	}
	while (n > 0 && target[n - 1] == ' ')
		n--;
	target[n] = '\0';
}

KafkaErrorClass
kafka_fill_error(KafkaError *error, KafkaErrorClass class, rd_kafka_resp_err_t code,
				 const char *message)
{
	char		explained[KAFKA_ERROR_LENGTH];

	if (message == NULL)
		message = rd_kafka_err2str(code);
	if (code == RD_KAFKA_RESP_ERR__AUTHENTICATION && strstr(message, "SCRAM") != NULL &&
		rd_kafka_version() < SCRAM_WITH_KAFKA_4)
	{
		snprintf(explained, sizeof(explained), "%s; librdkafka before 2.6.1, as is this %s, cannot log in to Kafka 4 by SCRAM",
				 message, rd_kafka_version_str());
		message = explained;
	}
	error->class = class;
	error->code = code;
	kafka_copy_text(error->message, sizeof(error->message), message);
	return class;
}

const char *
kafka_error_text(int code)
{
	if (code == RD_KAFKA_RESP_ERR__NO_OFFSET)
		return "the broker has not said that it has written it";
	return rd_kafka_err2str((rd_kafka_resp_err_t) code);
}

const char *
kafka_library_version(void)
{
	return rd_kafka_version_str();
}

bool
kafka_error_is_timestamp(int code)
{
	return code == RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP;
}

bool
kafka_error_is_fenced(int code)
{
	return code == RD_KAFKA_RESP_ERR__FENCED ||
		code == RD_KAFKA_RESP_ERR_PRODUCER_FENCED ||
		code == RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
}

bool
kafka_error_is_size(int code)
{
	return code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
}

bool
kafka_error_is_denied(int code)
{
	return code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
		code == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
}

bool
kafka_error_forbids(const char *facility, const char *line, char *topic, size_t size)
{
	const char *start = strchr(line, '"');
	const char *end = start ? strchr(start + 1, '"') : NULL;

	if (strcmp(facility, "ADDPARTS") != 0 || end == NULL ||
		strstr(end, rd_kafka_err2str(RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)) == NULL)
		return false;
	snprintf(topic, size, "%.*s", (int) (end - start - 1), start + 1);
	return true;
}
