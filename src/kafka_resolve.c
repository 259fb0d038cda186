/*
 * kafka_resolve.c
 *	  Looking up a broker's name in a way that can be left.
 *
 * getaddrinfo() cannot be interrupted, and takes many seconds where no name
 * server answers. librdkafka calls it in the thread of a broker, and ending a
 * client waits for that thread: a relay could not end meanwhile, and with it
 * neither a shutdown nor DROP DATABASE. So the call is made in a thread of its
 * own, which whoever does not want the answer any more leaves alone with it; it
 * touches nothing but its own memory then, and ends by itself or with the
 * process.
 *
 * One mutex and one condition serve all lookups: there are few of them, and
 * they are rare.
 */
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "kafka_resolve.h"

typedef struct Lookup
{
	/* set by who asks, before the thread starts */
	char	   *node;
	char	   *service;
	struct addrinfo hints;

	/* under lookup_lock */
	bool		done;
	bool		left;			/* nobody waits: the thread frees it */
	int			code;
	int			system_error;	/* errno, for EAI_SYSTEM */
	struct addrinfo *result;
} Lookup;

static pthread_mutex_t lookup_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t lookup_changed = PTHREAD_COND_INITIALIZER;

static void
free_lookup(Lookup *lookup)
{
	free(lookup->node);
	free(lookup->service);
	free(lookup);
}

static void *
lookup_thread(void *arg)
{
	Lookup	   *lookup = arg;
	struct addrinfo *result = NULL;
	int			code;
	int			system_error;
	bool		left;

	code = getaddrinfo(lookup->node, lookup->service, &lookup->hints, &result);
	system_error = errno;

	pthread_mutex_lock(&lookup_lock);
	lookup->code = code;
	lookup->system_error = system_error;
	lookup->result = result;
	lookup->done = true;
	left = lookup->left;
	pthread_cond_broadcast(&lookup_changed);
	pthread_mutex_unlock(&lookup_lock);

	if (left)
	{
		if (code == 0)
			freeaddrinfo(result);
		free_lookup(lookup);
	}
	return NULL;
}

/* Start the thread of a lookup. It takes no signals, like who starts it. */
static bool
start_lookup(Lookup *lookup)
{
	pthread_attr_t attributes;
	pthread_t	thread;
	bool		started;

	if (pthread_attr_init(&attributes) != 0)
		return false;
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	started = (pthread_create(&thread, &attributes, lookup_thread, lookup) == 0);
	pthread_attr_destroy(&attributes);
	return started;
}

int
kafka_resolve(const char *node, const char *service,
			  const struct addrinfo *hints, struct addrinfo **result,
			  const bool *leave)
{
	struct addrinfo numeric = *hints;
	Lookup	   *lookup;
	int			code;

	/* an address needs no name server */
	numeric.ai_flags |= AI_NUMERICHOST;
	code = getaddrinfo(node, service, &numeric, result);
	if (code != EAI_NONAME || (hints->ai_flags & AI_NUMERICHOST) != 0)
		return code;

	lookup = calloc(1, sizeof(Lookup));
	if (lookup == NULL)
		return EAI_MEMORY;
	lookup->node = strdup(node);
	lookup->service = strdup(service);
	lookup->hints = *hints;
	if (lookup->node == NULL || lookup->service == NULL || !start_lookup(lookup))
	{
		free_lookup(lookup);
		return EAI_MEMORY;
	}

	pthread_mutex_lock(&lookup_lock);
	while (!lookup->done && !*leave)
		pthread_cond_wait(&lookup_changed, &lookup_lock);
	lookup->left = !lookup->done;
	code = lookup->done ? lookup->code : EAI_AGAIN;
	if (lookup->done)
	{
		*result = lookup->result;
		errno = lookup->system_error;
	}
	else
		lookup = NULL;			/* the thread's, from here on */
	pthread_mutex_unlock(&lookup_lock);

	if (lookup != NULL)
		free_lookup(lookup);
	return code;
}

void
kafka_resolve_leave(bool *leave)
{
	pthread_mutex_lock(&lookup_lock);
	*leave = true;
	pthread_cond_broadcast(&lookup_changed);
	pthread_mutex_unlock(&lookup_lock);
}
