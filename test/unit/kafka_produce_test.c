/*
 * kafka_produce_test.c
 *	  What becomes of records: as they were sent, acknowledged, or refused.
 *
 * The mock cluster is told which errors to answer with. What has arrived there
 * is read back by a consumer of librdkafka's own, past the wrapper: that could
 * make the same mistake twice.
 */
#include <stdio.h>
#include <string.h>

#include "kafka_headers.h"
#include "unit.h"

#define API_KEY_PRODUCE 0
#define RECURRING_RECORDS 12

/*
 * Read one partition from its beginning. The caller destroys the messages, then
 * the consumer.
 */
static rd_kafka_t *
consume(const char *topic, int partition, rd_kafka_message_t **messages, int wanted,
		int *got)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	char		errstr[256];
	double		deadline = now_ms() + WAIT_MS;
	rd_kafka_t *consumer;
	int			count = 0;

	rd_kafka_conf_set(conf, "bootstrap.servers", mock_servers, errstr, sizeof(errstr));
	rd_kafka_conf_set(conf, "group.id", "kafka_test", errstr, sizeof(errstr));
	rd_kafka_conf_set(conf, "enable.auto.commit", "false", errstr, sizeof(errstr));
	consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, errstr, sizeof(errstr));
	rd_kafka_topic_partition_list_add(list, topic, partition)->offset = RD_KAFKA_OFFSET_BEGINNING;
	rd_kafka_assign(consumer, list);
	rd_kafka_topic_partition_list_destroy(list);
	while (count < wanted && now_ms() < deadline)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, 1000);

		if (message != NULL && message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
			messages[count++] = message;
		else if (message != NULL)
			rd_kafka_message_destroy(message);
	}
	*got = count;
	return consumer;
}

static bool
header_is(rd_kafka_headers_t *headers, size_t index, const char *name, const char *value)
{
	const char *found_name;
	const void *found_value;
	size_t		size;

	if (rd_kafka_header_get_all(headers, index, &found_name, &found_value, &size) !=
		RD_KAFKA_RESP_ERR_NO_ERROR || strcmp(found_name, name) != 0)
		return false;
	if (value == NULL)
		return found_value == NULL;
	return found_value != NULL && size == strlen(value) && memcmp(found_value, value, size) == 0;
}

static void
test_delivery(void)
{
	KafkaProducer *producer = make_producer(mock_servers, "", "", NULL);
	Seen		seen = {0};
	KafkaRecord record = {0};
	KafkaError	error;
	KafkaHeaders *prepared = kafka_headers_new(4);
	rd_kafka_message_t *messages[3] = {NULL};
	rd_kafka_headers_t *headers = NULL;
	rd_kafka_timestamp_type_t timestamp_type;
	rd_kafka_t *consumer;
	int			count = 0;
	bool		quiet;
	KafkaErrorClass refusal;

	ok(is_readable(producer, WAIT_MS), "the descriptor is readable at the start");
	ok(kafka_topic_partitions(kafka_topic(producer, "orders"), 5000, &error) == 4 &&
	   error.class == KAFKA_ERROR_NONE, "the broker says how many partitions there are");
	ok(kafka_topic(producer, "orders") == kafka_topic(producer, "orders"),
	   "a topic has one handle");
	ok(serve_until(producer, &seen, is_connected, 1), "connected once a broker has answered");
	while (kafka_producer_serve(producer, &handlers, &seen, 100) > 0)
		;
	/* the connection to the partitions' leader is still being made */
	for (int i = 0; i < 50 && is_readable(producer, 300); i++)
		kafka_producer_serve(producer, &handlers, &seen, 100);
	quiet = !is_readable(producer, 1000);
	ok(quiet, "an idle producer leaves the descriptor alone");
	ok(seen.logs == 0 && seen.errors == 0, "a good start logs nothing (%d lines)", seen.logs);

	record.topic = kafka_topic(producer, "orders");
	record.partition = 2;
	record.key = "k\0y";
	record.key_length = 3;
	record.value = "v\0l";
	record.value_length = 3;
	record.timestamp_ms = 1700000000123;
	record.tag = 1;
	kafka_headers_add(prepared, "ce_typeXXX", 7, "order", 5);
	kafka_headers_add(prepared, "empty", -1, "", 0);
	kafka_headers_add(prepared, "null", 4, NULL, 0);
	record.headers = kafka_headers_recurring(record.topic, prepared, "more", "yes", 3);
	ok(kafka_produce(producer, &record, &error) == KAFKA_ERROR_NONE, "a record is taken");
	record.headers = NULL;
	record.key = NULL;
	record.key_length = 0;
	record.value = "";
	record.value_length = 0;
	record.timestamp_ms = 0;
	record.tag = 2;
	kafka_produce(producer, &record, &error);
	record.key = "";
	record.value = NULL;
	record.tag = 3;
	kafka_produce(producer, &record, &error);
	ok(kafka_producer_outstanding(producer) == 3, "three records are outstanding");
	ok(is_readable(producer, WAIT_MS), "a report makes the descriptor readable");
	ok(serve_until(producer, &seen, nothing_outstanding, 0) && seen.delivered == 3,
	   "all are acknowledged");
	ok(seen.tags[1] && seen.tags[2] && seen.tags[3] && seen.offsets[1] == 0 &&
	   seen.offsets[3] == 2 && seen.partitions[2] == 2, "with tag, partition and offset");

	record.partition = 9;
	refusal = kafka_produce(producer, &record, &error);
	ok(refusal == KAFKA_ERROR_TOPIC && error.class == KAFKA_ERROR_TOPIC, "a partition that is not there: class TOPIC (%s)",
	   error.message);
	record.headers = prepared;
	kafka_produce(producer, &record, &error);
	kafka_headers_free(prepared);	/* still ours after a refusal */
	ok(kafka_producer_outstanding(producer) == 0, "a refused record is not outstanding");

	/* one entry at a time: what is left keeps the descriptor readable */
	for (int i = 0; i < 4; i++)
		send_text(producer, "orders", i, "k", "v", (uint64_t) 10 + (uint64_t) i);
	is_readable(producer, WAIT_MS);
	ok(kafka_producer_serve(producer, &handlers, &seen, 1) == 1 && is_readable(producer, 0),
	   "a reader that stops at its limit is woken again");
	serve_until(producer, &seen, nothing_outstanding, 0);

	consumer = consume("orders", 2, messages, 3, &count);
	ok(count == 3, "a consumer gets three records");
	if (count == 3)
	{
		ok(messages[0]->key_len == 3 && memcmp(messages[0]->key, "k\0y", 3) == 0 &&
		   messages[0]->len == 3 && memcmp(messages[0]->payload, "v\0l", 3) == 0,
		   "key and value byte for byte");
		ok(rd_kafka_message_timestamp(messages[0], &timestamp_type) == 1700000000123,
		   "with the given timestamp");
		rd_kafka_message_headers(messages[0], &headers);
		ok(headers != NULL && rd_kafka_header_cnt(headers) == 4 &&
		   header_is(headers, 0, "ce_type", "order") && header_is(headers, 1, "empty", "") &&
		   header_is(headers, 2, "null", NULL) && header_is(headers, 3, "more", "yes"),
		   "and its headers, in order");
		ok(messages[1]->key == NULL && messages[1]->payload != NULL && messages[1]->len == 0,
		   "no key and an empty value stay so");
		ok(messages[2]->key != NULL && messages[2]->key_len == 0 && messages[2]->payload == NULL,
		   "an empty key and a tombstone stay so");
	}
	for (int i = 0; i < count; i++)
		rd_kafka_message_destroy(messages[i]);
	rd_kafka_destroy(consumer);

	ok(count_open_to_signals() == 0, "no thread takes signals, connections made or not");
	kafka_producer_destroy(producer);
}

/*
 * Headers that recur: those of a record that is acknowledged serve again, and
 * carry nothing over; those of other records never do.
 */
static void
test_recurring_headers(void)
{
	KafkaProducer *producer = make_producer(mock_servers, "", "", NULL);
	Seen		seen = {0};
	KafkaRecord record = {0};
	KafkaError	error;
	KafkaHeaders *constant = kafka_headers_new(2);
	rd_kafka_message_t *messages[RECURRING_RECORDS] = {NULL};
	rd_kafka_t *consumer;
	const char *id[3] = {"first", "second one", "3"};
	int			count = 0;
	int			right = 0;
	bool		tagged = true;
	const KafkaSpareHeaders *spare;

	kafka_headers_add(constant, "source", -1, "here", 4);
	kafka_headers_add(constant, "none", -1, NULL, 0);
	ok(kafka_topic_partitions(kafka_topic(producer, "recurring"), 5000, &error) > 0,
	   "a topic for headers that recur");
	record.topic = kafka_topic(producer, "recurring");
	spare = kafka_topic_spare_headers(record.topic);
	record.value = "v";
	record.value_length = 1;
	for (int i = 0; i < RECURRING_RECORDS; i++)
	{
		/* in the middle one with its own headers, as many of them */
		record.recurring = i % 3 != 1;
		if (record.recurring)
			record.headers = kafka_headers_recurring(record.topic, constant, "id", id[i % 3],
													 (int) strlen(id[i % 3]));
		else
		{
			record.headers = kafka_headers_new(3);
			kafka_headers_add(record.headers, "source", -1, "elsewhere", 9);
			kafka_headers_add(record.headers, "none", -1, "some", 4);
			kafka_headers_add(record.headers, "id", -1, id[1], (int) strlen(id[1]));
		}
		record.tag = UINT64_C(0x4000000000000000) + (uint64_t) i;
		kafka_produce(producer, &record, &error);
		/* the last ones at once: for one of them there is none to serve again */
		if (i < RECURRING_RECORDS - 3)
		{
			serve_until(producer, &seen, nothing_outstanding, 0);
			tagged &= seen.last_tag == record.tag;
		}
	}
	serve_until(producer, &seen, nothing_outstanding, 0);
	ok(tagged, "reports have the tags of their records");
	ok(spare->count == 2, "two lists served for all that recur (%d)", spare->count);

	consumer = consume("recurring", 0, messages, RECURRING_RECORDS, &count);
	for (int i = 0; i < count; i++)
	{
		rd_kafka_headers_t *headers = NULL;

		rd_kafka_message_headers(messages[i], &headers);
		right += headers != NULL && rd_kafka_header_cnt(headers) == 3 &&
			header_is(headers, 0, "source", i % 3 == 1 ? "elsewhere" : "here") &&
			header_is(headers, 1, "none", i % 3 == 1 ? "some" : NULL) &&
			header_is(headers, 2, "id", id[i % 3]);
		rd_kafka_message_destroy(messages[i]);
	}
	ok(count == RECURRING_RECORDS && right == count,
	   "%d of %d records have their own headers", right, RECURRING_RECORDS);
	rd_kafka_destroy(consumer);

	record.recurring = true;
	for (int i = 0; i < KAFKA_SPARE_HEADERS_MAX + 100; i++)
	{
		record.headers = kafka_headers_recurring(record.topic, constant, "id", "x", 1);
		kafka_produce(producer, &record, &error);
	}
	serve_until(producer, &seen, nothing_outstanding, 0);
	ok(seen.delivered == RECURRING_RECORDS + KAFKA_SPARE_HEADERS_MAX + 100 &&
	   spare->count == KAFKA_SPARE_HEADERS_MAX && *spare->total == spare->count,
	   "no more lists are kept than there is a bound for (%d)", spare->count);

	kafka_headers_free(constant);
	kafka_producer_destroy(producer);
}

static void
test_transient_error(rd_kafka_resp_err_t code)
{
	KafkaProducer *producer = make_producer(mock_servers, "", "", NULL);
	Seen		seen = {0};

	rd_kafka_mock_push_request_errors(mock, API_KEY_PRODUCE, 3, code, code, code);
	for (int i = 0; i < 10; i++)
		send_text(producer, "single", 0, "k", "v", (uint64_t) i);
	ok(serve_until(producer, &seen, nothing_outstanding, 0) && seen.delivered == 10 &&
	   seen.failed == 0 && !kafka_producer_is_dead(producer, NULL),
	   "%s is retried until it passes", rd_kafka_err2name(code));
	kafka_producer_destroy(producer);
	rd_kafka_mock_clear_request_errors(mock, API_KEY_PRODUCE);
}

/*
 * Two batches are under way, the first one is refused and the second one taken:
 * librdkafka reports both as written. The mock brokers do not check sequence
 * numbers, so the first one is not.
 */
static void
test_inferred_success(void)
{
	KafkaProducer *producer = make_producer(mock_servers, "batch.num.messages=1", "", NULL);
	Seen		seen = {0};

	send_text(producer, "single", 0, "k", "v", 0);
	serve_until(producer, &seen, nothing_outstanding, 0);
	rd_kafka_mock_broker_set_rtt(mock, 1, 100);
	rd_kafka_mock_push_request_errors(mock, API_KEY_PRODUCE, 1,
									  RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS);
	send_text(producer, "single", 0, "k", "first", 1);
	send_text(producer, "single", 0, "k", "second", 2);
	ok(serve_until(producer, &seen, nothing_outstanding, 0) && seen.delivered == 2 &&
	   seen.tags[2] && !seen.tags[1] && seen.failed == 1 && seen.last_failure == KAFKA_ERROR_NONE,
	   "a message that a later one's success speaks for is to be sent again");
	kafka_producer_destroy(producer);
	rd_kafka_mock_broker_set_rtt(mock, 1, 0);
	rd_kafka_mock_clear_request_errors(mock, API_KEY_PRODUCE);
}

static void
test_permanent_error(rd_kafka_resp_err_t code, KafkaErrorClass class)
{
	KafkaProducer *producer = make_producer(mock_servers, "", "", NULL);
	Seen		seen = {0};
	KafkaError	error = {0};
	bool		done;

	send_text(producer, "single", 0, "k", "v", 0);
	serve_until(producer, &seen, nothing_outstanding, 0);
	rd_kafka_mock_push_request_errors(mock, API_KEY_PRODUCE, 1, code);
	send_text(producer, "single", 0, "k", "v", 1);
	serve_until(producer, &seen, is_dead, 0);
	done = kafka_producer_is_dead(producer, &error);
	ok(done && error.class == KAFKA_ERROR_CLIENT,
	   "%s ends the producer: %s", rd_kafka_err2name(code), error.message);
	done = serve_until(producer, &seen, nothing_outstanding, 0);
	ok(done && seen.failed == 1 && seen.last_failure == class, "its report has class %d (%d)", (int) class,
	   (int) seen.last_failure);
	ok(send_text(producer, "single", 0, "k", "v", 2) == KAFKA_ERROR_CLIENT,
	   "it takes no more records");
	kafka_producer_destroy(producer);
	rd_kafka_mock_clear_request_errors(mock, API_KEY_PRODUCE);
}

static void
test_full_queue(void)
{
	KafkaProducer *producer = make_producer("127.0.0.1:1", "", "", NULL);
	KafkaErrorClass class = KAFKA_ERROR_NONE;
	int			sent = 0;

	/* twice the bound of 20000, and some room */
	while (sent < 100000 &&
		   (class = send_text(producer, "single", 0, "k", "v", 0)) == KAFKA_ERROR_NONE)
		sent++;
	ok(class == KAFKA_ERROR_QUEUE_FULL && sent >= 40000 && kafka_producer_outstanding(producer) == sent,
	   "a full queue says so, well above the bound in flight (%d)", sent);
	kafka_producer_destroy(producer);
}

int
main(void)
{
	unit_start();
	test_full_queue();

	start_mock();
	test_delivery();
	test_recurring_headers();
	test_transient_error(RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
	test_transient_error(RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS);
	test_transient_error(RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT);
	test_transient_error(RD_KAFKA_RESP_ERR__TRANSPORT);
	test_inferred_success();
	test_permanent_error(RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, KAFKA_ERROR_RECORD);
	test_permanent_error(RD_KAFKA_RESP_ERR_INVALID_RECORD, KAFKA_ERROR_RECORD);
	test_permanent_error(RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, KAFKA_ERROR_RECORD);
	test_permanent_error(RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, KAFKA_ERROR_TOPIC);
	stop_mock();
	return unit_end();
}
