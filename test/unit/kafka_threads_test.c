/*
 * kafka_threads_test.c
 *	  The threads of a producer: no signals for them, and a quick end.
 *
 * There is no broker: connections are refused, or accepted by a socket that
 * nobody reads, or a name server does not answer. For the last of these
 * getaddrinfo() is one of ours, in this program only. Threads are counted as
 * the kernel has them, so there must be none but a producer's: no mock cluster
 * here.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

/* ----------
 * A name server that does not answer: for names that begin with "slow."
 * ----------
 */

static pthread_mutex_t slow_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t slow_changed = PTHREAD_COND_INITIALIZER;
static int	slow_lookups;
static bool slow_released;

typedef int (*GetAddrInfo) (const char *, const char *, const struct addrinfo *,
							struct addrinfo **);

/* In place of the C library's, for everybody in this process. */
int
getaddrinfo(const char *node, const char *service,
			const struct addrinfo *hints, struct addrinfo **result)
{
	GetAddrInfo real = (GetAddrInfo) dlsym(RTLD_NEXT, "getaddrinfo");

	if (node == NULL || strncmp(node, "slow.", 5) != 0 ||
		(hints != NULL && (hints->ai_flags & AI_NUMERICHOST) != 0))
		return real(node, service, hints, result);

	pthread_mutex_lock(&slow_lock);
	slow_lookups++;
	pthread_cond_broadcast(&slow_changed);
	while (!slow_released)
		pthread_cond_wait(&slow_changed, &slow_lock);
	slow_lookups--;
	pthread_cond_broadcast(&slow_changed);
	pthread_mutex_unlock(&slow_lock);
	return EAI_AGAIN;
}

/* Wait for so many lookups to be under way. */
static void
wait_for_lookups(int wanted)
{
	pthread_mutex_lock(&slow_lock);
	while (slow_lookups != wanted)
		pthread_cond_wait(&slow_changed, &slow_lock);
	pthread_mutex_unlock(&slow_lock);
}

/* ----------
 * The tests
 * ----------
 */

static bool
has_errors(KafkaProducer *producer, Seen *seen, int wanted)
{
	return seen->errors >= wanted;
}

static void
test_threads(void)
{
	KafkaProducer *producer;
	sigset_t	mask;
	pid_t		pid;
	int			status = -1;

	producer = make_producer("127.0.0.1:1,127.0.0.1:2", "", "", NULL);
	ok(count_threads() > 1, "a producer has threads (%d)", count_threads() - 1);
	ok(count_open_to_signals() == 0, "none of them takes signals");
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	ok(!sigismember(&mask, SIGTERM) && !sigismember(&mask, SIGHUP) &&
	   !sigismember(&mask, SIGUSR1), "our own signals are open again");

	pid = fork();
	if (pid == 0)
	{
		alarm(5);
		kafka_producer_destroy(producer);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked child cannot hang in destroy");

	kafka_producer_destroy(producer);
	for (int i = 0; i < 100 && count_threads() > 1; i++)
		usleep(20000);
	ok(count_threads() == 1, "destroy ends them all");
}

static void
destroy_case(const char *servers, const char *what)
{
	Seen		seen = {0};
	KafkaProducer *producer = make_producer(servers, "", "", NULL);
	double		start;
	double		took;

	for (int i = 0; i < 1000; i++)
		send_text(producer, "dead", i % 3, "key", "value", (uint64_t) i);
	/* connections are being made, or have failed, by the first log line */
	is_readable(producer, WAIT_MS);
	kafka_producer_serve(producer, &handlers, &seen, 100);
	start = now_ms();
	kafka_producer_destroy(producer);
	took = now_ms() - start;

	/*
	 * librdkafka 2.1 to 2.9 sometimes take a second; a stop of the server has
	 * five
	 */
	ok(took < 3000, "destroyed soon with 1000 messages queued, %s (%.1f ms)", what, took);
}

static void
test_destroy(void)
{
	struct sockaddr_in address = {0};
	socklen_t	length = sizeof(address);
	int			listener = socket(AF_INET, SOCK_STREAM, 0);
	char		servers[64];
	Seen		seen = {0};
	KafkaProducer *producer;
	double		start;
	double		took;

	destroy_case("127.0.0.1:1", "connection refused");

	/* the kernel accepts for us; nobody ever answers */
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(listener, 16) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &length) != 0)
	{
		perror("listener");
		exit(1);
	}
	snprintf(servers, sizeof(servers), "127.0.0.1:%d", ntohs(address.sin_port));
	destroy_case(servers, "broker mute");
	close(listener);

	/* the thread of the lookup stays behind; it must do no harm */
	producer = make_producer("slow.invalid:9092", "", "", NULL);
	wait_for_lookups(1);
	ok(count_open_to_signals() == 0, "the thread of a lookup takes no signals");
	start = now_ms();
	kafka_producer_destroy(producer);
	took = now_ms() - start;
	ok(took < 3000, "destroyed soon while a name is looked up (%.1f ms)", took);
	pthread_mutex_lock(&slow_lock);
	slow_released = true;
	pthread_cond_broadcast(&slow_changed);
	pthread_mutex_unlock(&slow_lock);
	wait_for_lookups(0);

	producer = make_producer("127.0.0.1:1", "", "", NULL);
	ok(serve_until(producer, &seen, has_errors, 1) && seen.last_error == KAFKA_ERROR_RETRY,
	   "a broker that is not there is an error of class RETRY");
	ok(!kafka_producer_is_connected(producer) && !kafka_producer_is_dead(producer, NULL),
	   "not connected, not dead");
	kafka_producer_destroy(producer);
}

int
main(void)
{
	unit_start();
	test_threads();
	test_destroy();
	return unit_end();
}
