/*
 * kafka_metadata.c
 *	  What brokers say of topics.
 *
 * Asked for in the caller's thread, which waits; only to be called where that
 * does not matter.
 */
#include "kafka_error.h"
#include "kafka_producer.h"

/* The number of partitions; 0: error is filled. */
static int
read_answer(const struct rd_kafka_metadata_topic *topic, KafkaError *error)
{
	if (topic->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		kafka_fill_error(error, kafka_classify(topic->err, FROM_METADATA), topic->err, NULL);
		return 0;
	}
	if (topic->partition_cnt <= 0)
	{
		kafka_fill_error(error, KAFKA_ERROR_RETRY, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, NULL);
		return 0;
	}
	kafka_fill_error(error, KAFKA_ERROR_NONE, RD_KAFKA_RESP_ERR_NO_ERROR, "");
	return topic->partition_cnt;
}

int
kafka_topic_partitions(KafkaTopic *topic, int timeout_ms, KafkaError *error)
{
	const struct rd_kafka_metadata *metadata;
	const struct rd_kafka_metadata_topic nothing = {0};
	rd_kafka_resp_err_t code;
	int			partitions;

	if (topic == NULL)
	{
		kafka_fill_error(error, KAFKA_ERROR_TOPIC, RD_KAFKA_RESP_ERR__INVALID_ARG,
						 "librdkafka has no handle for this topic");
		return 0;
	}

	code = rd_kafka_metadata(kafka_producer_handle(kafka_topic_producer(topic)), 0,
							 kafka_topic_handle(topic), &metadata, timeout_ms);
	if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		/* nobody answered: whatever the code, it says nothing of the topic */
		kafka_fill_error(error, KAFKA_ERROR_RETRY, code, NULL);
		return 0;
	}
	partitions = read_answer(metadata->topic_cnt == 1 ? &metadata->topics[0] : &nothing, error);
	rd_kafka_metadata_destroy(metadata);
	return partitions;
}

bool
kafka_producer_partitions(KafkaProducer *producer, int timeout_ms,
						  KafkaPartitionsHandler answered, void *arg)
{
	const struct rd_kafka_metadata *metadata;

	if (rd_kafka_metadata(kafka_producer_handle(producer), 0, NULL, &metadata,
						  timeout_ms) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return false;
	for (int i = 0; i < metadata->topic_cnt; i++)
	{
		KafkaError	ignored;
		int			partitions = read_answer(&metadata->topics[i], &ignored);

		if (partitions > 0)
			answered(arg, metadata->topics[i].topic, partitions);
	}
	rd_kafka_metadata_destroy(metadata);
	return true;
}
