/*
 * kafka_consumer.c
 *	  The consumer: a thin layer over librdkafka's.
 *
 * What is said in kafka.c of threads, the descriptor and memory holds here.
 *
 * Which partitions are read, and from where, is for the caller to say: there is
 * no subscription and no rebalance. Each partition is started on a queue of its
 * own (the simple consumer), for three reasons. A partition whose message cannot
 * be handled for a while is left alone without a call: librdkafka stops fetching
 * for it once its queue is full, and the others go on. Reading from somewhere
 * else is a new queue, so nothing that was read before can turn up among what
 * comes after. And the alternative is not to be relied on: with all partitions
 * in one queue that is read in bulk, rd_kafka_pause_partitions() and seeking can
 * pass over messages in librdkafka before 2.1 (its pull request 4208).
 *
 * The group's name serves to mirror positions only; librdkafka itself knows of no
 * group and commits nothing.
 */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kafka_client.h"
#include "kafka_conf_consumer.h"
#include "kafka_consumer.h"
#include "kafka_error.h"
#include "kafka_resolve.h"
#include "kafka_wake.h"

#define TAKE_AT_ONCE 1024
#define EVENTS_AT_ONCE 1000

/* The request to store positions for lag tools is given up after so long. */
#define MIRROR_MS 3000

struct KafkaPartition
{
	KafkaPartition *next;
	KafkaConsumer *consumer;
	rd_kafka_topic_t *topic;
	rd_kafka_queue_t *queue;
	int			number;
};

struct KafkaConsumer
{
	pid_t		owner;			/* threads do not follow a fork */
	rd_kafka_t *rk;
	rd_kafka_queue_t *events;	/* errors and log lines */
	KafkaWake	wake;
	bool		ending;			/* see kafka_resolve_leave() */
	char	   *cluster;		/* librdkafka's, once it is known */
	char	   *group;
	KafkaPartition *partitions;
};

/* ----------
 * Life
 * ----------
 */

#if RD_KAFKA_VERSION >= 0x020000ff
/* Callback: find a broker's address, or free one. In librdkafka's threads. */
static int
look_up(const char *node, const char *service, const struct addrinfo *hints,
		struct addrinfo **result, void *arg)
{
	KafkaConsumer *consumer = arg;

	if (node == NULL)
	{
		freeaddrinfo(*result);
		return 0;
	}
	return kafka_resolve(node, service, hints, result, &consumer->ending);
}
#endif

static KafkaConsumer *
fail(KafkaConsumer *consumer, KafkaError *error, rd_kafka_resp_err_t code,
	 const char *reason)
{
	kafka_fill_error(error, KAFKA_ERROR_CLIENT, code, reason);
	if (consumer != NULL)
	{
		kafka_wake_close(&consumer->wake);
		free(consumer->group);
		free(consumer);
	}
	return NULL;
}

KafkaConsumer *
kafka_consumer_create(const KafkaConsumerConfig *config, KafkaError *error)
{
	KafkaConsumer *consumer;
	rd_kafka_conf_t *conf;
	rd_kafka_error_t *sasl_error;
	uint64_t	one = 1;
	char		reason[KAFKA_ERROR_LENGTH];

	if (config->bootstrap_servers[0] == '\0')
		return fail(NULL, error, RD_KAFKA_RESP_ERR__INVALID_ARG,
					"no bootstrap servers are set");
	consumer = calloc(1, sizeof(KafkaConsumer));
	if (consumer == NULL)
		return fail(NULL, error, RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, "out of memory");
	consumer->owner = getpid();
	consumer->group = strdup(config->group_id);
	if (consumer->group == NULL)
	{
		free(consumer);
		return fail(NULL, error, RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, "out of memory");
	}
	consumer->wake.fd = -1;
	consumer->wake.write_fd = -1;
	if (!kafka_wake_open(&consumer->wake))
	{
		snprintf(reason, sizeof(reason), "could not make a descriptor to wait on: %s",
				 strerror(errno));
		return fail(consumer, error, RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, reason);
	}

	conf = kafka_conf_build_consumer(config, reason, sizeof(reason));
	if (conf == NULL)
		return fail(consumer, error, RD_KAFKA_RESP_ERR__INVALID_ARG, reason);
#if RD_KAFKA_VERSION >= 0x020000ff
	rd_kafka_conf_set_opaque(conf, consumer);
	rd_kafka_conf_set_resolve_cb(conf, look_up);
#endif
	rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_ERROR | RD_KAFKA_EVENT_LOG);
	consumer->rk = kafka_client_start(RD_KAFKA_CONSUMER, conf, NULL, NULL,
									  reason, sizeof(reason));
	if (consumer->rk == NULL)
		return fail(consumer, error, rd_kafka_last_error(), reason);

	consumer->events = rd_kafka_queue_get_main(consumer->rk);
	rd_kafka_set_log_queue(consumer->rk, NULL);
	rd_kafka_queue_io_event_enable(consumer->events, consumer->wake.write_fd,
								   &one, sizeof(one));
	/* what came before that was not announced */
	kafka_wake_set(&consumer->wake);

	/* tokens are fetched over the network: never in the caller's thread */
	sasl_error = rd_kafka_sasl_background_callbacks_enable(consumer->rk);
	if (sasl_error != NULL)
		rd_kafka_error_destroy(sasl_error); /* no OAUTHBEARER, no queue for it */
	return consumer;
}

void
kafka_consumer_destroy(KafkaConsumer *consumer)
{
	if (consumer == NULL || consumer->owner != getpid())
		return;

	kafka_resolve_leave(&consumer->ending);
	while (consumer->partitions != NULL)
		kafka_partition_stop(consumer->partitions);
	rd_kafka_queue_io_event_enable(consumer->events, -1, NULL, 0);
	rd_kafka_queue_destroy(consumer->events);
	if (consumer->cluster != NULL)
		rd_kafka_mem_free(consumer->rk, consumer->cluster);
	rd_kafka_destroy_flags(consumer->rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	kafka_wake_close(&consumer->wake);
	free(consumer->group);
	free(consumer);
}

/* ----------
 * Events
 * ----------
 */

int
kafka_consumer_fd(const KafkaConsumer *consumer)
{
	return consumer->wake.fd;
}

void
kafka_consumer_wake(const KafkaConsumer *consumer)
{
	kafka_wake_set(&consumer->wake);
}

/*
 * The file of properties is for producers as well: that some are not a
 * consumer's is nothing to warn of; nor is a property that only the simple
 * consumer has, which this one is.
 */
static void
serve_log(rd_kafka_event_t *event, const KafkaEventHandlers *handlers, void *arg)
{
	const char *facility;
	const char *text;
	char		line[KAFKA_ERROR_LENGTH];
	int			level;

	if (rd_kafka_event_log(event, &facility, &text, &level) != 0 ||
		strstr(text, "is a producer property") != NULL ||
		strstr(text, "auto.commit.enable is deprecated") != NULL)
		return;
	kafka_copy_text(line, sizeof(line), text);
	handlers->log(arg, level, line);
}

void
kafka_consumer_serve(KafkaConsumer *consumer, const KafkaEventHandlers *handlers,
					 void *arg)
{
	rd_kafka_event_t *event;
	int			served = 0;

	kafka_wake_clear(&consumer->wake);
	while (served++ < EVENTS_AT_ONCE &&
		   (event = rd_kafka_queue_poll(consumer->events, 0)) != NULL)
	{
		if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_ERROR)
		{
			rd_kafka_resp_err_t code = rd_kafka_event_error(event);
			KafkaError	error;

			kafka_fill_error(&error, kafka_classify(code, FROM_EVENT), code,
							 rd_kafka_event_error_string(event));
			handlers->error(arg, &error);
		}
		else if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_LOG)
			serve_log(event, handlers, arg);
		rd_kafka_event_destroy(event);
	}
	if (served > EVENTS_AT_ONCE)
		kafka_wake_set(&consumer->wake);
}

/* ----------
 * Questions
 * ----------
 */

const char *
kafka_consumer_cluster(KafkaConsumer *consumer, int timeout_ms)
{
	if (consumer->cluster == NULL)
		consumer->cluster = rd_kafka_clusterid(consumer->rk, timeout_ms);
	return consumer->cluster;
}

/*
 * What to make of a broker's answer about a topic: one that is being created
 * or has no leader at the moment is a matter of time.
 */
static void
describe(const rd_kafka_metadata_topic_t *found, KafkaTopicInfo *info)
{
	rd_kafka_resp_err_t code = found->err;

	info->name = found->topic;
	info->partitions = (code == RD_KAFKA_RESP_ERR_NO_ERROR) ? found->partition_cnt : 0;
	if (code == RD_KAFKA_RESP_ERR_NO_ERROR && found->partition_cnt == 0)
		code = RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE;
	kafka_fill_error(&info->error, kafka_classify(code, FROM_METADATA), code, NULL);
}

bool
kafka_consumer_topics(KafkaConsumer *consumer, const char *topic, int timeout_ms,
					  void (*found) (void *arg, const KafkaTopicInfo *info),
					  void *arg, KafkaError *error)
{
	const struct rd_kafka_metadata *metadata;
	rd_kafka_topic_t *rkt = NULL;
	rd_kafka_resp_err_t code;

	if (topic != NULL)
	{
		rkt = rd_kafka_topic_new(consumer->rk, topic, NULL);
		if (rkt == NULL)
		{
			code = rd_kafka_last_error();
			kafka_fill_error(error, KAFKA_ERROR_TOPIC, code, NULL);
			return false;
		}
	}
	code = rd_kafka_metadata(consumer->rk, topic == NULL, rkt, &metadata, timeout_ms);
	if (rkt != NULL)
		rd_kafka_topic_destroy(rkt);
	if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		kafka_fill_error(error, KAFKA_ERROR_RETRY, code, NULL);
		return false;
	}
	for (int i = 0; i < metadata->topic_cnt; i++)
	{
		KafkaTopicInfo info;

		describe(&metadata->topics[i], &info);
		found(arg, &info);
	}
	rd_kafka_metadata_destroy(metadata);
	return true;
}

bool
kafka_consumer_watermarks(KafkaConsumer *consumer, const char *topic, int partition,
						  int64_t *low, int64_t *high, int timeout_ms,
						  KafkaError *error)
{
	rd_kafka_resp_err_t code = rd_kafka_query_watermark_offsets(consumer->rk, topic, partition,
																low, high, timeout_ms);

	kafka_fill_error(error, kafka_classify(code, FROM_METADATA), code, NULL);
	return code == RD_KAFKA_RESP_ERR_NO_ERROR;
}

/*
 * The end is asked for first: a message that is written in between is then
 * behind it, and is read if nothing was young enough before.
 */
bool
kafka_consumer_offset_at(KafkaConsumer *consumer, const char *topic, int partition,
						 int64_t time_ms, int64_t *offset, int timeout_ms,
						 KafkaError *error)
{
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_resp_err_t code;
	int64_t		low;
	int64_t		end;

	if (!kafka_consumer_watermarks(consumer, topic, partition, &low, &end, timeout_ms, error))
		return false;
	list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_list_add(list, topic, partition)->offset = time_ms;
	code = rd_kafka_offsets_for_times(consumer->rk, list, timeout_ms);
	if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
		code = list->elems[0].err;
	*offset = list->elems[0].offset < 0 ? end : list->elems[0].offset;
	rd_kafka_topic_partition_list_destroy(list);
	kafka_fill_error(error, kafka_classify(code, FROM_METADATA), code, NULL);
	return code == RD_KAFKA_RESP_ERR_NO_ERROR;
}

/*
 * By the administrative request where there is one: a client that ends does not
 * wait for its answer, while it waits for that of an ordinary commit, which takes
 * long where no broker is.
 */
void
kafka_consumer_mirror(KafkaConsumer *consumer, const KafkaPosition *positions, int count)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);
#if RD_KAFKA_VERSION >= 0x020000ff
	rd_kafka_AlterConsumerGroupOffsets_t *request;
	rd_kafka_AdminOptions_t *options;
	char		ignored[128];
#endif

	for (int i = 0; i < count; i++)
		rd_kafka_topic_partition_list_add(list, positions[i].topic,
										  positions[i].partition)->offset = positions[i].offset;
#if RD_KAFKA_VERSION >= 0x020000ff
	options = rd_kafka_AdminOptions_new(consumer->rk, RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS);
	rd_kafka_AdminOptions_set_request_timeout(options, MIRROR_MS, ignored, sizeof(ignored));
	request = rd_kafka_AlterConsumerGroupOffsets_new(consumer->group, list);
	rd_kafka_AlterConsumerGroupOffsets(consumer->rk, &request, 1, options, consumer->events);
	rd_kafka_AlterConsumerGroupOffsets_destroy(request);
	rd_kafka_AdminOptions_destroy(options);
#else
	(void) rd_kafka_commit(consumer->rk, list, 1);
#endif
	rd_kafka_topic_partition_list_destroy(list);
}

/* ----------
 * Partitions
 * ----------
 */

KafkaPartition *
kafka_partition_start(KafkaConsumer *consumer, const char *topic, int partition,
					  int64_t offset, KafkaError *error)
{
	KafkaPartition *self = calloc(1, sizeof(KafkaPartition));
	uint64_t	one = 1;

	if (self == NULL)
	{
		kafka_fill_error(error, KAFKA_ERROR_CLIENT,
						 RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, "out of memory");
		return NULL;
	}
	self->consumer = consumer;
	self->number = partition;
	self->topic = rd_kafka_topic_new(consumer->rk, topic, NULL);
	if (self->topic == NULL)
	{
		kafka_fill_error(error, KAFKA_ERROR_TOPIC, rd_kafka_last_error(), NULL);
		free(self);
		return NULL;
	}
	self->queue = rd_kafka_queue_new(consumer->rk);
	rd_kafka_queue_io_event_enable(self->queue, consumer->wake.write_fd, &one, sizeof(one));
	if (rd_kafka_consume_start_queue(self->topic, partition, offset, self->queue) != 0)
	{
		kafka_fill_error(error, KAFKA_ERROR_TOPIC, rd_kafka_last_error(), NULL);
		rd_kafka_queue_io_event_enable(self->queue, -1, NULL, 0);
		rd_kafka_queue_destroy(self->queue);
		rd_kafka_topic_destroy(self->topic);
		free(self);
		return NULL;
	}
	self->next = consumer->partitions;
	consumer->partitions = self;
	return self;
}

void
kafka_partition_stop(KafkaPartition *partition)
{
	KafkaPartition **link = &partition->consumer->partitions;

	while (*link != partition)
		link = &(*link)->next;
	*link = partition->next;

	rd_kafka_queue_io_event_enable(partition->queue, -1, NULL, 0);
	rd_kafka_consume_stop(partition->topic, partition->number);
	rd_kafka_queue_destroy(partition->queue);
	rd_kafka_topic_destroy(partition->topic);
	free(partition);
}

static KafkaPartitionError
classify_problem(rd_kafka_resp_err_t code)
{
	switch (code)
	{
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
#if RD_KAFKA_VERSION >= 0x020100ff
		case RD_KAFKA_RESP_ERR__LOG_TRUNCATION:
#endif
			return KAFKA_PARTITION_RANGE;
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
			return KAFKA_PARTITION_MISSING;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			return KAFKA_PARTITION_DENIED;
		default:
			return KAFKA_PARTITION_LATER;
	}
}

static void
fill_item(KafkaItem *item, rd_kafka_message_t *message)
{
	rd_kafka_timestamp_type_t type;

	item->offset = message->offset;
	item->handle = message;
	if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		item->kind = (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) ?
			KAFKA_ITEM_END : KAFKA_ITEM_ERROR;
		if (item->kind == KAFKA_ITEM_ERROR)
			item->problem = classify_problem(message->err);
		return;
	}
	item->kind = KAFKA_ITEM_MESSAGE;
	item->timestamp_ms = rd_kafka_message_timestamp(message, &type);
	if (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE)
		item->timestamp_ms = -1;
	item->key = message->key;
	item->key_length = message->key_len;
	item->value = message->payload;
	item->value_length = message->len;
#if RD_KAFKA_VERSION >= 0x020100ff
	item->leader_epoch = rd_kafka_message_leader_epoch(message);
#else
	item->leader_epoch = -1;
#endif
}

int
kafka_partition_take(KafkaPartition *partition, KafkaItem *items, int max)
{
	rd_kafka_message_t *messages[TAKE_AT_ONCE];
	ssize_t		count;

	count = rd_kafka_consume_batch_queue(partition->queue, 0, messages,
										 (size_t) (max < TAKE_AT_ONCE ? max : TAKE_AT_ONCE));
	if (count < 0)
		return 0;
	for (ssize_t i = 0; i < count; i++)
		fill_item(&items[i], messages[i]);
	return (int) count;
}

int64_t
kafka_partition_end(KafkaPartition *partition)
{
	int64_t		low;
	int64_t		high;

	if (rd_kafka_get_watermark_offsets(partition->consumer->rk,
									   rd_kafka_topic_name(partition->topic),
									   partition->number, &low, &high) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return -1;
	return high;
}

void
kafka_item_free(KafkaItem *item)
{
	if (item->handle != NULL)
		rd_kafka_message_destroy(item->handle);
	item->handle = NULL;
}

void
kafka_item_text(const KafkaItem *item, char *text, size_t size)
{
	kafka_copy_text(text, size, rd_kafka_message_errstr(item->handle));
}

bool
kafka_item_header(const KafkaItem *item, int n, const char **name,
				  const void **value, size_t *length)
{
	rd_kafka_headers_t *headers;

	return rd_kafka_message_headers(item->handle, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR &&
		rd_kafka_header_get_all(headers, (size_t) n, name, value, length) == RD_KAFKA_RESP_ERR_NO_ERROR;
}

void
kafka_item_forget_headers(const KafkaItem *item)
{
	rd_kafka_headers_t *headers;

	if (rd_kafka_message_detach_headers(item->handle, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR)
		rd_kafka_headers_destroy(headers);
}
