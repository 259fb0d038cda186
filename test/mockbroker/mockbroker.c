/*
 * mockbroker.c
 *	  librdkafka's mock Kafka cluster as a program, for the demo and the tests.
 *
 *	  mockbroker [-b BROKERS] [-e] [TOPIC:PARTITIONS ...]
 *
 * Prints the bootstrap servers on a line, then runs until SIGTERM or SIGINT,
 * with -e also until its standard input ends (so that it cannot outlive the
 * test that started it). Topics not named are made when they are first asked
 * for, with four partitions. A partition keeps what came last: 100,000
 * messages or 5 MB.
 *
 * Commands, one a line on standard input, are answered by "ok" or
 * "error: ..." on standard output. BROKER is a number from 1, or "all"; CODE a
 * number or a name of librdkafka's, as in MSG_SIZE_TOO_LARGE; REQUEST one of
 * the names below or the number of the request in Kafka's protocol.
 *
 *	  error REQUEST CODE [COUNT]	  fail the next COUNT (1) of these requests
 *	  clear REQUEST					  forget what is left of that
 *	  down BROKER					  close its connections, refuse new ones
 *	  up BROKER						  undo it
 *	  rtt BROKER MS					  answer so much later
 *	  leader TOPIC PARTITION BROKER	  who leads it; -1: nobody
 *	  topic TOPIC PARTITIONS		  make a topic
 *	  topic-error TOPIC CODE		  what metadata says of it; 0: nothing
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#define MAX_WORDS 5
#define MAX_LINE 1024

static volatile sig_atomic_t stop;

static void
handle_stop(int signo)
{
	(void) signo;
	stop = 1;
}

static void
fail(const char *what)
{
	fprintf(stderr, "mockbroker: %s\n", what);
	exit(1);
}

static bool
parse_int(const char *text, int *value)
{
	char	   *end;
	long		number;

	errno = 0;
	number = strtol(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || number < -100000 || number > 10000000)
		return false;
	*value = (int) number;
	return true;
}

static bool
parse_broker(const char *text, int *broker)
{
	if (strcmp(text, "all") == 0)
	{
		*broker = -1;
		return true;
	}
	return parse_int(text, broker);
}

static bool
parse_code(const char *text, int *code)
{
	const struct rd_kafka_err_desc *descs;
	size_t		count;

	if (parse_int(text, code))
		return true;
	rd_kafka_get_err_descs(&descs, &count);
	for (size_t i = 0; i < count; i++)
	{
		if (descs[i].name != NULL && strcmp(descs[i].name, text) == 0)
		{
			*code = descs[i].code;
			return true;
		}
	}
	return false;
}

static bool
parse_request(const char *text, int *request)
{
	static const struct
	{
		const char *name;
		int			number;
	}			requests[] = {
		{"produce", 0}, {"fetch", 1}, {"metadata", 3}, {"init-producer-id", 22},
		{"add-partitions-to-txn", 24}, {"add-offsets-to-txn", 25}, {"end-txn", 26},
		{"txn-offset-commit", 28},
	};

	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
	{
		if (strcmp(requests[i].name, text) == 0)
		{
			*request = requests[i].number;
			return true;
		}
	}
	return parse_int(text, request);
}

/* TOPIC:PARTITIONS of the command line. */
static void
create_topic(rd_kafka_mock_cluster_t *cluster, const char *argument)
{
	const char *colon = strrchr(argument, ':');
	char		name[256];
	int			partitions;

	if (colon == NULL || colon == argument || !parse_int(colon + 1, &partitions) ||
		partitions < 1 || (size_t) (colon - argument) >= sizeof(name))
		fail("a topic is given as NAME:PARTITIONS");
	memcpy(name, argument, (size_t) (colon - argument));
	name[colon - argument] = '\0';
	if (rd_kafka_mock_topic_create(cluster, name, partitions, 1) != RD_KAFKA_RESP_ERR_NO_ERROR)
		fail("could not create a topic");
}

/* Do one command; NULL when done, else what is wrong with it. */
static const char *
execute(rd_kafka_mock_cluster_t *cluster, char *line)
{
	char	   *words[MAX_WORDS] = {NULL};
	char	   *rest = line;
	const char *command;
	int			count = 0;
	int			a;
	int			b;
	int			n = 1;
	rd_kafka_resp_err_t result = RD_KAFKA_RESP_ERR_NO_ERROR;

	while (count < MAX_WORDS && (words[count] = strtok_r(rest, " \t\r", &rest)) != NULL)
		count++;
	if (count == 0)
		return "empty command";
	command = words[0];

	if (strcmp(command, "error") == 0 && (count == 3 || count == 4) &&
		parse_request(words[1], &a) && parse_code(words[2], &b) &&
		(count == 3 || parse_int(words[3], &n)) && n > 0)
	{
		rd_kafka_resp_err_t *codes = malloc((size_t) n * sizeof(*codes));

		if (codes == NULL)
			return "out of memory";
		for (int i = 0; i < n; i++)
			codes[i] = (rd_kafka_resp_err_t) b;
		rd_kafka_mock_push_request_errors_array(cluster, (int16_t) a, (size_t) n, codes);
		free(codes);
	}
	else if (strcmp(command, "clear") == 0 && count == 2 && parse_request(words[1], &a))
		rd_kafka_mock_clear_request_errors(cluster, (int16_t) a);
	else if (strcmp(command, "down") == 0 && count == 2 && parse_broker(words[1], &a))
		result = rd_kafka_mock_broker_set_down(cluster, a);
	else if (strcmp(command, "up") == 0 && count == 2 && parse_broker(words[1], &a))
		result = rd_kafka_mock_broker_set_up(cluster, a);
	else if (strcmp(command, "rtt") == 0 && count == 3 && parse_broker(words[1], &a) &&
			 parse_int(words[2], &b))
		result = rd_kafka_mock_broker_set_rtt(cluster, a, b);
	else if (strcmp(command, "leader") == 0 && count == 4 && parse_int(words[2], &a) &&
			 parse_int(words[3], &b))
		result = rd_kafka_mock_partition_set_leader(cluster, words[1], a, b);
	else if (strcmp(command, "topic") == 0 && count == 3 && parse_int(words[2], &a) && a > 0)
		result = rd_kafka_mock_topic_create(cluster, words[1], a, 1);
	else if (strcmp(command, "topic-error") == 0 && count == 3 && parse_code(words[2], &a))
		rd_kafka_mock_topic_set_error(cluster, words[1], (rd_kafka_resp_err_t) a);
	else
		return "unknown command, or wrong arguments";

	return result == RD_KAFKA_RESP_ERR_NO_ERROR ? NULL : rd_kafka_err2str(result);
}

/* Execute the complete lines of the buffer; returns what is left in it. */
static size_t
execute_lines(rd_kafka_mock_cluster_t *cluster, char *buffer, size_t length)
{
	char	   *line = buffer;
	char	   *end;

	while ((end = memchr(line, '\n', length - (size_t) (line - buffer))) != NULL)
	{
		const char *reason;

		*end = '\0';
		reason = execute(cluster, line);
		if (reason == NULL)
			printf("ok\n");
		else
			printf("error: %s\n", reason);
		fflush(stdout);
		line = end + 1;
	}
	length -= (size_t) (line - buffer);
	memmove(buffer, line, length);
	return length;
}

/* Serve commands until a signal, or the end of the input if that counts. */
static void
serve(rd_kafka_mock_cluster_t *cluster, bool until_eof, const sigset_t *open_mask)
{
	char		buffer[MAX_LINE];
	size_t		length = 0;
	struct pollfd input = {STDIN_FILENO, POLLIN, 0};

	while (!stop)
	{
		ssize_t		n;

		/* signals are let in only here, so none slips in before the wait */
		if (ppoll(&input, 1, NULL, open_mask) < 0)
			continue;
		n = read(STDIN_FILENO, buffer + length, sizeof(buffer) - length);
		if (n > 0)
		{
			length = execute_lines(cluster, buffer, length + (size_t) n);
			if (length == sizeof(buffer))
				fail("a command is too long");
		}
		else if (until_eof)
			return;
		else
			input.fd = -1;		/* only a signal ends it now */
	}
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_mock_cluster_t *cluster;
	rd_kafka_t *client;
	struct sigaction action = {0};
	sigset_t	all;
	sigset_t	open_mask;
	char		errstr[256];
	int			brokers = 1;
	bool		until_eof = false;
	int			option;

	while ((option = getopt(argc, argv, "b:e")) != -1)
	{
		if (option == 'b' && parse_int(optarg, &brokers) && brokers >= 1)
			continue;
		if (option != 'e')
			fail("usage: mockbroker [-b BROKERS] [-e] [TOPIC:PARTITIONS ...]");
		until_eof = true;
	}

	/* before there are threads: signals are for this one alone */
	action.sa_handler = handle_stop;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &open_mask);
	sigdelset(&open_mask, SIGTERM);
	sigdelset(&open_mask, SIGINT);

	/* the cluster lives in a client, which itself talks to nobody */
	rd_kafka_conf_set(conf, "log_level", "3", errstr, sizeof(errstr));
	client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	if (client == NULL)
		fail(errstr);
	cluster = rd_kafka_mock_cluster_new(client, brokers);
	if (cluster == NULL)
		fail("could not start the mock cluster");
	for (int i = optind; i < argc; i++)
		create_topic(cluster, argv[i]);

	printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
	fflush(stdout);
	serve(cluster, until_eof, &open_mask);

	rd_kafka_mock_cluster_destroy(cluster);
	rd_kafka_destroy(client);
	return 0;
}
