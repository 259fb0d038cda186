/*
 * producer.c
 *	  The plain librdkafka producer that the relay is compared with.
 *
 *		producer -b BROKERS -t TOPIC [-X NAME=VALUE]... [-w] -d CONNINFO -q QUERY
 *		producer -b BROKERS -t TOPIC [-X NAME=VALUE]... [-h HEADERS] -g COUNT
 *		producer -b BROKERS -t TOPIC [-X NAME=VALUE]... [-h HEADERS] [-T] -r RATE -s SECONDS -o FILE
 *
 * The first form reads the records that a query gives into memory, and then
 * sends them as fast as it can: those that the relay has to send, in its order. Nothing but sending is left to do in the timed
 * part: keys, values, header names and values lie ready. With -w it says
 * "loaded" and starts when its standard input ends. The second form sends
 * made-up records of the same shape, to warm a broker. The third one sends
 * made-up records at RATE a second, at random intervals (exponential, as
 * pgbench --rate does), and writes one line "event id<TAB>nanoseconds" for
 * each, with the time just before it was handed to librdkafka: the floor under
 * any latency. With -T (and a transactional.id) they go in Kafka transactions,
 * one after the other, each with all that has become due meanwhile, and the time
 * is when a record became due. Made-up records have the headers that the relay
 * adds with outbox_kafka.headers = cloudevents (the default) or plain.
 *
 * The query's columns: key bytea, value bytea, timestamp int8 (milliseconds),
 * partition int4 or NULL, headers text (name, FS, value, RS, and so on: see
 * parse_headers()).
 *
 * Prints one line of name=value pairs. The rate that counts is not measured
 * here but by the consumer, from the broker's append times.
 */
#include <endian.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "common.h"

#define CHUNK_SIZE (16 * 1024 * 1024)
#define FETCH_ROWS 20000
#define POLL_EVERY 256
#define FLUSH_TIMEOUT_MS 120000
#define HEADER_SEPARATOR '\x1c'
#define HEADER_END '\x1e'
#define UUID_LENGTH 36

typedef struct Header
{
	const char *name;
	const char *value;
	int			name_length;
	int			value_length;
} Header;

typedef struct Record
{
	const char *key;			/* NULL: none */
	const char *value;			/* NULL: tombstone */
	const Header *headers;
	int			key_length;
	int			value_length;
	int			nheaders;
	int			partition;		/* or RD_KAFKA_PARTITION_UA */
	int64_t		timestamp_ms;
} Record;

typedef struct RecordList
{
	Record	   *records;
	size_t		count;
	size_t		space;
} RecordList;

static long delivered = 0;
static long failed = 0;
static bool plain_headers = false;
static char first_failure[256];

/* Memory that is never given back: the records live as long as the program. */
static void *
keep(size_t size)
{
	static char *chunk = NULL;
	static size_t left = 0;
	void	   *result;

	size = (size + 7) & ~(size_t) 7;
	if (size > left)
	{
		left = size > CHUNK_SIZE ? size : CHUNK_SIZE;
		chunk = xmalloc(left);
	}
	result = chunk;
	chunk += size;
	left -= size;
	return result;
}

static void *
keep_copy(const void *bytes, size_t length)
{
	return memcpy(keep(length), bytes, length);
}

static Record *
add_record(RecordList *list)
{
	Record	   *record;

	if (list->count == list->space)
	{
		list->space = list->space == 0 ? 65536 : list->space * 2;
		list->records = xrealloc(list->records, list->space * sizeof(Record));
	}
	record = &list->records[list->count++];
	memset(record, 0, sizeof(*record));
	record->partition = RD_KAFKA_PARTITION_UA;
	return record;
}

/* "name<FS>value<RS>name<FS>value<RS>": every header ends with RS. */
static void
parse_headers(Record *record, const char *text, int length)
{
	const char *end;
	Header	   *headers;
	int			count = 0;

	text = keep_copy(text, length);
	end = text + length;
	for (const char *p = text; p < end; p++)
		if (*p == HEADER_END)
			count++;
	headers = keep(count * sizeof(Header));
	for (int i = 0; i < count; i++)
	{
		const char *stop = memchr(text, HEADER_END, end - text);
		const char *separator = memchr(text, HEADER_SEPARATOR, stop - text);

		if (separator == NULL)
			die("a header without a separator");
		headers[i].name = text;
		headers[i].name_length = (int) (separator - text);
		headers[i].value = separator + 1;
		headers[i].value_length = (int) (stop - separator - 1);
		text = stop + 1;
	}
	record->headers = headers;
	record->nheaders = count;
}

static int32_t
read_int4(const char *bytes)
{
	uint32_t	value;

	memcpy(&value, bytes, sizeof(value));
	return (int32_t) be32toh(value);
}

static int64_t
read_int8(const char *bytes)
{
	uint64_t	value;

	memcpy(&value, bytes, sizeof(value));
	return (int64_t) be64toh(value);
}

static PGresult *
run_query(PGconn *conn, const char *query, ExecStatusType expected)
{
	PGresult   *result = PQexecParams(conn, query, 0, NULL, NULL, NULL, NULL, 1);

	if (PQresultStatus(result) != expected)
		die("%s", PQerrorMessage(conn));
	return result;
}

static void
add_row(RecordList *list, const PGresult *result, int row)
{
	Record	   *record = add_record(list);

	if (!PQgetisnull(result, row, 0))
	{
		record->key_length = PQgetlength(result, row, 0);
		record->key = keep_copy(PQgetvalue(result, row, 0), record->key_length);
	}
	if (!PQgetisnull(result, row, 1))
	{
		record->value_length = PQgetlength(result, row, 1);
		record->value = keep_copy(PQgetvalue(result, row, 1), record->value_length);
	}
	record->timestamp_ms = read_int8(PQgetvalue(result, row, 2));
	if (!PQgetisnull(result, row, 3))
		record->partition = read_int4(PQgetvalue(result, row, 3));
	parse_headers(record, PQgetvalue(result, row, 4), PQgetlength(result, row, 4));
}

static void
load_records(RecordList *list, const char *conninfo, const char *query)
{
	PGconn	   *conn = PQconnectdb(conninfo);
	char	   *declare;
	char		fetch[64];
	int			rows;

	if (PQstatus(conn) != CONNECTION_OK)
		die("%s", PQerrorMessage(conn));
	if (asprintf(&declare, "DECLARE records CURSOR FOR %s", query) < 0)
		die("out of memory");
	snprintf(fetch, sizeof(fetch), "FETCH %d FROM records", FETCH_ROWS);

	PQclear(run_query(conn, "BEGIN", PGRES_COMMAND_OK));
	PQclear(run_query(conn, declare, PGRES_COMMAND_OK));
	do
	{
		PGresult   *result = run_query(conn, fetch, PGRES_TUPLES_OK);

		if (PQnfields(result) != 5 || PQftype(result, 2) != 20)
			die("the query must give key, value, timestamp, partition and headers");
		rows = PQntuples(result);
		for (int row = 0; row < rows; row++)
			add_row(list, result, row);
		PQclear(result);
	} while (rows > 0);
	PQfinish(conn);
	free(declare);
}

/* A record like those of the benchmark's table: 200 bytes of JSON, CloudEvents. */
static void
make_record(RecordList *list, const char *topic, uint64_t number)
{
	Record	   *record = add_record(list);
	char		text[512];
	int			length;
	uint64_t	mixed = (number + 1) * UINT64_C(0x9E3779B97F4A7C15);

	length = snprintf(text, sizeof(text), "%u", (unsigned) (mixed >> 40) % 50000);
	record->key = keep_copy(text, length);
	record->key_length = length;

	length = snprintf(text, sizeof(text),
					  "{\"order\": %12llu, \"customer\": \"%016llx\", \"note\": \"",
					  (unsigned long long) number, (unsigned long long) mixed);
	while (length < 198)
	{
		mixed = mixed * UINT64_C(6364136223846793005) + 1;
		text[length++] = "abcdefghijklmnopqrstuvwxyz012345"[mixed >> 59];
	}
	memcpy(text + length, "\"}", 2);
	record->value = keep_copy(text, length + 2);
	record->value_length = length + 2;

	length = snprintf(text, sizeof(text), "%s%c%08x-%04x-7000-8000-%012llx%c",
					  plain_headers ? "id" : "ce_id", HEADER_SEPARATOR,
					  (unsigned) getpid(), (unsigned) time(NULL) & 0xffff,
					  (unsigned long long) number, HEADER_END);
	if (!plain_headers)
		length += snprintf(text + length, sizeof(text) - length,
						   "ce_specversion%c1.0%cce_source%c/postgresql/bench%cce_type%c%s%c",
						   HEADER_SEPARATOR, HEADER_END, HEADER_SEPARATOR, HEADER_END,
						   HEADER_SEPARATOR, topic, HEADER_END);
	parse_headers(record, text, length);
}

static void
on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	(void) rk;
	(void) opaque;
	if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		delivered++;
	else if (failed++ == 0)
		snprintf(first_failure, sizeof(first_failure), "%s", rd_kafka_err2str(message->err));
}

static void
produce(rd_kafka_t *rk, rd_kafka_topic_t *rkt, const Record *record)
{
	rd_kafka_headers_t *headers = rd_kafka_headers_new(record->nheaders);
	rd_kafka_resp_err_t err;

	for (int i = 0; i < record->nheaders; i++)
		rd_kafka_header_add(headers, record->headers[i].name, record->headers[i].name_length,
							record->headers[i].value, record->headers[i].value_length);
	while ((err = rd_kafka_producev(rk,
									RD_KAFKA_V_RKT(rkt),
									RD_KAFKA_V_PARTITION(record->partition),
									RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
									RD_KAFKA_V_KEY(record->key, record->key_length),
									RD_KAFKA_V_VALUE((void *) record->value, record->value_length),
									RD_KAFKA_V_TIMESTAMP(record->timestamp_ms),
									RD_KAFKA_V_HEADERS(headers),
									RD_KAFKA_V_END)) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		rd_kafka_poll(rk, 5);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("produce: %s", rd_kafka_err2str(err));
}

static void
send_burst(rd_kafka_t *rk, rd_kafka_topic_t *rkt, const RecordList *list)
{
	for (size_t i = 0; i < list->count; i++)
	{
		produce(rk, rkt, &list->records[i]);
		if (i % POLL_EVERY == 0)
			rd_kafka_poll(rk, 0);
	}
	if (rd_kafka_flush(rk, FLUSH_TIMEOUT_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("not everything was acknowledged within %d s", FLUSH_TIMEOUT_MS / 1000);
}

/* Serve delivery reports until a point in time. */
static void
sleep_until(rd_kafka_t *rk, int64_t when)
{
	struct timespec until = {when / 1000000000, when % 1000000000};

	rd_kafka_poll(rk, 0);
	while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

static void
send_paced(rd_kafka_t *rk, rd_kafka_topic_t *rkt, const RecordList *list, double rate,
		   int64_t *sent)
{
	int64_t		due = now_ns();

	for (size_t i = 0; i < list->count; i++)
	{
		Record		record = list->records[i];

		due += (int64_t) (-log(drand48()) / rate * 1e9);
		sleep_until(rk, due);
		sent[i] = now_ns();
		record.timestamp_ms = sent[i] / 1000000;
		produce(rk, rkt, &record);
	}
	if (rd_kafka_flush(rk, FLUSH_TIMEOUT_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("not everything was acknowledged within %d s", FLUSH_TIMEOUT_MS / 1000);
}

static void
check(rd_kafka_error_t *error, const char *what)
{
	if (error != NULL)
		die("%s: %s", what, rd_kafka_error_string(error));
}

static void
send_transactions(rd_kafka_t *rk, rd_kafka_topic_t *rkt, const RecordList *list, double rate,
				  int64_t *sent)
{
	size_t		i = 0;
	int64_t		due = now_ns();

	for (size_t j = 0; j < list->count; j++)
		sent[j] = due += (int64_t) (-log(drand48()) / rate * 1e9);
	while (i < list->count)
	{
		int64_t		now;

		sleep_until(rk, sent[i]);
		check(rd_kafka_begin_transaction(rk), "begin");
		for (now = now_ns(); i < list->count && sent[i] <= now; i++)
		{
			Record		record = list->records[i];

			record.timestamp_ms = sent[i] / 1000000;
			produce(rk, rkt, &record);
		}
		if (rd_kafka_flush(rk, FLUSH_TIMEOUT_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
			die("not everything was acknowledged within %d s", FLUSH_TIMEOUT_MS / 1000);
		check(rd_kafka_commit_transaction(rk, FLUSH_TIMEOUT_MS), "commit");
	}
}

static void
write_sent(const char *path, const RecordList *list, const int64_t *sent)
{
	FILE	   *file = fopen(path, "w");

	if (file == NULL)
		die("%s: %s", path, strerror(errno));
	for (size_t i = 0; i < list->count; i++)
		fprintf(file, "%.*s\t%lld\n", UUID_LENGTH, list->records[i].headers[0].value,
				(long long) sent[i]);
	if (fclose(file) != 0)
		die("%s: %s", path, strerror(errno));
}

static double
cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
		(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	rd_kafka_topic_t *rkt;
	RecordList	list = {0};
	const char *topic = NULL;
	const char *conninfo = NULL;
	const char *query = NULL;
	const char *out = NULL;
	long		generate = 0;
	long		rate = 0;
	long		seconds = 0;
	bool		wait_for_go = false;
	bool		transactions = false;
	int64_t    *sent = NULL;
	int64_t		started;
	double		cpu;
	double		took;
	char		error[512];
	int			option;

	while ((option = getopt(argc, argv, "b:t:X:wd:q:h:g:r:s:o:T")) != -1)
	{
		switch (option)
		{
			case 'b':
				set_property_value(conf, "bootstrap.servers", optarg);
				break;
			case 't':
				topic = optarg;
				break;
			case 'X':
				set_property(conf, optarg);
				break;
			case 'w':
				wait_for_go = true;
				break;
			case 'd':
				conninfo = optarg;
				break;
			case 'q':
				query = optarg;
				break;
			case 'h':
				plain_headers = strcmp(optarg, "plain") == 0;
				break;
			case 'g':
				generate = positive(optarg, "-g");
				break;
			case 'r':
				rate = positive(optarg, "-r");
				break;
			case 's':
				seconds = positive(optarg, "-s");
				break;
			case 'o':
				out = optarg;
				break;
			case 'T':
				transactions = true;
				break;
			default:
				return 2;
		}
	}
	if (topic == NULL || (query == NULL) != (conninfo == NULL) ||
		(rate == 0) != (seconds == 0) || (rate == 0) != (out == NULL) || (transactions && rate == 0) ||
		(query != NULL) + (generate > 0) + (rate > 0) != 1)
		die("give -t, and one of: -d with -q; -g; -r with -s and -o");

	if (query != NULL)
		load_records(&list, conninfo, query);
	else
		for (long i = 0; i < generate + rate * seconds; i++)
			make_record(&list, topic, (uint64_t) i);
	if (list.count == 0)
		die("there is nothing to send");
	if (rate > 0)
		sent = xmalloc(list.count * sizeof(int64_t));

	rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	rkt = rd_kafka_topic_new(rk, topic, NULL);
	if (rkt == NULL)
		die("topic %s: %s", topic, rd_kafka_err2str(rd_kafka_last_error()));
	partition_count(rk, topic);
	if (transactions)
		check(rd_kafka_init_transactions(rk, FLUSH_TIMEOUT_MS), "init");

	if (wait_for_go)
	{
		puts("loaded");
		fflush(stdout);
		while (getchar() != EOF)
			;
	}
	cpu = cpu_seconds();
	started = now_ns();
	if (transactions)
		send_transactions(rk, rkt, &list, (double) rate, sent);
	else if (rate > 0)
		send_paced(rk, rkt, &list, rate, sent);
	else
		send_burst(rk, rkt, &list);
	took = (now_ns() - started) / 1e9;
	cpu = cpu_seconds() - cpu;

	if (failed > 0)
		die("%ld records failed, the first one: %s", failed, first_failure);
	if (delivered != (long) list.count)
		die("%ld of %zu records acknowledged", delivered, list.count);
	if (rate > 0)
		write_sent(out, &list, sent);
	printf("records=%zu seconds=%.3f cpu=%.2f\n", list.count, took, cpu);

	rd_kafka_topic_destroy(rkt);
	rd_kafka_destroy(rk);
	return 0;
}
