/*
 * consumer.c
 *	  The benchmark's witness: what is in a topic, and when it arrives.
 *
 *		consumer -b BROKERS -t TOPIC [-X NAME=VALUE]...
 *		consumer -b BROKERS -t TOPIC [-X NAME=VALUE]... [-i HEADER] -f FILE
 *
 * The first form reads the topic from its beginning to where it ends now, and
 * prints one line of name=value pairs: the number of records, the first and
 * the last timestamp (milliseconds; the time of appending if the topic says
 * so), and two digests of what a reader sees (partition, key, value, headers,
 * and the timestamp unless the broker gave it): "digest" whatever the order,
 * "order" with the order in each partition. Two topics with equal digests hold
 * the same records.
 *
 * The second form reads from the end on. It prints "ready" when it knows where
 * the end is, notes the time at which each record comes into its hands, and at
 * SIGTERM reads on to the end of the topic and writes one line
 * "event id<TAB>nanoseconds" for each record. The event id is in the header
 * ce_id, or in another one named by -i.
 *
 * With -V it only prints librdkafka's version.
 *
 * Partitions are assigned with explicit offsets; no group is involved. Only
 * what is committed is read (librdkafka's default). The marker that ends a
 * transaction takes an offset and is no record, so the end of a partition is
 * known by its event.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

#define BROKER_TIMEOUT_MS 10000
#define STALL_TIMEOUT_MS 30000
#define BATCH 10000
#define UUID_LENGTH 36

typedef struct Receipt
{
	char		event_id[UUID_LENGTH];
	int64_t		received_ns;
} Receipt;

typedef struct ReceiptList
{
	Receipt    *receipts;
	size_t		count;
	size_t		space;
} ReceiptList;

typedef struct Partition
{
	int64_t		position;		/* offset of the next record */
	int64_t		end;
	uint64_t	order;
} Partition;

static volatile sig_atomic_t stop = 0;

static void
on_sigterm(int signal_number)
{
	(void) signal_number;
	stop = 1;
}

static uint64_t
hash_bytes(uint64_t hash, const void *bytes, size_t length)
{
	const unsigned char *p = bytes;

	/* the length first, so that moving a byte to the next field shows */
	hash = (hash ^ length) * UINT64_C(0x100000001b3);
	for (size_t i = 0; i < length; i++)
		hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
	return hash;
}

static uint64_t
hash_record(const rd_kafka_message_t *message, int64_t timestamp)
{
	uint64_t	hash = UINT64_C(0xcbf29ce484222325);
	rd_kafka_headers_t *headers;

	hash = hash_bytes(hash, &message->partition, sizeof(message->partition));
	hash = hash_bytes(hash, &timestamp, sizeof(timestamp));
	hash = hash_bytes(hash, message->key, message->key_len);
	hash = hash_bytes(hash, message->payload, message->len);
	if (rd_kafka_message_headers(message, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		const char *name;
		const void *value;
		size_t		length;

		for (size_t i = 0; rd_kafka_header_get_all(headers, i, &name, &value, &length) ==
			 RD_KAFKA_RESP_ERR_NO_ERROR; i++)
		{
			hash = hash_bytes(hash, name, strlen(name));
			hash = hash_bytes(hash, value, length);
		}
	}
	/* spread the high bits: the sum of these must not cancel out */
	hash ^= hash >> 29;
	return hash * UINT64_C(0xbf58476d1ce4e5b9);
}

/* A topic that was just created may have no leader for a moment. */
static void
query_watermarks(rd_kafka_t *rk, const char *topic, int partition, int64_t *low, int64_t *high)
{
	int64_t		deadline = now_ns() + BROKER_TIMEOUT_MS * INT64_C(1000000);
	rd_kafka_resp_err_t err;

	while ((err = rd_kafka_query_watermark_offsets(rk, topic, partition, low, high,
												   BROKER_TIMEOUT_MS)) != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		if (now_ns() > deadline)
			die("offsets of %s [%d]: %s", topic, partition, rd_kafka_err2str(err));
		usleep(20000);
	}
}

static void
query_ends(rd_kafka_t *rk, const char *topic, Partition *partitions, int count, bool from_start)
{
	for (int i = 0; i < count; i++)
	{
		int64_t		low;

		query_watermarks(rk, topic, i, &low, &partitions[i].end);
		if (from_start)
			partitions[i].position = low;
	}
}

static bool
at_end(const Partition *partitions, int count)
{
	for (int i = 0; i < count; i++)
		if (partitions[i].position < partitions[i].end)
			return false;
	return true;
}

static void
assign(rd_kafka_t *rk, const char *topic, const Partition *partitions, int count)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);
	rd_kafka_resp_err_t err;

	for (int i = 0; i < count; i++)
		rd_kafka_topic_partition_list_add(list, topic, i)->offset = partitions[i].position;
	err = rd_kafka_assign(rk, list);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("assign: %s", rd_kafka_err2str(err));
	rd_kafka_topic_partition_list_destroy(list);
}

/*
 * Note how far a partition is read. Returns false if this is no record but the
 * news that there are no more for now.
 */
static bool
is_record(const rd_kafka_message_t *message, Partition *partitions)
{
	if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
	{
		partitions[message->partition].position = message->offset;
		return false;
	}
	if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("%s [%d]: %s", message->rkt != NULL ? rd_kafka_topic_name(message->rkt) : "?",
			message->partition, rd_kafka_message_errstr(message));
	partitions[message->partition].position = message->offset + 1;
	return true;
}

static void
summarize(rd_kafka_t *rk, const char *topic, Partition *partitions, int count)
{
	rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(rk);
	rd_kafka_message_t **messages = xmalloc(BATCH * sizeof(*messages));
	long		records = 0;
	int64_t		first = INT64_MAX;
	int64_t		last = INT64_MIN;
	uint64_t	digest = 0;
	uint64_t	order = 0;
	rd_kafka_timestamp_type_t type = RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
	int64_t		last_progress = now_ns();

	while (!at_end(partitions, count))
	{
		ssize_t		got = rd_kafka_consume_batch_queue(queue, 100, messages, BATCH);

		if (got > 0)
			last_progress = now_ns();
		else if (now_ns() - last_progress > STALL_TIMEOUT_MS * INT64_C(1000000))
			die("no record of %s for %d s", topic, STALL_TIMEOUT_MS / 1000);
		for (ssize_t i = 0; i < got; i++)
		{
			rd_kafka_message_t *message = messages[i];
			Partition  *partition;
			int64_t		timestamp;
			uint64_t	hash;

			if (!is_record(message, partitions))
			{
				rd_kafka_message_destroy(message);
				continue;
			}
			partition = &partitions[message->partition];
			timestamp = rd_kafka_message_timestamp(message, &type);
			hash = hash_record(message,
							   type == RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME ? 0 : timestamp);
			if (timestamp < first)
				first = timestamp;
			if (timestamp > last)
				last = timestamp;
			digest += hash;
			partition->order = partition->order * UINT64_C(0x9E3779B97F4A7C15) + hash;
			records++;
			rd_kafka_message_destroy(message);
		}
	}
	for (int i = 0; i < count; i++)
		order += partitions[i].order;
	printf("records=%ld first_ms=%" PRId64 " last_ms=%" PRId64 " digest=%016" PRIx64
		   " order=%016" PRIx64 "\n", records, records > 0 ? first : 0, records > 0 ? last : 0,
		   digest, order);
	free(messages);
	rd_kafka_queue_destroy(queue);
}

static void
note_receipt(ReceiptList *list, const rd_kafka_message_t *message, const char *id_header,
			 int64_t received_ns)
{
	rd_kafka_headers_t *headers;
	const void *value;
	size_t		length;

	if (rd_kafka_message_headers(message, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR ||
		rd_kafka_header_get_last(headers, id_header, &value, &length) != RD_KAFKA_RESP_ERR_NO_ERROR ||
		length != UUID_LENGTH)
		die("a record without an event id in the header %s", id_header);
	if (list->count == list->space)
	{
		list->space = list->space == 0 ? 65536 : list->space * 2;
		list->receipts = xrealloc(list->receipts, list->space * sizeof(Receipt));
	}
	memcpy(list->receipts[list->count].event_id, value, UUID_LENGTH);
	list->receipts[list->count].received_ns = received_ns;
	list->count++;
}

static void
follow(rd_kafka_t *rk, const char *topic, Partition *partitions, int count, const char *id_header,
	   const char *path)
{
	ReceiptList list = {0};
	bool		stopping = false;
	int64_t		stopped_at = 0;
	FILE	   *file = fopen(path, "w");

	if (file == NULL)
		die("%s: %s", path, strerror(errno));
	puts("ready");
	fflush(stdout);
	while (!stopping || !at_end(partitions, count))
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(rk, 100);

		if (message != NULL)
		{
			int64_t		received_ns = now_ns();

			if (is_record(message, partitions))
				note_receipt(&list, message, id_header, received_ns);
			rd_kafka_message_destroy(message);
		}
		if (stop && !stopping)
		{
			stopping = true;
			stopped_at = now_ns();
			query_ends(rk, topic, partitions, count, false);
		}
		if (stopping && now_ns() - stopped_at > STALL_TIMEOUT_MS * INT64_C(1000000))
			die("the end of %s did not come within %d s", topic, STALL_TIMEOUT_MS / 1000);
	}
	for (size_t i = 0; i < list.count; i++)
		fprintf(file, "%.*s\t%" PRId64 "\n", UUID_LENGTH, list.receipts[i].event_id,
				list.receipts[i].received_ns);
	if (fclose(file) != 0)
		die("%s: %s", path, strerror(errno));
	printf("records=%zu\n", list.count);
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	Partition  *partitions;
	struct sigaction action = {.sa_handler = on_sigterm};
	const char *topic = NULL;
	const char *path = NULL;
	const char *id_header = "ce_id";
	char		error[512];
	int			count;
	int			option;

	set_property_value(conf, "group.id", "outbox_kafka_bench");
	set_property_value(conf, "enable.auto.commit", "false");
	set_property_value(conf, "enable.auto.offset.store", "false");
	set_property_value(conf, "enable.partition.eof", "true");
	while ((option = getopt(argc, argv, "b:t:X:f:i:V")) != -1)
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
			case 'f':
				path = optarg;
				break;
			case 'i':
				id_header = optarg;
				break;
			case 'V':
				puts(rd_kafka_version_str());
				return 0;
			default:
				return 2;
		}
	}
	if (topic == NULL)
		die("give -t");
	sigaction(SIGTERM, &action, NULL);

	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	rd_kafka_poll_set_consumer(rk);
	count = partition_count(rk, topic);
	partitions = calloc(count, sizeof(Partition));
	if (partitions == NULL)
		die("out of memory");
	query_ends(rk, topic, partitions, count, true);
	if (path != NULL)
		for (int i = 0; i < count; i++)
			partitions[i].position = partitions[i].end;
	assign(rk, topic, partitions, count);

	if (path != NULL)
		follow(rk, topic, partitions, count, id_header, path);
	else
		summarize(rk, topic, partitions, count);

	rd_kafka_consumer_close(rk);
	rd_kafka_destroy(rk);
	free(partitions);
	return 0;
}
