/*
 * unit.c
 *	  What the unit tests share.
 *
 * There is nothing here but what more than one program needs. None of it
 * decides a check: ok() is for the tests alone.
 */
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "unit.h"

static int	tests;
static int	failures;

void
unit_start(void)
{
	alarm(300);
	signal(SIGPIPE, SIG_IGN);
	diag("librdkafka %s", kafka_library_version());
}

bool
ok(bool passed, const char *format,...)
{
	va_list		args;

	tests++;
	if (!passed)
		failures++;
	printf("%sok %d - ", passed ? "" : "not ", tests);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	return passed;
}

void
diag(const char *format,...)
{
	va_list		args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

int
unit_end(void)
{
	printf("1..%d\n", tests);
	return failures == 0 ? 0 : 1;
}

double
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec * 1000.0 + (double) ts.tv_nsec / 1e6;
}

/* ----------
 * Producers, and what they report
 * ----------
 */

KafkaProducer *
make_producer(const char *servers, const char *properties, const char *file,
			  KafkaError *error)
{
	KafkaProducerConfig config = {0};
	KafkaError	ignored;

	config.bootstrap_servers = servers;
	config.client_id = "kafka_test";
	config.properties = properties;
	config.config_file = file;
	config.max_in_flight = 20000;
	config.max_in_flight_kb = 65536;
	return kafka_producer_create(&config, error != NULL ? error : &ignored);
}

KafkaErrorClass
send_text(KafkaProducer *producer, const char *topic, int partition,
		  const char *key, const char *value, uint64_t tag)
{
	KafkaRecord record = {0};
	KafkaError	error;

	record.topic = kafka_topic(producer, topic);
	record.partition = partition;
	record.key = key;
	record.key_length = key != NULL ? strlen(key) : 0;
	record.value = value;
	record.value_length = value != NULL ? strlen(value) : 0;
	record.tag = tag;
	return kafka_produce(producer, &record, &error);
}

static void
on_delivered(void *arg, const KafkaDelivery *delivery)
{
	Seen	   *seen = arg;

	if (delivery->class != KAFKA_ERROR_NONE)
	{
		seen->failed++;
		/* what the broker refused, not what was purged because of it */
		if (delivery->class != KAFKA_ERROR_PURGED)
			seen->last_failure = delivery->class;
		return;
	}
	seen->delivered++;
	seen->last_tag = delivery->tag;
	if (delivery->tag < MAX_TAGS)
	{
		seen->tags[delivery->tag] = true;
		seen->offsets[delivery->tag] = delivery->offset;
		seen->partitions[delivery->tag] = delivery->partition;
	}
}

static void
on_error(void *arg, const KafkaError *error)
{
	Seen	   *seen = arg;

	seen->errors++;
	seen->last_error = error->class;
}

static void
on_log(void *arg, int level, const char *text)
{
	Seen	   *seen = arg;

	seen->logs++;
	(void) level;
	(void) text;
}

static void
on_limit(void *arg, const KafkaTopicLimit *limit)
{
	Seen	   *seen = arg;

	if (limit->topic != NULL)
		seen->limits++;
	else
	{
		seen->limits_ended++;
		seen->limits_class = limit->error.class;
	}
}

const KafkaEventHandlers handlers = {on_delivered, on_error, on_log, on_limit};

bool
nothing_outstanding(KafkaProducer *producer, Seen *seen, int wanted)
{
	return kafka_producer_outstanding(producer) == wanted;
}

bool
is_connected(KafkaProducer *producer, Seen *seen, int wanted)
{
	return kafka_producer_is_connected(producer) == (wanted != 0);
}

bool
is_dead(KafkaProducer *producer, Seen *seen, int wanted)
{
	return kafka_producer_is_dead(producer, NULL);
}

bool
serve_until(KafkaProducer *producer, Seen *seen, Condition condition, int wanted)
{
	double		deadline = now_ms() + WAIT_MS;

	for (;;)
	{
		struct pollfd pfd = {kafka_producer_fd(producer), POLLIN, 0};
		double		left = deadline - now_ms();

		while (kafka_producer_serve(producer, &handlers, seen, 100) > 0)
			;
		if (condition(producer, seen, wanted))
			return true;
		if (left <= 0 || poll(&pfd, 1, (int) left) < 0)
			return false;
	}
}

bool
is_readable(KafkaProducer *producer, int timeout_ms)
{
	struct pollfd pfd = {kafka_producer_fd(producer), POLLIN, 0};

	return poll(&pfd, 1, timeout_ms) == 1;
}

/* ----------
 * Threads
 * ----------
 */

int
count_threads(void)
{
	DIR		   *dir = opendir("/proc/self/task");
	struct dirent *entry;
	int			count = 0;

	while (dir != NULL && (entry = readdir(dir)) != NULL)
	{
		if (entry->d_name[0] != '.')
			count++;
	}
	if (dir != NULL)
		closedir(dir);
	return count;
}

int
count_open_to_signals(void)
{
	const unsigned long long usual = 0x7ffbfeffULL; /* 1..31 but KILL, STOP */
	DIR		   *dir = opendir("/proc/self/task");
	struct dirent *entry;
	int			count = 0;

	while (dir != NULL && (entry = readdir(dir)) != NULL)
	{
		char		path[300];
		char		line[256];
		FILE	   *file;

		if (entry->d_name[0] == '.' || atoi(entry->d_name) == getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", entry->d_name);
		file = fopen(path, "r");
		while (file != NULL && fgets(line, sizeof(line), file) != NULL)
		{
			if (strncmp(line, "SigBlk:", 7) == 0 &&
				(strtoull(line + 7, NULL, 16) & usual) != usual)
				count++;
		}
		if (file != NULL)
			fclose(file);
	}
	if (dir != NULL)
		closedir(dir);
	return count;
}

/* ----------
 * A cluster
 * ----------
 */

static rd_kafka_t *mock_client;
rd_kafka_mock_cluster_t *mock;
char		mock_servers[256];

void
start_mock(void)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char		errstr[256];
	sigset_t	all;
	sigset_t	old;

	/* it talks to nobody; the mock cluster only needs a client to live in */
	rd_kafka_conf_set(conf, "log_level", "0", errstr, sizeof(errstr));
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	mock_client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	mock = rd_kafka_mock_cluster_new(mock_client, 1);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	snprintf(mock_servers, sizeof(mock_servers), "%s", rd_kafka_mock_cluster_bootstraps(mock));
	rd_kafka_mock_topic_create(mock, "orders", 4, 1);
	rd_kafka_mock_topic_create(mock, "recurring", 1, 1);
	rd_kafka_mock_topic_create(mock, "single", 1, 1);
}

void
stop_mock(void)
{
	rd_kafka_mock_cluster_destroy(mock);
	rd_kafka_destroy(mock_client);
}
