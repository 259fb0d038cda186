/*
 * sink.c
 *	  The consumer that the inbox is compared with: Kafka to rows of a table.
 *
 *		sink -b BROKERS -d CONNINFO -t TOPIC -q TABLE -n MESSAGES [-X NAME=VALUE]...
 *
 * Written as one who wants to win would write it. Partition 0 of the topic is
 * read from the position that is stored in TABLE_position; a batch of at most
 * so many messages is one transaction:
 *
 *		BEGIN
 *		INSERT INTO TABLE (...) VALUES (...)	prepared, for each message
 *		UPDATE TABLE_position SET position = ...
 *		COMMIT
 *
 * all of it sent in one go in libpq's pipeline mode with binary parameters, so
 * there is one round trip for a batch. At SIGTERM it ends after the batch at
 * hand.
 *
 * The tables: TABLE (partition int, "offset" bigint, key bytea, payload bytea),
 * and TABLE_position (position bigint), of one row.
 */
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "common.h"

#define WAIT_MS 100
#define COLUMNS 4

static volatile sig_atomic_t stop = 0;

static void
on_sigterm(int signal_number)
{
	(void) signal_number;
	stop = 1;
}

static void
check(PGconn *conn, int ok)
{
	if (!ok)
		die("%s", PQerrorMessage(conn));
}

static char *
single_value(PGconn *conn, const char *statement)
{
	PGresult   *result = PQexec(conn, statement);
	char	   *value;

	if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) != 1)
		die("%s: %s", statement, PQerrorMessage(conn));
	value = strdup(PQgetvalue(result, 0, 0));
	PQclear(result);
	return value;
}

static void
prepare(PGconn *conn, const char *name, const char *statement)
{
	PGresult   *result = PQprepare(conn, name, statement, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die("%s", PQerrorMessage(conn));
	PQclear(result);
}

static PGconn *
connect_and_prepare(const char *conninfo, const char *table)
{
	PGconn	   *conn = PQconnectdb(conninfo);
	char	   *insert;
	char	   *update;

	if (PQstatus(conn) != CONNECTION_OK)
		die("%s", PQerrorMessage(conn));
	if (asprintf(&insert, "INSERT INTO %s (partition, \"offset\", key, payload) "
				 "VALUES ($1::int4, $2::int8, $3::bytea, $4::bytea)", table) < 0 ||
		asprintf(&update, "UPDATE %s_position SET position = $1::int8", table) < 0)
		die("out of memory");
	prepare(conn, "begin", "BEGIN");
	prepare(conn, "insert", insert);
	prepare(conn, "update", update);
	prepare(conn, "commit", "COMMIT");
	free(insert);
	free(update);
	return conn;
}

static void
send_insert(PGconn *conn, const rd_kafka_message_t *message)
{
	uint32_t	partition = htobe32((uint32_t) message->partition);
	uint64_t	offset = htobe64((uint64_t) message->offset);
	const char *values[COLUMNS] = {(char *) &partition, (char *) &offset, message->key, message->payload};
	const int	lengths[COLUMNS] = {sizeof(partition), sizeof(offset), (int) message->key_len, (int) message->len};
	const int	formats[COLUMNS] = {1, 1, 1, 1};

	check(conn, PQsendQueryPrepared(conn, "insert", COLUMNS, values, lengths, formats, 1));
}

static void
send_position(PGconn *conn, int64_t position)
{
	uint64_t	value = htobe64((uint64_t) position);
	const char *values[] = {(char *) &value};
	const int	lengths[] = {sizeof(value)};
	const int	formats[] = {1};

	check(conn, PQsendQueryPrepared(conn, "update", 1, values, lengths, formats, 1));
}

/* Send what is buffered, reading meanwhile: the server may wait for that. */
static void
flush(PGconn *conn)
{
	int			left;

	while ((left = PQflush(conn)) > 0)
	{
		struct pollfd fd = {.fd = PQsocket(conn),.events = POLLIN | POLLOUT};

		if (poll(&fd, 1, -1) < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		if (fd.revents & POLLIN)
			check(conn, PQconsumeInput(conn));
	}
	check(conn, left == 0);
}

/* Results up to the pipeline's sync. */
static void
read_results(PGconn *conn)
{
	for (;;)
	{
		PGresult   *result = PQgetResult(conn);
		ExecStatusType status;

		if (result == NULL)
			continue;
		status = PQresultStatus(result);
		PQclear(result);
		if (status == PGRES_PIPELINE_SYNC)
			return;
		if (status != PGRES_COMMAND_OK)
			die("%s", PQerrorMessage(conn));
	}
}

static void
store_batch(PGconn *conn, rd_kafka_message_t **messages, ssize_t count)
{
	check(conn, PQsendQueryPrepared(conn, "begin", 0, NULL, NULL, NULL, 1));
	for (ssize_t i = 0; i < count; i++)
		send_insert(conn, messages[i]);
	send_position(conn, messages[count - 1]->offset + 1);
	check(conn, PQsendQueryPrepared(conn, "commit", 0, NULL, NULL, NULL, 1));
	check(conn, PQpipelineSync(conn));
	flush(conn);
	read_results(conn);
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	const char *conninfo = NULL;
	const char *topic = NULL;
	const char *table = NULL;
	long		batch = 0;
	char		error[512];
	char	   *select;
	rd_kafka_t *rk;
	rd_kafka_topic_t *rkt;
	rd_kafka_queue_t *queue;
	rd_kafka_message_t **messages;
	PGconn	   *conn;
	int			option;

	set_property(conf, "enable.partition.eof=false");
	while ((option = getopt(argc, argv, "b:d:t:q:n:X:")) != -1)
	{
		switch (option)
		{
			case 'b':
				set_property_value(conf, "bootstrap.servers", optarg);
				break;
			case 'd':
				conninfo = optarg;
				break;
			case 't':
				topic = optarg;
				break;
			case 'q':
				table = optarg;
				break;
			case 'n':
				batch = positive(optarg, "-n");
				break;
			case 'X':
				set_property(conf, optarg);
				break;
			default:
				return 1;
		}
	}
	if (conninfo == NULL || topic == NULL || table == NULL || batch == 0)
		die("-b, -d, -t, -q and -n are needed");
	signal(SIGTERM, on_sigterm);

	conn = connect_and_prepare(conninfo, table);
	if (asprintf(&select, "SELECT position FROM %s_position", table) < 0)
		die("out of memory");
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	rkt = rd_kafka_topic_new(rk, topic, NULL);
	queue = rd_kafka_queue_new(rk);
	if (rkt == NULL ||
		rd_kafka_consume_start_queue(rkt, 0, atoll(single_value(conn, select)), queue) != 0)
		die("%s: %s", topic, rd_kafka_err2str(rd_kafka_last_error()));
	check(conn, PQenterPipelineMode(conn));
	check(conn, PQsetnonblocking(conn, 1) == 0);
	messages = xmalloc(sizeof(rd_kafka_message_t *) * (size_t) batch);

	while (!stop)
	{
		ssize_t		count = rd_kafka_consume_batch_queue(queue, WAIT_MS, messages, (size_t) batch);

		for (ssize_t i = 0; i < count; i++)
		{
			if (messages[i]->err != RD_KAFKA_RESP_ERR_NO_ERROR)
				die("%s", rd_kafka_message_errstr(messages[i]));
		}
		if (count > 0)
			store_batch(conn, messages, count);
		for (ssize_t i = 0; i < count; i++)
			rd_kafka_message_destroy(messages[i]);
	}
	PQfinish(conn);
	rd_kafka_consume_stop(rkt, 0);
	rd_kafka_queue_destroy(queue);
	rd_kafka_topic_destroy(rkt);
	rd_kafka_destroy(rk);
	return 0;
}
