/*
 * kafka_conf_test.c
 *	  What a producer is configured with: properties, and files of them.
 *
 * No broker is needed: what is wrong is refused before anything is connected. A
 * refusal says what it is about and never repeats a value, so the values here
 * hold SECRET, which each reason is searched for.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "unit.h"

/* A refusal must name the property and never repeat the value. */
static void
refused(const char *properties, const char *name)
{
	const char *reason = kafka_conf_check(properties);

	ok(reason != NULL && strstr(reason, name) != NULL &&
	   strstr(reason, SECRET) == NULL, "refused: %s (%s)", name,
	   reason != NULL ? reason : "accepted");
}

static void
test_properties(void)
{
	static const char *const accepted[] = {
		"",
		"  ;; ; ",
		"linger.ms=5",
		" linger.ms = 5 ; compression.type=lz4;batch.size=100000; ",
		"compression.codec=gzip; compression.level=3",
		"security.protocol=sasl_ssl; sasl.mechanisms=SCRAM-SHA-512; sasl.username=me",
		"ssl.endpoint.identification.algorithm=none; enable.ssl.certificate.verification=false",
		"acks=all; enable.idempotence=true; message.timeout.ms=0",
		"max.in.flight=1",
		"debug=broker,msg; socket.timeout.ms=5000; socket.send.buffer.bytes=100000",
		"client.id=x=y",
	};
	static const char *const places[] = {
		"sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem",
		"ssl.ca.pem", "ssl.ca.location", "ssl.key.location", "ssl.certificate.location",
		"ssl.crl.location", "ssl.keystore.location", "sasl.kerberos.keytab",
		"sasl.kerberos.principal", "sasl.oauthbearer.client.secret",
		"sasl.oauthbearer.token.endpoint.url", "sasl.oauthbearer.config",
	};
	static const char *const never[] = {
		"plugin.library.paths", "ssl.engine.location", "ssl.engine.id", "ssl.providers",
		"sasl.kerberos.kinit.cmd", "internal.termination.signal", "interceptors",
		"opaque", "error_cb", "dr_msg_cb", "socket_cb", "log.queue", "enable.idempotence",
		"acks", "request.required.acks", "enable.gapless.guarantee", "transactional.id",
		"message.timeout.ms", "delivery.timeout.ms", "retries", "message.max.bytes",
		"queue.buffering.max.messages", "partitioner", "queuing.strategy",
		"delivery.report.only.error", "test.mock.num.brokers", "bootstrap.servers",
		"metadata.broker.list", "statistics.interval.ms", "max.in.flight", "group.id",
		"no.such.property", "enable.sasl.oauthbearer.unsecure.jwt",
	};
	char		text[256];

	for (size_t i = 0; i < sizeof(accepted) / sizeof(accepted[0]); i++)
	{
		const char *reason = kafka_conf_check(accepted[i]);

		ok(reason == NULL, "accepted: \"%s\"%s%s", accepted[i],
		   reason != NULL ? " - " : "", reason != NULL ? reason : "");
	}
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
	{
		snprintf(text, sizeof(text), "linger.ms=1;%s=%s", places[i], SECRET);
		refused(text, places[i]);
		ok(strstr(kafka_conf_check(text), "config_file") != NULL,
		   "%s: the reason tells where it belongs", places[i]);
	}
	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++)
	{
		snprintf(text, sizeof(text), "%s=%s", never[i], SECRET);
		refused(text, never[i]);
	}
	refused("acks=1", "acks");
	refused("acks=", "acks");
	refused("max.in.flight=6", "max.in.flight");
	refused("linger.ms=" SECRET, "linger.ms");
	refused("linger.ms=1; " SECRET, "entry 2");
	refused("linger.ms=1; the " SECRET "=x", "entry 2");
	refused("=" SECRET, "entry 1");
	ok(count_threads() == 1, "checking properties starts no thread");
}

static char *
write_file(const char *dir, const char *name, const char *text, size_t length, mode_t mode)
{
	static char path[PATH_MAX];
	int			fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (fd < 0 || write(fd, text, length) != (ssize_t) length || fchmod(fd, mode) != 0)
	{
		perror(path);
		exit(1);
	}
	close(fd);
	return path;
}

static void
file_case(const char *path, const char *expected, const char *what)
{
	KafkaError	error = {0};
	KafkaProducer *producer = make_producer("127.0.0.1:1", "", path, &error);

	if (expected == NULL)
		ok(producer != NULL, "config_file: %s%s%s", what,
		   producer != NULL ? "" : " - ", error.message);
	else
		ok(producer == NULL && error.class == KAFKA_ERROR_CLIENT &&
		   strstr(error.message, expected) != NULL && strstr(error.message, SECRET) == NULL,
		   "config_file: %s (%s)", what, error.message);
	kafka_producer_destroy(producer);
}

static void
test_config_file(void)
{
	char		dir[] = "/tmp/kafka_test.XXXXXX";
	char		link_path[64];
	char		fifo_path[64];
	char		command[80];
	const char *good = "# secrets\n\n sasl.password = " SECRET "\r\nsasl.username=me\n"
	"ssl.key.password=a;b=c\nlinger.ms=1";
	const char *bad_value = "linger.ms=1\nlinger.ms=" SECRET "\n";
	const char *bad_line = "linger.ms=1\n" SECRET "\n";
	const char *forbidden = "sasl.kerberos.kinit.cmd=" SECRET "\n";
	char	   *large = malloc(70000);
	char	   *path;

	if (mkdtemp(dir) == NULL)
		exit(1);
	snprintf(link_path, sizeof(link_path), "%s/link", dir);
	snprintf(fifo_path, sizeof(fifo_path), "%s/fifo", dir);
	memset(large, '\n', 70000);

	path = write_file(dir, "good", good, strlen(good), 0600);
	file_case(path, NULL, "private, with secrets, comments and white space");
	if (symlink(path, link_path) == 0)
		file_case(link_path, NULL, "a link to a private file");
	path = write_file(dir, "group", good, strlen(good), 0640);
	file_case(path, "permissions", "readable by the group");
	path = write_file(dir, "others", good, strlen(good), 0604);
	file_case(path, "permissions", "readable by others");
	path = write_file(dir, "writable", good, strlen(good), 0620);
	file_case(path, "permissions", "writable by the group");
	if (geteuid() == 0)
	{
		path = write_file(dir, "foreign", good, strlen(good), 0600);
		if (chown(path, 65534, 65534) == 0)
			file_case(path, "must be owned", "owned by somebody else");
	}
	path = write_file(dir, "value", bad_value, strlen(bad_value), 0600);
	file_case(path, "linger.ms", "a value that librdkafka refuses");
	path = write_file(dir, "line", bad_line, strlen(bad_line), 0600);
	file_case(path, "line 2", "a line without a name");
	path = write_file(dir, "forbidden", forbidden, strlen(forbidden), 0600);
	file_case(path, "sasl.kerberos.kinit.cmd", "a property that is never accepted");
	path = write_file(dir, "binary", "linger.ms=1\n\0", 13, 0600);
	file_case(path, "not a text file", "zero bytes");
	path = write_file(dir, "large", large, 70000, 0600);
	file_case(path, "larger than", "too large");
	if (mkfifo(fifo_path, 0600) == 0)
		file_case(fifo_path, "not a regular file", "a pipe");
	file_case(dir, "not a regular file", "a directory");
	snprintf(fifo_path, sizeof(fifo_path), "%s/none", dir);
	file_case(fifo_path, "could not open", "absent");

	free(large);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	if (system(command) != 0)
		diag("could not remove %s", dir);
}

static void
test_create(void)
{
	KafkaError	error = {0};
	KafkaProducer *producer;

	producer = make_producer("", "", "", &error);
	ok(producer == NULL && error.class == KAFKA_ERROR_CLIENT,
	   "no producer without bootstrap servers (%s)", error.message);
	producer = make_producer("127.0.0.1:1", "acks=1", "", &error);
	ok(producer == NULL && strstr(error.message, "acks") != NULL,
	   "no producer with a refused property (%s)", error.message);
	producer = make_producer("127.0.0.1:1", "sasl.mechanisms=OAUTHBEARER", "", &error);
	ok(producer == NULL && strstr(error.message, "oidc") != NULL, "OAUTHBEARER without OIDC is refused (%s)",
	   error.message);
	producer = make_producer("127.0.0.1:1", "linger.ms=10", "", &error);
	ok(producer != NULL, "a producer for a broker that is not there");
	kafka_producer_destroy(producer);
}

/*
 * Properties that librdkafka takes, and files that it then cannot use: no
 * producer, whatever came before, and a good one afterwards.
 */
static void
test_unusable_files(void)
{
	char		dir[] = "/tmp/kafka_test.XXXXXX";
	char		command[80];
	char		text[256];
	const char *garbage = "no certificate, no key, but " SECRET "\n";
	char		garbage_path[64];
	char	   *path;

	if (mkdtemp(dir) == NULL)
		exit(1);
	snprintf(garbage_path, sizeof(garbage_path), "%s/garbage", dir);
	write_file(dir, "garbage", garbage, strlen(garbage), 0600);
	for (int i = 0; i < 2; i++)
	{
		path = write_file(dir, "none", "linger.ms=1\n", 12, 0600);
		file_case(path, NULL, "before");
		snprintf(text, sizeof(text), "security.protocol=ssl\nssl.ca.location=%s\n", garbage_path);
		path = write_file(dir, "ca", text, strlen(text), 0600);
		file_case(path, "ssl.ca.location", "an authority that is none");
		snprintf(text, sizeof(text), "security.protocol=ssl\nssl.key.location=%s\nssl.key.password=" SECRET "\n", garbage_path);
		path = write_file(dir, "key", text, strlen(text), 0600);
		file_case(path, "ssl.key.location", "a key that is none");
		file_case(path, "ssl.key.location", "again");
	}
	file_case("", NULL, "none, afterwards");
	/* one that has returned may still be on its way out of the kernel */
	for (int i = 0; i < 100 && count_threads() > 1; i++)
		usleep(20000);
	ok(count_threads() == 1, "no thread is left of producers that could not be");

	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	if (system(command) != 0)
		diag("could not remove %s", dir);
}

int
main(void)
{
	unit_start();
	test_properties();
	test_config_file();
	test_unusable_files();
	test_create();
	return unit_end();
}
