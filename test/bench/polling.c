/*
 * polling.c
 *	  The polling relay that the extension is compared with.
 *
 *		polling -b BROKERS -d CONNINFO -q TABLE [-X NAME=VALUE]... [-n ROWS]
 *				[-i MILLISECONDS] [-h plain|cloudevents] [-o FILE]
 *
 * Written as one who wants to win would write it. A batch is one transaction:
 *
 *		BEGIN; SELECT ... ORDER BY id LIMIT n FOR UPDATE SKIP LOCKED
 *		produce, wait for all acknowledgements
 *		DELETE ... WHERE id = ANY(...); COMMIT
 *
 * Two connections take turns, so that the next batch is read and produced
 * while the brokers acknowledge the one before and the server deletes it; the
 * locks keep the two apart. Statements are prepared, results binary, round
 * trips saved by libpq's pipeline mode. The commit of a DELETE need not be
 * flushed: what is lost is sent again.
 *
 * As long as batches are full, a batch looks only above the last id of the one
 * before, because otherwise it would walk over the index entries of all that
 * was deleted. A batch that is not full starts from the bottom again, and so
 * finds what was committed late. (Such a message comes after messages that
 * could see it. That is what relays of this kind do.)
 *
 * Messages linger for batches only while there is more to read: after a batch
 * that is not full they are flushed at once. When there is nothing it sleeps
 * for MILLISECONDS (1). At SIGTERM it ends after the batch at hand; with -o it
 * then writes one line "event id<TAB>xid" for each message, for a measurement
 * that needs to know when it was committed.
 *
 * The table: id bigint, event_id uuid, topic text, key bytea, payload bytea.
 */
#include <endian.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "common.h"

#define INT8_OID 20
#define UUID_BYTES 16
#define UUID_LENGTH 36
#define SLOTS 2
#define FLUSH_TIMEOUT_MS 120000
#define MAX_TOPICS 4096

typedef struct Slot
{
	PGconn	   *conn;
	int			unread;			/* pipeline syncs whose results are not read */
	PGresult   *rows;			/* of the batch under way, or NULL */
	long		unacknowledged;
} Slot;

typedef struct Seen
{
	char		event_id[UUID_LENGTH + 1];
	uint32_t	xid;
} Seen;

static volatile sig_atomic_t stop = 0;
static rd_kafka_t *rk;
static rd_kafka_topic_t *topics[MAX_TOPICS];
static int	ntopics = 0;
static bool cloudevents = false;
static const char *source = "";
static Seen *seen = NULL;
static size_t nseen = 0;
static size_t seen_space = 0;

static void
on_sigterm(int signal_number)
{
	(void) signal_number;
	stop = 1;
}

static void
on_delivery(rd_kafka_t *producer, const rd_kafka_message_t *message, void *opaque)
{
	Slot	   *slot = message->_private;

	(void) producer;
	(void) opaque;
	if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("delivery: %s", rd_kafka_err2str(message->err));
	slot->unacknowledged--;
}

static rd_kafka_topic_t *
topic_handle(const char *name)
{
	for (int i = ntopics - 1; i >= 0; i--)
		if (strcmp(rd_kafka_topic_name(topics[i]), name) == 0)
			return topics[i];
	if (ntopics == MAX_TOPICS)
		die("more than %d topics", MAX_TOPICS);
	topics[ntopics] = rd_kafka_topic_new(rk, name, NULL);
	if (topics[ntopics] == NULL)
		die("topic %s: %s", name, rd_kafka_err2str(rd_kafka_last_error()));
	return topics[ntopics++];
}

/*
 * Read results up to and including the next pipeline sync. Returns the rows
 * among them, if any.
 */
static PGresult *
read_to_sync(Slot *slot)
{
	PGresult   *rows = NULL;

	for (;;)
	{
		PGresult   *result = PQgetResult(slot->conn);

		switch (PQresultStatus(result))
		{
			case PGRES_PIPELINE_SYNC:
				PQclear(result);
				slot->unread--;
				return rows;
			case PGRES_TUPLES_OK:
				rows = result;
				break;
			case PGRES_COMMAND_OK:
				PQclear(result);
				break;
			default:
				die("%s", PQerrorMessage(slot->conn));
		}
		/* a NULL ends each statement's results */
		if (PQgetResult(slot->conn) != NULL)
			die("a second result");
	}
}

static void
send_statement(Slot *slot, const char *name, const char *value, int length)
{
	const char *values[] = {value};
	const int	lengths[] = {length};
	const int	formats[] = {1};

	if (!PQsendQueryPrepared(slot->conn, name, value != NULL ? 1 : 0, values, lengths, formats, 1))
		die("%s", PQerrorMessage(slot->conn));
}

static void
send_sync(Slot *slot)
{
	if (!PQpipelineSync(slot->conn))
		die("%s", PQerrorMessage(slot->conn));
	slot->unread++;
}

static void
prepare(PGconn *conn, const char *name, const char *statement)
{
	PGresult   *result = PQprepare(conn, name, statement, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die("%s", PQerrorMessage(conn));
	PQclear(result);
}

static void
open_slot(Slot *slot, const char *conninfo, const char *table, long limit)
{
	char	   *select;
	char	   *delete;

	slot->conn = PQconnectdb(conninfo);
	if (PQstatus(slot->conn) != CONNECTION_OK)
		die("%s", PQerrorMessage(slot->conn));
	if (asprintf(&select, "SELECT id, topic, key, payload, event_id, xmin FROM %s WHERE id > $1::int8 "
				 "ORDER BY id LIMIT %ld FOR UPDATE SKIP LOCKED", table, limit) < 0 ||
		asprintf(&delete, "DELETE FROM %s WHERE id = ANY($1::int8[])", table) < 0)
		die("out of memory");
	PQclear(PQexec(slot->conn, "SET synchronous_commit = off"));
	/* a generic plan may not know that the table is large */
	PQclear(PQexec(slot->conn, "SET enable_seqscan = off"));
	PQclear(PQexec(slot->conn, "SET enable_sort = off"));
	prepare(slot->conn, "begin", "BEGIN");
	prepare(slot->conn, "commit", "COMMIT");
	prepare(slot->conn, "select", select);
	prepare(slot->conn, "delete", delete);
	if (!PQenterPipelineMode(slot->conn))
		die("%s", PQerrorMessage(slot->conn));
	free(select);
	free(delete);
}

static void
format_uuid(char *text, const unsigned char *bytes)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < UUID_BYTES; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*text++ = '-';
		*text++ = digits[bytes[i] >> 4];
		*text++ = digits[bytes[i] & 15];
	}
	*text = '\0';
}

static void
note_seen(const char *event_id, const char *xid)
{
	uint32_t	value;

	if (nseen == seen_space)
	{
		seen_space = seen_space == 0 ? 65536 : seen_space * 2;
		seen = xrealloc(seen, seen_space * sizeof(Seen));
	}
	memcpy(&value, xid, sizeof(value));
	memcpy(seen[nseen].event_id, event_id, sizeof(seen[nseen].event_id));
	seen[nseen++].xid = be32toh(value);
}

static void
produce_row(Slot *slot, int row, bool note)
{
	const PGresult *rows = slot->rows;
	const char *topic = PQgetvalue(rows, row, 1);
	bool		has_key = !PQgetisnull(rows, row, 2);
	bool		has_payload = !PQgetisnull(rows, row, 3);
	rd_kafka_headers_t *headers = rd_kafka_headers_new(4);
	rd_kafka_topic_t *rkt = topic_handle(topic);
	char		event_id[UUID_LENGTH + 1];
	rd_kafka_resp_err_t err;

	format_uuid(event_id, (const unsigned char *) PQgetvalue(rows, row, 4));
	if (cloudevents)
	{
		rd_kafka_header_add(headers, "ce_specversion", 14, "1.0", 3);
		rd_kafka_header_add(headers, "ce_source", 9, source, -1);
		rd_kafka_header_add(headers, "ce_type", 7, topic, -1);
		rd_kafka_header_add(headers, "ce_id", 5, event_id, UUID_LENGTH);
	}
	else
		rd_kafka_header_add(headers, "id", 2, event_id, UUID_LENGTH);
	if (note)
		note_seen(event_id, PQgetvalue(rows, row, 5));
	while ((err = rd_kafka_producev(rk,
									RD_KAFKA_V_RKT(rkt),
									RD_KAFKA_V_MSGFLAGS(0),
									RD_KAFKA_V_KEY(has_key ? PQgetvalue(rows, row, 2) : NULL,
												   has_key ? PQgetlength(rows, row, 2) : 0),
									RD_KAFKA_V_VALUE(has_payload ? PQgetvalue(rows, row, 3) : NULL,
													 has_payload ? PQgetlength(rows, row, 3) : 0),
									RD_KAFKA_V_HEADERS(headers),
									RD_KAFKA_V_OPAQUE(slot),
									RD_KAFKA_V_END)) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		rd_kafka_poll(rk, 5);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("produce: %s", rd_kafka_err2str(err));
	slot->unacknowledged++;
}

/*
 * The ids of a batch as a binary int8[]. They come in binary, too, so they are
 * copied as they are.
 */
static char *
id_array(const PGresult *rows, int *length)
{
	int			count = PQntuples(rows);
	char	   *array = xmalloc(20 + (size_t) count * 12);
	uint32_t	head[5] = {htobe32(1), 0, htobe32(INT8_OID), htobe32(count), htobe32(1)};
	uint32_t	eight = htobe32(8);
	char	   *p = array + sizeof(head);

	memcpy(array, head, sizeof(head));
	for (int row = 0; row < count; row++, p += 12)
	{
		memcpy(p, &eight, 4);
		memcpy(p + 4, PQgetvalue(rows, row, 0), 8);
	}
	*length = (int) (p - array);
	return array;
}

/* Wait for the acknowledgements of a batch; have it deleted and committed. */
static void
finish_batch(Slot *slot)
{
	char	   *ids;
	int			length;

	if (slot->rows == NULL)
		return;
	while (slot->unacknowledged > 0)
		rd_kafka_poll(rk, 100);
	ids = id_array(slot->rows, &length);
	send_statement(slot, "delete", ids, length);
	send_statement(slot, "commit", NULL, 0);
	send_sync(slot);
	free(ids);
	/* the payloads had to live until they were acknowledged */
	PQclear(slot->rows);
	slot->rows = NULL;
}

/* Read a batch above an id and produce it. Returns its size, and its last id. */
static int
start_batch(Slot *slot, int64_t *above, bool note)
{
	uint64_t	bound = htobe64((uint64_t) *above);
	uint64_t	last;
	int			count;

	while (slot->unread > 0)
		PQclear(read_to_sync(slot));
	send_statement(slot, "begin", NULL, 0);
	send_statement(slot, "select", (const char *) &bound, sizeof(bound));
	send_sync(slot);
	slot->rows = read_to_sync(slot);
	count = PQntuples(slot->rows);
	if (count == 0)
	{
		PQclear(slot->rows);
		slot->rows = NULL;
		send_statement(slot, "commit", NULL, 0);
		send_sync(slot);
		return 0;
	}
	for (int row = 0; row < count; row++)
		produce_row(slot, row, note);
	rd_kafka_poll(rk, 0);
	memcpy(&last, PQgetvalue(slot->rows, count - 1, 0), sizeof(last));
	*above = (int64_t) be64toh(last);
	return count;
}

static void
relay(Slot *slots, long limit, long interval_ms, bool note)
{
	int			turn = 0;
	int64_t		above = 0;

	while (!stop)
	{
		Slot	   *slot = &slots[turn];
		Slot	   *other = &slots[1 - turn];
		int			count;

		finish_batch(slot);
		count = start_batch(slot, &above, note);
		if (count == limit)
		{
			/* there is more: let this one be acknowledged meanwhile */
			turn = 1 - turn;
			continue;
		}
		above = 0;
		if ((count > 0 || other->rows != NULL) &&
			rd_kafka_flush(rk, FLUSH_TIMEOUT_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
			die("not everything was acknowledged within %d s", FLUSH_TIMEOUT_MS / 1000);
		finish_batch(other);
		finish_batch(slot);
		if (count == 0)
			usleep((useconds_t) interval_ms * 1000);
		turn = 1 - turn;
	}
	for (int i = 0; i < SLOTS; i++)
	{
		finish_batch(&slots[i]);
		while (slots[i].unread > 0)
			PQclear(read_to_sync(&slots[i]));
		PQfinish(slots[i].conn);
	}
}

static void
write_seen(const char *path)
{
	FILE	   *file = fopen(path, "w");

	if (file == NULL)
		die("%s: %s", path, strerror(errno));
	for (size_t i = 0; i < nseen; i++)
		fprintf(file, "%s\t%u\n", seen[i].event_id, seen[i].xid);
	if (fclose(file) != 0)
		die("%s: %s", path, strerror(errno));
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	struct sigaction action = {.sa_handler = on_sigterm};
	Slot		slots[SLOTS] = {0};
	const char *conninfo = NULL;
	const char *table = NULL;
	const char *path = NULL;
	long		limit = 1000;
	long		interval_ms = 1;
	char		error[512];
	int			option;

	while ((option = getopt(argc, argv, "b:d:q:X:n:i:h:s:o:")) != -1)
	{
		switch (option)
		{
			case 'b':
				set_property_value(conf, "bootstrap.servers", optarg);
				break;
			case 'd':
				conninfo = optarg;
				break;
			case 'q':
				table = optarg;
				break;
			case 'X':
				set_property(conf, optarg);
				break;
			case 'n':
				limit = positive(optarg, "-n");
				break;
			case 'i':
				interval_ms = positive(optarg, "-i");
				break;
			case 'h':
				cloudevents = strcmp(optarg, "cloudevents") == 0;
				break;
			case 's':
				source = optarg;
				break;
			case 'o':
				path = optarg;
				break;
			default:
				return 2;
		}
	}
	if (conninfo == NULL || table == NULL)
		die("give -d and -q");
	sigaction(SIGTERM, &action, NULL);

	rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	for (int i = 0; i < SLOTS; i++)
		open_slot(&slots[i], conninfo, table, limit);
	puts("ready");
	fflush(stdout);
	relay(slots, limit, interval_ms, path != NULL);
	if (path != NULL)
		write_seen(path);

	for (int i = 0; i < ntopics; i++)
		rd_kafka_topic_destroy(topics[i]);
	rd_kafka_destroy(rk);
	return 0;
}
