/*
 * kafka_transaction.c
 *	  Transactions of a producer.
 *
 * A thread. librdkafka's transaction calls wait for brokers. With short limits
 * of time they could be made in the caller's thread again and again, since each
 * can be resumed; but nothing would tell when to come again, and each look
 * would either come late or hold up the caller's loop. So one thread for each
 * producer makes the calls, one at a time, in slices of CALL_SLICE_MS, between
 * which it looks whether it is to end; so ending waits for no broker. It takes
 * no signals and calls nothing but librdkafka. The delivery reports that a
 * commit waits for are served by the caller meanwhile.
 *
 * Opening. init_transactions() ends the transaction of a predecessor, the one
 * way or the other, and takes away its right to go on. Only then can what it
 * committed be read: a position that belongs to a transaction in doubt is
 * waited for, as by any reader of what is committed. It is the offset of group = transactional.id in
 * partition 0 of KAFKA_PROGRESS_TOPIC, with the nonce as its metadata. The
 * topic has to exist, or the broker takes no offset for it; it is made when it
 * is not there.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kafka_error.h"
#include "kafka_producer.h"
#include "kafka_transaction.h"

#define CALL_SLICE_MS 100
#define ANSWER_MS 250

/* An answer of Kafka's administration is waited for so long. */
#define ADMIN_TIMEOUT_MS 10000

/* An end waits so long for an open transaction to be aborted. */
#define ABORT_MS 500

struct KafkaTransactions
{
	KafkaProducer *producer;
	char	   *id;
	rd_kafka_conf_t *conf;		/* the producer's */
	pthread_t	thread;
	bool		open;			/* a transaction is; the caller's, but for the
								 * time of a call */

	pthread_mutex_t lock;		/* guards the rest */
	pthread_cond_t changed;
	bool		leave;
	bool		left;			/* the thread has done its last call */
	KafkaTransactionCall call;	/* to be made, or being made */
	int64_t		position;
	char		nonce[KAFKA_NONCE_LENGTH];
	bool		ended;			/* result is there */
	KafkaTransactionResult result;
};

static bool
is_leaving(KafkaTransactions *t)
{
	bool		leave;

	pthread_mutex_lock(&t->lock);
	leave = t->leave;
	pthread_mutex_unlock(&t->lock);
	return leave;
}

/* Wait a little before asking again; a signal to leave ends it. */
static void
pause_a_little(KafkaTransactions *t, int ms)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += (long) ms * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&t->lock);
	if (!t->leave)
		pthread_cond_timedwait(&t->changed, &t->lock, &until);
	pthread_mutex_unlock(&t->lock);
}

static bool
fail(KafkaTransactionResult *result, rd_kafka_resp_err_t code, const char *what,
	 const char *message)
{
	char		text[KAFKA_ERROR_LENGTH];

	snprintf(text, sizeof(text), "%s: %s", what, message);
	kafka_fill_error(&result->error, KAFKA_ERROR_CLIENT, code, text);
	return false;
}

/*
 * What became of a call: 1 it is done, 0 it goes on, -1 it has failed. Frees
 * error.
 */
static int
judge(rd_kafka_t *rk, rd_kafka_error_t *error, const char *what,
	  KafkaTransactionResult *result)
{
	rd_kafka_resp_err_t code;
	int			verdict = -1;

	if (error == NULL)
		return 1;
	code = rd_kafka_error_code(error);
	if (rd_kafka_error_is_retriable(error))
		verdict = 0;
	else
	{
		char		reason[KAFKA_ERROR_LENGTH] = "";
		rd_kafka_resp_err_t cause = rd_kafka_fatal_error(rk, reason, sizeof(reason));

		if (cause != RD_KAFKA_RESP_ERR_NO_ERROR)
			(void) fail(result, cause, what, reason);
		else
			(void) fail(result, code, what, rd_kafka_error_string(error));
	}
	rd_kafka_error_destroy(error);
	return verdict;
}

/* Make a call again and again until it is done. */
static bool
repeat(KafkaTransactions *t, rd_kafka_t *rk, rd_kafka_error_t *(*call) (rd_kafka_t *, int),
	   const char *what, KafkaTransactionResult *result)
{
	int			verdict = 0;

	while (verdict == 0 && !is_leaving(t))
	{
		verdict = judge(rk, call(rk, CALL_SLICE_MS), what, result);
		if (verdict == 0)
			pause_a_little(t, 5);
	}
	return verdict == 1;
}

static bool
read_cluster(KafkaTransactions *t, rd_kafka_t *rk, KafkaTransactionResult *result)
{
	char	   *cluster = NULL;

	while (cluster == NULL && !is_leaving(t))
		cluster = rd_kafka_clusterid(rk, CALL_SLICE_MS);
	if (cluster == NULL)
		return false;
	kafka_copy_text(result->cluster, sizeof(result->cluster), cluster);
	rd_kafka_mem_free(rk, cluster);
	return true;
}

/* The event that answers a request, or NULL: leave. */
static rd_kafka_event_t *
await(KafkaTransactions *t, rd_kafka_queue_t *queue)
{
	rd_kafka_event_t *event = NULL;

	while (event == NULL && !is_leaving(t))
		event = rd_kafka_queue_poll(queue, CALL_SLICE_MS);
	return event;
}

/* Ask for the topic to be made; that it is there already is just as well. */
static bool
create_topic(KafkaTransactions *t, rd_kafka_t *rk, KafkaTransactionResult *result)
{
	char		reason[256];
	rd_kafka_NewTopic_t *topic = rd_kafka_NewTopic_new(KAFKA_PROGRESS_TOPIC, 1, -1,
													   reason, sizeof(reason));
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);
	rd_kafka_event_t *event;
	bool		ok = false;

	rd_kafka_AdminOptions_set_request_timeout(options, ADMIN_TIMEOUT_MS, reason, sizeof(reason));
	rd_kafka_CreateTopics(rk, &topic, 1, options, queue);
	event = await(t, queue);
	if (event != NULL)
	{
		rd_kafka_resp_err_t code = rd_kafka_event_error(event);
		const char *message = rd_kafka_event_error_string(event);

		if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			size_t		count;
			const rd_kafka_topic_result_t **topics =
			rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event),
												&count);

			if (count > 0)
			{
				code = rd_kafka_topic_result_error(topics[0]);
				message = rd_kafka_topic_result_error_string(topics[0]);
			}
		}
		ok = (code == RD_KAFKA_RESP_ERR_NO_ERROR ||
			  code == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS);
		if (!ok)
			(void) fail(result, code, "could not create topic " KAFKA_PROGRESS_TOPIC,
						message ? message : rd_kafka_err2str(code));
		rd_kafka_event_destroy(event);
	}
	rd_kafka_AdminOptions_destroy(options);
	rd_kafka_NewTopic_destroy(topic);
	rd_kafka_queue_destroy(queue);
	return ok;
}

/* Make sure that the topic is there and known everywhere that matters. */
static bool
ensure_topic(KafkaTransactions *t, rd_kafka_t *rk, KafkaTransactionResult *result)
{
	rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, KAFKA_PROGRESS_TOPIC, NULL);
	bool		there = false;
	bool		asked = false;
	bool		failed = (rkt == NULL);

	while (!there && !failed && !is_leaving(t))
	{
		const struct rd_kafka_metadata *metadata;
		rd_kafka_resp_err_t code;

		if (rd_kafka_metadata(rk, 0, rkt, &metadata, ANSWER_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
			continue;
		code = metadata->topic_cnt == 1 ? metadata->topics[0].err :
			RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
		there = (code == RD_KAFKA_RESP_ERR_NO_ERROR && metadata->topics[0].partition_cnt > 0);
		rd_kafka_metadata_destroy(metadata);
		if (there)
			break;
		if (code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
			failed = !fail(result, code, "topic " KAFKA_PROGRESS_TOPIC, rd_kafka_err2str(code));
		else if (!asked && code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
		{
			asked = true;
			failed = !create_topic(t, rk, result);
		}
		else
			pause_a_little(t, 50);
	}
	if (rkt != NULL)
		rd_kafka_topic_destroy(rkt);
	return there;
}

/*
 * A consumer for the time of a question: librdkafka has no other call that
 * reads a group's offset and can be relied on (ListConsumerGroupOffsets of
 * 2.0.2 ends the process when the coordinator is just loading).
 */
static rd_kafka_t *
start_consumer(KafkaTransactions *t, KafkaTransactionResult *result)
{
	static const char *const properties[][2] = {
		{"transactional.id", NULL},
		/* it fetches nothing; these have to go with each other */
		{"message.max.bytes", "1000000"},
		{"fetch.max.bytes", "1000000"},
		{"receive.message.max.bytes", "16000000"},
		{"enable.auto.commit", "false"},
		{"isolation.level", "read_committed"}
	};
	rd_kafka_conf_t *conf = rd_kafka_conf_dup(t->conf);
	rd_kafka_t *consumer = NULL;
	rd_kafka_error_t *error;
	char		reason[256];
	bool		ok;

	ok = rd_kafka_conf_set(conf, "group.id", t->id, reason, sizeof(reason)) == RD_KAFKA_CONF_OK;
	for (size_t i = 0; ok && i < sizeof(properties) / sizeof(properties[0]); i++)
		ok = rd_kafka_conf_set(conf, properties[i][0], properties[i][1],
							   reason, sizeof(reason)) == RD_KAFKA_CONF_OK;
	rd_kafka_conf_set_log_cb(conf, NULL);
	if (ok)
		consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, reason, sizeof(reason));
	if (consumer == NULL)
	{
		rd_kafka_conf_destroy(conf);
		(void) fail(result, RD_KAFKA_RESP_ERR__INVALID_ARG,
					"could not read the position back", reason);
		return NULL;
	}
	error = rd_kafka_sasl_background_callbacks_enable(consumer);
	if (error != NULL)
		rd_kafka_error_destroy(error);
	return consumer;
}

/* Whether asking again will not help. */
static bool
is_final(rd_kafka_resp_err_t code)
{
	switch (code)
	{
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION:
		case RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE:
		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
		case RD_KAFKA_RESP_ERR__FATAL:
			return true;
		default:
			return false;
	}
}

static void
take_offset(const rd_kafka_topic_partition_t *place, KafkaTransactionResult *result)
{
	char		text[KAFKA_NONCE_LENGTH] = "";
	size_t		length = place->metadata_size < sizeof(text) ?
	place->metadata_size : sizeof(text) - 1;

	result->found = (place->offset >= 0);
	result->position = place->offset;
	if (result->found && place->metadata != NULL)
		memcpy(text, place->metadata, length);
	kafka_copy_text(result->nonce, sizeof(result->nonce), text);
}

static bool
read_back(KafkaTransactions *t, KafkaTransactionResult *result)
{
	rd_kafka_t *consumer = start_consumer(t, result);
	bool		done = false;
	bool		failed = false;

	if (consumer == NULL)
		return false;
	while (!done && !failed && !is_leaving(t))
	{
		rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
		rd_kafka_topic_partition_t *place =
		rd_kafka_topic_partition_list_add(list, KAFKA_PROGRESS_TOPIC, 0);
		rd_kafka_resp_err_t code = rd_kafka_committed(consumer, list, ANSWER_MS);

		if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
			code = place->err;
		if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			take_offset(place, result);
			done = true;
		}
		else if (is_final(code))
			failed = !fail(result, code, "could not read the position back",
						   rd_kafka_err2str(code));
		rd_kafka_topic_partition_list_destroy(list);
		if (!done && !failed)
			pause_a_little(t, 20);
	}
	rd_kafka_destroy_flags(consumer, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	return done;
}

static bool
open_transactions(KafkaTransactions *t, rd_kafka_t *rk, KafkaTransactionResult *result)
{
	return repeat(t, rk, rd_kafka_init_transactions,
				  "could not start transactions", result) &&
		read_cluster(t, rk, result) &&
		ensure_topic(t, rk, result) && read_back(t, result);
}

static bool
send_position(KafkaTransactions *t, rd_kafka_t *rk, int64_t position,
			  const char *nonce, KafkaTransactionResult *result)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_t *place =
	rd_kafka_topic_partition_list_add(list, KAFKA_PROGRESS_TOPIC, 0);
	rd_kafka_consumer_group_metadata_t *group = rd_kafka_consumer_group_metadata_new(t->id);
	int			verdict = 0;

	/* the list's memory is librdkafka's to free */
	place->offset = position;
	place->metadata = strdup(nonce);
	place->metadata_size = place->metadata ? strlen(nonce) : 0;
	while (verdict == 0 && !is_leaving(t))
	{
		verdict = judge(rk, rd_kafka_send_offsets_to_transaction(rk, list, group, CALL_SLICE_MS),
						"could not send the position", result);
		if (verdict == 0)
			pause_a_little(t, 5);
	}
	rd_kafka_consumer_group_metadata_destroy(group);
	rd_kafka_topic_partition_list_destroy(list);
	return verdict == 1;
}

static void *
transaction_thread(void *arg)
{
	KafkaTransactions *t = arg;
	rd_kafka_t *rk = kafka_producer_handle(t->producer);
	bool		in_doubt = false;

	pthread_mutex_lock(&t->lock);
	while (!t->leave)
	{
		KafkaTransactionCall call = t->call;
		int64_t		position = t->position;
		char		nonce[KAFKA_NONCE_LENGTH];
		KafkaTransactionResult result = {.call = call};

		if (call == KAFKA_CALL_NONE || t->ended)
		{
			pthread_cond_wait(&t->changed, &t->lock);
			continue;
		}
		memcpy(nonce, t->nonce, sizeof(nonce));
		pthread_mutex_unlock(&t->lock);

		switch (call)
		{
			case KAFKA_CALL_OPEN:
				result.ok = open_transactions(t, rk, &result);
				break;
			case KAFKA_CALL_POSITION:
				result.ok = send_position(t, rk, position, nonce, &result);
				break;
			case KAFKA_CALL_COMMIT:
				result.ok = repeat(t, rk, rd_kafka_commit_transaction,
								   "could not commit", &result);
				if (result.ok)
					t->open = false;
				else
					in_doubt = true;
				break;
			default:
				break;
		}

		pthread_mutex_lock(&t->lock);
		t->result = result;
		t->ended = true;
		kafka_producer_wake(t->producer);
	}
	pthread_mutex_unlock(&t->lock);

	/* what it has locked for readers is free at once, not after a time-out */
	if (t->open && !in_doubt)
	{
		rd_kafka_error_t *error = rd_kafka_abort_transaction(rk, ABORT_MS);

		if (error != NULL)
			rd_kafka_error_destroy(error);
	}
	pthread_mutex_lock(&t->lock);
	t->left = true;
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

KafkaTransactions *
kafka_transactions_create(KafkaProducer *producer, const char *id, rd_kafka_conf_t *conf)
{
	KafkaTransactions *t = calloc(1, sizeof(KafkaTransactions));
	sigset_t	all_signals;
	sigset_t	old_signals;
	int			failed;

	if (t == NULL)
	{
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	t->producer = producer;
	t->conf = conf;
	t->id = strdup(id);
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->changed, NULL);

	sigfillset(&all_signals);
	pthread_sigmask(SIG_SETMASK, &all_signals, &old_signals);
	failed = t->id == NULL || pthread_create(&t->thread, NULL, transaction_thread, t) != 0;
	pthread_sigmask(SIG_SETMASK, &old_signals, NULL);
	if (!failed)
		return t;
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->changed);
	rd_kafka_conf_destroy(t->conf);
	free(t->id);
	free(t);
	return NULL;
}

void
kafka_transactions_end(KafkaTransactions *t)
{
	bool		left = false;

	pthread_mutex_lock(&t->lock);
	t->leave = true;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);

	/* to abort is to wait until all reports are served */
	while (!left)
	{
		kafka_producer_discard_events(t->producer, 5);
		pthread_mutex_lock(&t->lock);
		left = t->left;
		pthread_mutex_unlock(&t->lock);
	}
	pthread_join(t->thread, NULL);
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->changed);
	rd_kafka_conf_destroy(t->conf);
	free(t->id);
	free(t);
}

void
kafka_transaction_call(KafkaProducer *producer, KafkaTransactionCall call,
					   int64_t position, const char *nonce)
{
	KafkaTransactions *t = kafka_producer_transactions(producer);

	pthread_mutex_lock(&t->lock);
	t->call = call;
	t->position = position;
	snprintf(t->nonce, sizeof(t->nonce), "%s", nonce ? nonce : "");
	t->ended = false;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

bool
kafka_transaction_result(KafkaProducer *producer, KafkaTransactionResult *result)
{
	KafkaTransactions *t = kafka_producer_transactions(producer);
	bool		ended;

	pthread_mutex_lock(&t->lock);
	ended = t->ended;
	if (ended)
	{
		*result = t->result;
		t->ended = false;
		t->call = KAFKA_CALL_NONE;
	}
	pthread_mutex_unlock(&t->lock);
	return ended;
}

bool
kafka_transaction_begin(KafkaProducer *producer, KafkaError *error)
{
	KafkaTransactions *t = kafka_producer_transactions(producer);
	rd_kafka_error_t *failure = rd_kafka_begin_transaction(kafka_producer_handle(producer));

	if (failure == NULL)
	{
		t->open = true;
		return true;
	}
	kafka_fill_error(error, KAFKA_ERROR_CLIENT, rd_kafka_error_code(failure),
					 rd_kafka_error_string(failure));
	rd_kafka_error_destroy(failure);
	return false;
}
