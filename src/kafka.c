/*
 * kafka.c
 *	  The producer: a thin layer over librdkafka's.
 *
 * Threads. librdkafka works in threads of its own; everything here but
 * note_link_state() and look_up() runs in the caller's. Reports, errors and log lines are
 * events in one queue, which kafka_producer_serve() empties: no callback of
 * librdkafka's ever reaches the relay, so the relay may raise errors wherever
 * no function of this file is on the stack. All signals are blocked while
 * threads are started (kafka_client.c), so that a signal for the server never
 * runs its handler in one of them.
 *
 * The descriptor. librdkafka writes to it when its queue turns from empty to
 * non-empty, and only then, so a reader that stops half-way would never be
 * woken again. Here the descriptor behaves like a level: it is made readable
 * at the start, and again by whoever leaves something in the queue.
 *
 * Connections. librdkafka has no call that tells whether a broker can be
 * reached: error events tell of losses, and nothing tells that a connection
 * came back while there is nothing to send. Its interceptor for changes of a
 * broker's state does, in librdkafka's threads; note_link_state() therefore
 * touches nothing but a short list under a mutex, an atomic counter and the
 * descriptor. Names of brokers are looked up by kafka_resolve(), which a client
 * that is to end need not wait for.
 *
 * Memory is librdkafka's and malloc's. librdkafka copies keys and values when
 * they are queued, a record costs no allocation of ours.
 */
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kafka.h"
#include "kafka_client.h"
#include "kafka_conf.h"
#include "kafka_error.h"
#include "kafka_headers.h"
#include "kafka_limit.h"
#include "kafka_memory.h"
#include "kafka_producer.h"
#include "kafka_report.h"
#include "kafka_resolve.h"
#include "kafka_wake.h"

#define TOPIC_BUCKETS 256
#define REPORTS_AT_ONCE 256
#define INTERCEPTOR_NAME "outbox_kafka"

/*
 * The tag of a record travels as the message's opaque pointer, and with it
 * whether its headers recur.
 */
#define RECURRING_TAG (UINT64_C(1) << 63)
_Static_assert(sizeof(void *) >= sizeof(uint64_t), "pointers must have 64 bits");

struct KafkaTopic
{
	KafkaTopic *next;			/* in its bucket */
	KafkaProducer *producer;
	rd_kafka_topic_t *rkt;
	KafkaSpareHeaders spare_headers;
	char		name[];
};

/* A broker as librdkafka knows it, by the address it was told. */
typedef struct Link
{
	struct Link *next;
	bool		up;
	int			port;
	char		name[];
} Link;

struct KafkaProducer
{
	pid_t		owner;			/* threads do not follow a fork */
	rd_kafka_t *rk;
	rd_kafka_queue_t *queue;	/* reports, errors and log lines */
	KafkaWake	wake;
	int			outstanding;
	bool		dead;
	KafkaError	death;			/* if dead */
	KafkaTransactions *transactions;	/* NULL: it has none */
	KafkaTopic *topics[TOPIC_BUCKETS];
	int			spare_headers;	/* lists that they keep */

	/* shared with librdkafka's threads */
	pthread_mutex_t links_lock; /* guards links */
	Link	   *links;
	atomic_int	links_up;
	bool		ending;			/* see kafka_resolve_leave() */
};

/* ----------
 * For kafka_transaction.c
 * ----------
 */

rd_kafka_t *
kafka_producer_handle(const KafkaProducer *producer)
{
	return producer->rk;
}

KafkaTransactions *
kafka_producer_transactions(const KafkaProducer *producer)
{
	return producer->transactions;
}

void
kafka_producer_wake(const KafkaProducer *producer)
{
	kafka_wake_set(&producer->wake);
}

void
kafka_producer_discard_events(KafkaProducer *producer, int timeout_ms)
{
	rd_kafka_event_t *event;

	while ((event = rd_kafka_queue_poll(producer->queue, timeout_ms)) != NULL)
	{
		rd_kafka_event_destroy(event);
		timeout_ms = 0;
	}
}

/* ----------
 * Connections
 * ----------
 */

/*
 * Interceptor: a broker's connection changed its state. In librdkafka's
 * threads, with locks of librdkafka held.
 */
static rd_kafka_resp_err_t
note_link_state(rd_kafka_t *rk, int32_t broker_id, const char *secproto,
				const char *name, int port, const char *state, void *arg)
{
	KafkaProducer *producer = arg;
	bool		up = strcmp(state, "UP") == 0 || strcmp(state, "UPDATE") == 0 ||
	strcmp(state, "REAUTH") == 0;
	bool		changed = false;
	Link	   *link;

	(void) rk;
	(void) broker_id;			/* a bootstrap broker gets its number later */
	(void) secproto;

	pthread_mutex_lock(&producer->links_lock);
	for (link = producer->links; link != NULL; link = link->next)
	{
		if (link->port == port && strcmp(link->name, name) == 0)
			break;
	}
	if (link == NULL && up)
	{
		size_t		size = strlen(name) + 1;

		link = malloc(sizeof(Link) + size);
		if (link != NULL)
		{
			link->up = false;
			link->port = port;
			memcpy(link->name, name, size);
			link->next = producer->links;
			producer->links = link;
		}
	}
	if (link != NULL && link->up != up)
	{
		int			before = atomic_fetch_add(&producer->links_up, up ? 1 : -1);

		link->up = up;
		changed = (before + (up ? 1 : -1) == 0 || before == 0);
	}
	pthread_mutex_unlock(&producer->links_lock);

	if (changed)
		kafka_wake_set(&producer->wake);
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* Interceptor: the client is being made; its threads have not started. */
static rd_kafka_resp_err_t
watch_links(rd_kafka_t *rk, const rd_kafka_conf_t *conf, void *arg,
			char *errstr, size_t errstr_size)
{
	(void) conf;
	(void) errstr;
	(void) errstr_size;
	return rd_kafka_interceptor_add_on_broker_state_change(rk, INTERCEPTOR_NAME,
														   note_link_state, arg);
}

static void
register_watch(rd_kafka_conf_t *conf, void *producer)
{
	rd_kafka_conf_interceptor_add_on_new(conf, INTERCEPTOR_NAME, watch_links, producer);
}

#if RD_KAFKA_VERSION >= 0x020000ff
/* Callback: find a broker's address, or free one. In librdkafka's threads. */
static int
look_up(const char *node, const char *service, const struct addrinfo *hints,
		struct addrinfo **result, void *arg)
{
	KafkaProducer *producer = arg;

	if (node == NULL)
	{
		freeaddrinfo(*result);
		return 0;
	}
	return kafka_resolve(node, service, hints, result, &producer->ending);
}
#endif

bool
kafka_producer_is_connected(const KafkaProducer *producer)
{
	return atomic_load(&producer->links_up) > 0;
}

/* ----------
 * Life
 * ----------
 */

/* Free a producer whose librdkafka part is gone or never came to be. */
static void
free_producer(KafkaProducer *producer)
{
	while (producer->links != NULL)
	{
		Link	   *next = producer->links->next;

		free(producer->links);
		producer->links = next;
	}
	pthread_mutex_destroy(&producer->links_lock);
	kafka_wake_close(&producer->wake);
	free(producer);
}

KafkaProducer *
kafka_producer_create(const KafkaProducerConfig *config, KafkaError *error)
{
	KafkaProducer *producer;
	rd_kafka_conf_t *conf;
	rd_kafka_conf_t *copy = NULL;	/* for kafka_transaction.c */
	rd_kafka_error_t *sasl_error;
	uint64_t	one = 1;
	char		reason[KAFKA_ERROR_LENGTH];

	if (config->bootstrap_servers[0] == '\0')
	{
		kafka_fill_error(error, KAFKA_ERROR_CLIENT, RD_KAFKA_RESP_ERR__INVALID_ARG,
						 "no bootstrap servers are set");
		return NULL;
	}

	kafka_memory_keep();
	producer = calloc(1, sizeof(KafkaProducer));
	if (producer == NULL)
	{
		kafka_fill_error(error, KAFKA_ERROR_CLIENT,
						 RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, "out of memory");
		return NULL;
	}
	producer->owner = getpid();
	producer->wake.fd = -1;
	producer->wake.write_fd = -1;
	pthread_mutex_init(&producer->links_lock, NULL);

	if (!kafka_wake_open(&producer->wake))
	{
		snprintf(reason, sizeof(reason), "could not make a descriptor to wait on: %s",
				 strerror(errno));
		kafka_fill_error(error, KAFKA_ERROR_CLIENT,
						 RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, reason);
		free_producer(producer);
		return NULL;
	}

	conf = kafka_conf_build(config, reason, sizeof(reason));
	if (conf == NULL)
	{
		kafka_fill_error(error, KAFKA_ERROR_CLIENT, RD_KAFKA_RESP_ERR__INVALID_ARG, reason);
		free_producer(producer);
		return NULL;
	}
#if RD_KAFKA_VERSION >= 0x020000ff
	rd_kafka_conf_set_opaque(conf, producer);
	rd_kafka_conf_set_resolve_cb(conf, look_up);
#endif
	if (config->transactional_id != NULL)
		copy = rd_kafka_conf_dup(conf);
	rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR |
							 RD_KAFKA_EVENT_LOG);

	producer->rk = kafka_client_start(RD_KAFKA_PRODUCER, conf, register_watch, producer,
									  reason, sizeof(reason));
	if (producer->rk == NULL)
	{
		kafka_fill_error(error, KAFKA_ERROR_CLIENT, rd_kafka_last_error(), reason);
		if (copy != NULL)
			rd_kafka_conf_destroy(copy);
		free_producer(producer);
		return NULL;
	}

	producer->queue = rd_kafka_queue_get_main(producer->rk);
	rd_kafka_set_log_queue(producer->rk, NULL);
	rd_kafka_queue_io_event_enable(producer->queue, producer->wake.write_fd,
								   &one, sizeof(one));
	/* what came before that was not announced */
	kafka_wake_set(&producer->wake);

	/* tokens are fetched over the network: never in the caller's thread */
	sasl_error = rd_kafka_sasl_background_callbacks_enable(producer->rk);
	if (sasl_error != NULL)
		rd_kafka_error_destroy(sasl_error); /* no OAUTHBEARER, no queue for it */

	if (config->transactional_id != NULL)
	{
		producer->transactions = kafka_transactions_create(producer, config->transactional_id, copy);
		if (producer->transactions == NULL)
		{
			kafka_fill_error(error, KAFKA_ERROR_CLIENT,
							 RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE,
							 "could not start a thread for transactions");
			kafka_producer_destroy(producer);
			return NULL;
		}
	}
	return producer;
}

void
kafka_producer_destroy(KafkaProducer *producer)
{
	if (producer == NULL || producer->owner != getpid())
		return;

	kafka_resolve_leave(&producer->ending);
	if (producer->transactions != NULL)
		kafka_transactions_end(producer->transactions);
	rd_kafka_queue_io_event_enable(producer->queue, -1, NULL, 0);
	rd_kafka_purge(producer->rk, RD_KAFKA_PURGE_F_QUEUE |
				   RD_KAFKA_PURGE_F_INFLIGHT | RD_KAFKA_PURGE_F_NON_BLOCKING);
	for (int i = 0; i < TOPIC_BUCKETS; i++)
	{
		while (producer->topics[i] != NULL)
		{
			KafkaTopic *next = producer->topics[i]->next;

			rd_kafka_topic_destroy(producer->topics[i]->rkt);
			kafka_headers_free_spare(&producer->topics[i]->spare_headers);
			free(producer->topics[i]);
			producer->topics[i] = next;
		}
	}
	rd_kafka_queue_destroy(producer->queue);
	rd_kafka_destroy(producer->rk);
	free_producer(producer);
	kafka_memory_release();
}

/* Nothing more can come of this producer; the first reason stays. */
static void
mark_dead(KafkaProducer *producer, rd_kafka_resp_err_t code, const char *message)
{
	if (producer->dead)
		return;
	producer->dead = true;
	kafka_fill_error(&producer->death, KAFKA_ERROR_CLIENT, code, message);
}

static void
check_fatal(KafkaProducer *producer)
{
	char		message[KAFKA_ERROR_LENGTH];
	rd_kafka_resp_err_t code;

	if (producer->dead)
		return;
	code = rd_kafka_fatal_error(producer->rk, message, sizeof(message));
	if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
		mark_dead(producer, code, message);
}

bool
kafka_producer_is_dead(const KafkaProducer *producer, KafkaError *error)
{
	if (producer->dead && error != NULL)
		*error = producer->death;
	return producer->dead;
}

void
kafka_producer_purge(KafkaProducer *producer, bool in_flight)
{
	rd_kafka_purge(producer->rk, RD_KAFKA_PURGE_F_QUEUE |
				   (in_flight ? RD_KAFKA_PURGE_F_INFLIGHT : 0) |
				   RD_KAFKA_PURGE_F_NON_BLOCKING);
}

int
kafka_producer_outstanding(const KafkaProducer *producer)
{
	return producer->outstanding;
}

/* ----------
 * Events
 * ----------
 */

int
kafka_producer_fd(const KafkaProducer *producer)
{
	return producer->wake.fd;
}

static void
serve_reports(KafkaProducer *producer, rd_kafka_event_t *event,
			  const KafkaEventHandlers *handlers, void *arg)
{
	const rd_kafka_message_t *messages[REPORTS_AT_ONCE];
	size_t		count;

	while ((count = rd_kafka_event_message_array(event, messages, REPORTS_AT_ONCE)) > 0)
	{
		producer->outstanding -= (int) count;
		for (size_t i = 0; i < count; i++)
		{
			KafkaDelivery delivery;

			kafka_report_read(messages[i], &delivery);
			if (delivery.tag & RECURRING_TAG)
			{
				/* NULL for the topic that kafka_transaction.c asks about */
				KafkaTopic *topic = rd_kafka_topic_opaque(messages[i]->rkt);

				delivery.tag &= ~RECURRING_TAG;
				if (topic != NULL && delivery.class == KAFKA_ERROR_NONE)
					kafka_headers_take_back(&topic->spare_headers, messages[i]);
			}
			handlers->delivered(arg, &delivery);
		}
	}
}

static void
serve_error(KafkaProducer *producer, rd_kafka_event_t *event,
			const KafkaEventHandlers *handlers, void *arg)
{
	rd_kafka_resp_err_t code = rd_kafka_event_error(event);
	KafkaError	error;

	/* says less than the error before it, and than the connection's state */
	if (code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
		return;

	kafka_fill_error(&error, kafka_classify(code, FROM_EVENT), code,
					 rd_kafka_event_error_string(event));
	if (code == RD_KAFKA_RESP_ERR__FATAL || rd_kafka_event_error_is_fatal(event))
	{
		/* the event's code is only "fatal": the cause is asked for */
		check_fatal(producer);
		if (producer->dead)
			error = producer->death;
	}
	else if (error.class == KAFKA_ERROR_CLIENT)
	{
		/* one broker's refusal matters once no other one is left */
		if (kafka_producer_is_connected(producer))
			error.class = KAFKA_ERROR_RETRY;
		else
			mark_dead(producer, code, error.message);
	}
	handlers->error(arg, &error);
}

/*
 * librdkafka warns at each start that enable.gapless.guarantee is experimental;
 * there is nothing an administrator could do about it.
 */
static void
serve_log(rd_kafka_event_t *event, const KafkaEventHandlers *handlers, void *arg)
{
	const char *facility;
	const char *text;
	char		line[KAFKA_ERROR_LENGTH];
	char		topic[256];
	int			level;

	if (rd_kafka_event_log(event, &facility, &text, &level) != 0 ||
		strstr(text, "enable.gapless.guarantee is experimental") != NULL)
		return;
	kafka_copy_text(line, sizeof(line), text);
	handlers->log(arg, level, line);
	if (handlers->forbidden != NULL && kafka_error_forbids(facility, line, topic, sizeof(topic)))
		handlers->forbidden(arg, topic, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
}

int
kafka_producer_serve(KafkaProducer *producer, const KafkaEventHandlers *handlers,
					 void *arg, int max_events)
{
	rd_kafka_event_t *event;
	int			served = 0;

	kafka_wake_clear(&producer->wake);
	while (served < max_events &&
		   (event = rd_kafka_queue_poll(producer->queue, 0)) != NULL)
	{
		switch (rd_kafka_event_type(event))
		{
			case RD_KAFKA_EVENT_DR:
				serve_reports(producer, event, handlers, arg);
				break;
			case RD_KAFKA_EVENT_ERROR:
				serve_error(producer, event, handlers, arg);
				break;
			case RD_KAFKA_EVENT_LOG:
				serve_log(event, handlers, arg);
				break;
			case RD_KAFKA_EVENT_DESCRIBECONFIGS_RESULT:
				kafka_limit_serve(event, handlers, arg);
				break;
			default:
				break;
		}
		rd_kafka_event_destroy(event);
		served++;
	}
	if (served == max_events)
		kafka_wake_set(&producer->wake);
	return served;
}

/* ----------
 * Topics
 * ----------
 */

static unsigned int
topic_bucket(const char *name)
{
	uint32_t	hash = 2166136261u; /* FNV-1a */

	for (; *name != '\0'; name++)
		hash = (hash ^ (unsigned char) *name) * 16777619u;
	return hash % TOPIC_BUCKETS;
}

KafkaTopic *
kafka_topic(KafkaProducer *producer, const char *name)
{
	KafkaTopic **bucket = &producer->topics[topic_bucket(name)];
	KafkaTopic *topic;
	rd_kafka_topic_conf_t *conf;
	size_t		size = strlen(name) + 1;

	for (topic = *bucket; topic != NULL; topic = topic->next)
	{
		if (strcmp(topic->name, name) == 0)
			return topic;
	}

	topic = calloc(1, sizeof(KafkaTopic) + size);
	if (topic == NULL)
		return NULL;
	conf = rd_kafka_default_topic_conf_dup(producer->rk);
	rd_kafka_topic_conf_set_opaque(conf, topic);
	topic->rkt = rd_kafka_topic_new(producer->rk, name, conf);
	if (topic->rkt == NULL)
	{
		free(topic);			/* conf is gone, too */
		return NULL;
	}
	topic->producer = producer;
	topic->spare_headers.total = &producer->spare_headers;
	memcpy(topic->name, name, size);
	topic->next = *bucket;
	*bucket = topic;
	return topic;
}

rd_kafka_topic_t *
kafka_topic_handle(const KafkaTopic *topic)
{
	return topic->rkt;
}

KafkaProducer *
kafka_topic_producer(const KafkaTopic *topic)
{
	return topic->producer;
}

KafkaSpareHeaders *
kafka_topic_spare_headers(KafkaTopic *topic)
{
	return &topic->spare_headers;
}

void
kafka_producer_ask_limits(KafkaProducer *producer, const char *const *topics, int count)
{
	kafka_limit_ask(producer->rk, producer->queue, topics, count);
}

void
kafka_producer_batching(const KafkaProducer *producer, int *batch_size, bool *compresses)
{
	kafka_conf_batching(rd_kafka_conf(producer->rk), batch_size, compresses);
}

/* ----------
 * Records
 * ----------
 */

KafkaErrorClass
kafka_produce(KafkaProducer *producer, const KafkaRecord *record, KafkaError *error)
{
	rd_kafka_vu_t fields[8];
	size_t		count = 0;
	rd_kafka_error_t *failure;
	rd_kafka_resp_err_t code;

	fields[count].vtype = RD_KAFKA_VTYPE_RKT;
	fields[count++].u.rkt = record->topic->rkt;
	fields[count].vtype = RD_KAFKA_VTYPE_PARTITION;
	fields[count++].u.i32 = record->partition;
	fields[count].vtype = RD_KAFKA_VTYPE_MSGFLAGS;
	fields[count++].u.i = RD_KAFKA_MSG_F_COPY;
	fields[count].vtype = RD_KAFKA_VTYPE_VALUE;
	fields[count].u.mem.ptr = (void *) record->value;
	fields[count++].u.mem.size = record->value_length;
	fields[count].vtype = RD_KAFKA_VTYPE_KEY;
	fields[count].u.mem.ptr = (void *) record->key;
	fields[count++].u.mem.size = record->key_length;
	fields[count].vtype = RD_KAFKA_VTYPE_TIMESTAMP;
	fields[count++].u.i64 = record->timestamp_ms;
	fields[count].vtype = RD_KAFKA_VTYPE_OPAQUE;
	fields[count++].u.ptr = (void *) (uintptr_t)
		(record->tag | (record->recurring ? RECURRING_TAG : 0));
	if (record->headers != NULL)
	{
		fields[count].vtype = RD_KAFKA_VTYPE_HEADERS;
		fields[count++].u.headers = (rd_kafka_headers_t *) record->headers;
	}

	failure = rd_kafka_produceva(producer->rk, fields, count);
	if (failure == NULL)
	{
		producer->outstanding++;
		return KAFKA_ERROR_NONE;
	}

	code = rd_kafka_error_code(failure);
	kafka_fill_error(error, kafka_classify(code, FROM_PRODUCE), code,
					 rd_kafka_error_string(failure));
	rd_kafka_error_destroy(failure);
	if (code == RD_KAFKA_RESP_ERR__FATAL)
		check_fatal(producer);
	return error->class;
}
