/*
 * kafka_client.c
 *	  Starting a client of librdkafka's.
 *
 * rd_kafka_new() can fail although each property was taken: a key does not open
 * with the passphrase, a file of certificates is none. The configuration then
 * stays the caller's to destroy; but if it has interceptors, librdkafka has
 * freed them, and destroying it frees them again, which ends the process and
 * with it restarts the server (librdkafka #4142, open until the end of 2025).
 *
 * So a configuration is tried without interceptors first, by a client that
 * knows no broker and lives for a moment. That is left out while starting works,
 * since producers are made anew after each refused batch. Where it then fails
 * all the same, because a file has changed, the configuration is left alone
 * rather than destroyed: some kilobytes, once, as the next start is tried first.
 */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>

#include "kafka_client.h"

static rd_kafka_t *
start(rd_kafka_type_t type, rd_kafka_conf_t *conf, char *reason, size_t reason_size)
{
	sigset_t	all_signals;
	sigset_t	old_signals;
	rd_kafka_t *rk;

	sigfillset(&all_signals);
	pthread_sigmask(SIG_SETMASK, &all_signals, &old_signals);
	rk = rd_kafka_new(type, conf, reason, reason_size);
	pthread_sigmask(SIG_SETMASK, &old_signals, NULL);
	return rk;
}

static bool
can_start(const rd_kafka_conf_t *conf, char *reason, size_t reason_size)
{
	rd_kafka_conf_t *copy = rd_kafka_conf_dup(conf);
	rd_kafka_t *rk = NULL;

	if (rd_kafka_conf_set(copy, "bootstrap.servers", NULL, reason, reason_size) == RD_KAFKA_CONF_OK)
		rk = start(RD_KAFKA_PRODUCER, copy, reason, reason_size);
	if (rk == NULL)
	{
		rd_kafka_conf_destroy(copy);
		return false;
	}
	rd_kafka_destroy(rk);
	return true;
}

rd_kafka_t *
kafka_client_start(rd_kafka_type_t type, rd_kafka_conf_t *conf,
				   void (*register_interceptors) (rd_kafka_conf_t *conf, void *arg),
				   void *arg, char *reason, size_t reason_size)
{
	static bool started_last = false;
	rd_kafka_t *rk;

	if (register_interceptors == NULL)
	{
		rk = start(type, conf, reason, reason_size);
		if (rk == NULL)
			rd_kafka_conf_destroy(conf);
		return rk;
	}
	if (!started_last && !can_start(conf, reason, reason_size))
	{
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	register_interceptors(conf, arg);
	rk = start(type, conf, reason, reason_size);
	started_last = (rk != NULL);
	return rk;
}
