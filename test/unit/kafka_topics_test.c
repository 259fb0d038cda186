/*
 * kafka_topics_test.c
 *	  What is known of topics: their partitions, which one a key belongs to, and
 *	  how large a batch may be.
 *
 * The mock cluster is told what is wrong with a topic. It cannot tell limits,
 * so only that is tested of them here; their values need a real broker.
 */
#include <limits.h>
#include <string.h>

#include "unit.h"

static bool
has_limits(KafkaProducer *producer, Seen *seen, int wanted)
{
	return seen->limits_ended >= wanted;
}

static void
test_partitions(void)
{
	/* the Java client's murmur2, sign bit cut off: toPositive() */
	static const struct
	{
		const char *key;
		uint32_t	hash;
	}			vectors[] = {
		{"kafka", 0xd067cf64},
		{"", 0x106e08d9},
		{"giberish123456789", 0x8f552b0c},
		{"1234", 0x9fc97b14},
		{"234", 0xe7c009ca},
		{"34", 0x873930da},
		{"4", 0x5a4b5ca1},
		{"PreAmbleWillBeRemoved,ThePrePartThatIs", 0x78424f1c},
	};
	static const int counts[] = {1, 2, 3, 12, 1000, INT_MAX};

	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
	{
		bool		all = true;

		for (size_t j = 0; j < sizeof(counts) / sizeof(counts[0]); j++)
			all = all && kafka_partition_for_key(vectors[i].key, strlen(vectors[i].key), counts[j])
				== (int) ((vectors[i].hash & 0x7fffffff) % (uint32_t) counts[j]);
		ok(all, "partition of key \"%s\" is the Java client's", vectors[i].key);
	}
}

static void
test_topics(void)
{
	KafkaProducer *producer = make_producer(mock_servers, "", "", NULL);
	KafkaError	error;
	double		start;
	double		took;
	int			partitions;
	static const struct
	{
		rd_kafka_resp_err_t code;
		KafkaErrorClass class;
		const char *what;
	}			cases[] = {
		{RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, KAFKA_ERROR_TOPIC, "unknown"},
		{RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, KAFKA_ERROR_TOPIC, "forbidden"},
		{RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, KAFKA_ERROR_RETRY, "without leader"},
	};

	/*
	 * librdkafka 2.1 to 2.9 crash when a topic that they know has an error
	 * and partitions in the same answer (#4907); the mock cluster answers so,
	 * real brokers send none with an error.
	 */
	bool		crashes = rd_kafka_version() >= 0x020100ff && rd_kafka_version() < 0x020a00ff;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		if (crashes && cases[i].code != RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
		{
			ok(true, "topic %s # SKIP librdkafka %s crashes on the mock cluster's answer, #4907",
			   cases[i].what, rd_kafka_version_str());
			continue;
		}
		rd_kafka_mock_topic_set_error(mock, "single", cases[i].code);
		partitions = kafka_topic_partitions(kafka_topic(producer, "single"), 5000, &error);
		ok(partitions == 0 && error.class == cases[i].class, "topic %s: %s", cases[i].what,
		   error.message);
	}
	rd_kafka_mock_topic_set_error(mock, "single", RD_KAFKA_RESP_ERR_NO_ERROR);
	ok(kafka_topic_partitions(kafka_topic(producer, "single"), 5000, &error) == 1,
	   "topic well again");

	rd_kafka_mock_broker_set_down(mock, -1);
	start = now_ms();
	partitions = kafka_topic_partitions(kafka_topic(producer, "single"), 300, &error);
	took = now_ms() - start;
	ok(partitions == 0 && error.class == KAFKA_ERROR_RETRY, "no broker: %s", error.message);
	ok(took < 1000, "asked no longer than told (%.0f ms)", took);
	rd_kafka_mock_broker_set_up(mock, -1);
	kafka_producer_destroy(producer);
}

typedef struct Answers
{
	int			orders;
	int			single;
	int			others;
} Answers;

static void
on_partitions(void *arg, const char *topic, int partitions)
{
	Answers    *answers = arg;

	if (strcmp(topic, "orders") == 0)
		answers->orders = partitions;
	else if (strcmp(topic, "single") == 0)
		answers->single = partitions;
	else
		answers->others++;
}

/* What is known of all topics that were named, by one question. */
static void
test_topics_together(void)
{
	KafkaProducer *producer = make_producer(mock_servers, "", "", NULL);
	Answers		answers = {0};
	bool		answered;

	kafka_topic(producer, "orders");
	kafka_topic(producer, "single");
	rd_kafka_mock_topic_set_error(mock, "single", RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
	answered = kafka_producer_partitions(producer, 5000, on_partitions, &answers);
	ok(answered && answers.orders == 4 && answers.single == 0 && answers.others == 0,
	   "topics together: one is known, one is not");
	rd_kafka_mock_topic_set_error(mock, "single", RD_KAFKA_RESP_ERR_NO_ERROR);
	answered = kafka_producer_partitions(producer, 5000, on_partitions, &answers);
	ok(answered && answers.orders == 4 && answers.single == 1 && answers.others == 0,
	   "topics together: both are known");
	rd_kafka_mock_broker_set_down(mock, -1);
	answered = kafka_producer_partitions(producer, 300, on_partitions, &answers);
	ok(!answered, "topics together: no broker");
	rd_kafka_mock_broker_set_up(mock, -1);
	kafka_producer_destroy(producer);
}

/* How large batches are, and what is asked about it. */
static void
test_limits(void)
{
	static const struct
	{
		const char *properties;
		int			max_batch_bytes;
		int			batch_size;
		bool		compresses;
	}			cases[] = {
		{"", 0, 1000000, false},
		{"", 20000, 20000, false},
		{"", 2000000, 1000000, false},
		{"batch.size=15000", 20000, 15000, false},
		{"batch.size=30000; compression.type=lz4", 20000, 20000, true},
		{"compression.codec=none", 0, 1000000, false},
	};
	static const char *const topics[] = {"single", "orders"};
	KafkaProducer *producer;
	Seen		seen = {0};
	KafkaRecord record = {0};
	size_t		empty = kafka_record_size(&record);
	double		start;
	double		took;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		KafkaProducerConfig config = {0};
		KafkaError	error;
		int			batch_size = 0;
		bool		compresses = false;

		config.bootstrap_servers = mock_servers;
		config.client_id = "kafka_test";
		config.properties = cases[i].properties;
		config.config_file = "";
		config.max_batch_bytes = cases[i].max_batch_bytes;
		producer = kafka_producer_create(&config, &error);
		kafka_producer_batching(producer, &batch_size, &compresses);
		ok(batch_size == cases[i].batch_size && compresses == cases[i].compresses,
		   "\"%s\", at most %d: batches of %d", cases[i].properties,
		   cases[i].max_batch_bytes, batch_size);
		kafka_producer_destroy(producer);
	}

	record.key = "key";
	record.key_length = 3;
	record.value = "value";
	record.value_length = 5;
	record.headers = kafka_headers_new(2);
	kafka_headers_add(record.headers, "name", 4, "1234567", 7);
	kafka_headers_add(record.headers, "none", 4, NULL, 0);
	ok(empty >= 7 && kafka_record_size(&record) >= empty + 3 + 5 + (1 + 4 + 1 + 7) + (1 + 4 + 1),
	   "a record takes no more than %zu bytes", kafka_record_size(&record));
	kafka_headers_free(record.headers);

	/* the mock cluster cannot tell: that is an answer, too */
	producer = make_producer(mock_servers, "", "", NULL);
	kafka_producer_ask_limits(producer, topics, 2);
	ok(serve_until(producer, &seen, has_limits, 1) && seen.limits == 0 &&
	   seen.limits_class != KAFKA_ERROR_NONE, "a broker that does not tell limits");
	send_text(producer, "single", 0, "k", "v", 1);
	ok(serve_until(producer, &seen, nothing_outstanding, 0) && seen.delivered == 1,
	   "does no harm");
	kafka_producer_ask_limits(producer, topics, 2);
	start = now_ms();
	kafka_producer_destroy(producer);
	took = now_ms() - start;
	ok(took < 1000, "the answer is not waited for at the end (%.0f ms)", took);

	rd_kafka_mock_broker_set_down(mock, -1);
	producer = make_producer(mock_servers, "", "", NULL);
	kafka_producer_ask_limits(producer, topics, 2);
	kafka_producer_serve(producer, &handlers, &seen, 100);
	start = now_ms();
	kafka_producer_destroy(producer);
	took = now_ms() - start;
	ok(took < 1000, "nor when there is no broker (%.0f ms)", took);
	rd_kafka_mock_broker_set_up(mock, -1);
}

int
main(void)
{
	unit_start();
	test_partitions();

	start_mock();
	test_topics();
	test_topics_together();
	test_limits();
	stop_mock();
	return unit_end();
}
