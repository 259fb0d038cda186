/*
 * kafka_connection_test.c
 *	  The way to the brokers: lost and found again, by name, with a password.
 *
 * The broker is the mock cluster's. It can be taken down and up again, and it
 * knows no SASL, so that every authentication fails.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit.h"

static void
test_connection(void)
{
	KafkaProducer *producer = make_producer(mock_servers, "", "", NULL);
	Seen		seen = {0};
	double		start;
	double		took;
	bool		done;

	ok(serve_until(producer, &seen, is_connected, 1), "connects without having anything to send");
	send_text(producer, "single", 0, "k", "v", 1);
	serve_until(producer, &seen, nothing_outstanding, 0);
	rd_kafka_mock_broker_set_down(mock, -1);
	ok(serve_until(producer, &seen, is_connected, 0), "notices that the broker went, idle");
	rd_kafka_mock_broker_set_up(mock, -1);
	start = now_ms();
	done = serve_until(producer, &seen, is_connected, 1);
	ok(done, "and that it is back, idle (%.0f ms)", now_ms() - start);

	rd_kafka_mock_broker_set_down(mock, -1);
	serve_until(producer, &seen, is_connected, 0);
	/* long enough for the pauses between attempts to grow to their limit */
	start = now_ms();
	while (now_ms() - start < 3000)
	{
		is_readable(producer, 100);
		kafka_producer_serve(producer, &handlers, &seen, 100);
	}
	for (int i = 0; i < 100; i++)
		send_text(producer, "single", 0, "k", "v", (uint64_t) i);
	rd_kafka_mock_broker_set_up(mock, -1);
	start = now_ms();
	done = serve_until(producer, &seen, nothing_outstanding, 0);
	took = now_ms() - start;
	/* the pauses are half a second; librdkafka 2.16 takes a whole one */
	ok(done && seen.delivered == 101 && took < 2000,
	   "what was queued meanwhile is delivered within two seconds (%.0f ms)", took);
	ok(!kafka_producer_is_dead(producer, NULL), "and the producer lives");
	kafka_producer_destroy(producer);
}

static void
test_names(void)
{
	char		servers[64];
	Seen		seen = {0};
	KafkaProducer *producer;

	snprintf(servers, sizeof(servers), "localhost%s", strrchr(mock_servers, ':'));
	producer = make_producer(servers, "broker.address.family=v4", "", NULL);
	ok(serve_until(producer, &seen, is_connected, 1), "a broker is found by its name");
	kafka_producer_destroy(producer);
}

static void
test_authentication(void)
{
	const char *text = "sasl.username=me\nsasl.password=" SECRET "\n";
	char		path[] = "/tmp/kafka_test.XXXXXX";
	int			fd = mkstemp(path);
	Seen		seen = {0};
	KafkaError	error = {0};
	KafkaProducer *producer;

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t) strlen(text))
		exit(1);
	close(fd);
	/* the mock cluster knows no SASL at all */
	producer = make_producer(mock_servers, "security.protocol=sasl_plaintext; sasl.mechanisms=PLAIN",
							 path, &error);
	unlink(path);
	ok(producer != NULL, "a producer with a password%s%s", producer ? "" : ": ", error.message);
	serve_until(producer, &seen, is_dead, 0);
	ok(kafka_producer_is_dead(producer, &error) && error.class == KAFKA_ERROR_CLIENT &&
	   seen.last_error == KAFKA_ERROR_CLIENT, "a failed authentication ends a producer");
	ok(strstr(error.message, SECRET) == NULL, "without telling the password: %s", error.message);
	kafka_producer_destroy(producer);
}

int
main(void)
{
	unit_start();
	start_mock();
	test_connection();
	test_names();
	test_authentication();
	stop_mock();
	return unit_end();
}
