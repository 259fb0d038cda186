/*
 * kafka_conf.c
 *	  Which librdkafka properties a producer of ours has.
 *
 * Two texts can set properties: outbox_kafka.producer_config, which anybody
 * who may read settings can see, and the file outbox_kafka.config_file. A
 * property is taken from an allow-list only, and each belongs to one of three
 * places:
 *
 *	ANYWHERE	tunes or describes the connection; no secret, and the server
 *				opens or runs nothing because of it;
 *	FILE		a secret, or something that makes the server open a file, call
 *				an address or put the value into a shell command: whoever can
 *				write that file is trusted with it;
 *	NOWHERE		loads code, or would break what the relay promises. Some of
 *				these are fixed: naming them with the value they have anyway is
 *				harmless and accepted.
 *
 * Where both texts name a property the file wins, so that a setting made in
 * SQL cannot turn off the encryption the file asks for.
 *
 * Nothing here depends on the server, and no message holds a value: librdkafka
 * repeats a value it refuses, so its texts are not passed on.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* explicit_bzero */
#endif

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kafka_conf.h"

#define CONFIG_FILE_MAX_SIZE (64 * 1024)

/* Room in librdkafka's queue beyond what the relay keeps in flight. */
#define SPARE_MESSAGES 10000
#define SPARE_KILOBYTES (1024 * 1024)

/*
 * librdkafka sets memory aside for as much as a broker announces. An answer
 * about a topic takes some 30 bytes for each of its partitions.
 */
#define RECEIVE_MAX_BYTES "16000000"

/* So long a dead relay's transaction keeps readers of its partitions waiting. */
#define TRANSACTION_TIMEOUT_MS "10000"

typedef enum PropertyPlace
{
	ANYWHERE,
	FILE_ONLY,
	NOWHERE
} PropertyPlace;

typedef struct PropertyRule
{
	const char *pattern;		/* of names, for fnmatch() */
	PropertyPlace place;
	const char *reason;			/* why it is refused, or a file's matter */
	const char *fixed;			/* the accepted values, '|' between them */
} PropertyRule;

#define REASON_SECRET "it is a secret"
#define REASON_READS_FILE "it makes the server read a file"
#define REASON_CALLS_OUT "it holds credentials or makes the server call an address"
#define REASON_LOADS_CODE "it loads or runs code"
#define REASON_CALLBACK "it is not a property that text can set"
#define REASON_GIVES_UP "the relay never gives up a message"
#define REASON_IN_FLIGHT "outbox_kafka.max_in_flight and outbox_kafka.max_in_flight_size bound the queue"
#define REASON_PARTITIONER "the relay chooses the partition itself"
#define REASON_ORDER "messages have to keep their order"

/* The first pattern that matches counts; a name that matches none is refused. */
static const PropertyRule property_rules[] = {
	/* what has a setting of its own, or a value the promises rest on */
	{"bootstrap.servers", NOWHERE, "it has a setting of its own, outbox_kafka.bootstrap_servers"},
	{"metadata.broker.list", NOWHERE, "it has a setting of its own, outbox_kafka.bootstrap_servers"},
	{"acks", NOWHERE, "it is always \"all\"", "all|-1"},
	{"request.required.acks", NOWHERE, "it is always \"all\"", "all|-1"},
	{"enable.idempotence", NOWHERE, "it is always on", "true"},
	{"enable.gapless.guarantee", NOWHERE, "it is always on", "true"},
	{"max.in.flight.requests.per.connection", NOWHERE, "an idempotent producer takes 1 to 5", "1|2|3|4|5"},
	{"max.in.flight", NOWHERE, "an idempotent producer takes 1 to 5", "1|2|3|4|5"},
	{"message.timeout.ms", NOWHERE, REASON_GIVES_UP, "0"},
	{"delivery.timeout.ms", NOWHERE, REASON_GIVES_UP, "0"},
	{"retries", NOWHERE, REASON_GIVES_UP, "2147483647"},
	{"message.send.max.retries", NOWHERE, REASON_GIVES_UP, "2147483647"},
	{"queuing.strategy", NOWHERE, REASON_ORDER, "fifo"},
	{"msg_order_cmp", NOWHERE, REASON_ORDER},
	{"message.max.bytes", NOWHERE, "outbox_kafka.max_message_bytes bounds a record"},
	{"queue.buffering.max.messages", NOWHERE, REASON_IN_FLIGHT},
	{"queue.buffering.max.kbytes", NOWHERE, REASON_IN_FLIGHT},
	{"transactional.id", NOWHERE, "the relay decides on transactions"},
	{"transaction.timeout.ms", NOWHERE, "the relay decides on transactions"},
	{"delivery.report.only.error", NOWHERE, "the relay needs every delivery report", "false"},
	{"produce.offset.report", NOWHERE, "it is always on", "true"},
	{"partitioner", NOWHERE, REASON_PARTITIONER},
	{"sticky.partitioning.linger.ms", NOWHERE, REASON_PARTITIONER},
	{"topic.blacklist", NOWHERE, "it would hide topics from the relay"},
	{"statistics.interval.ms", NOWHERE, "nobody would read the statistics"},
	{"log.queue", NOWHERE, "the relay's log depends on it", "true"},

	/* code */
	{"plugin.library.paths", NOWHERE, REASON_LOADS_CODE},
	{"ssl.engine.*", NOWHERE, REASON_LOADS_CODE},
	{"ssl_engine_callback_data", NOWHERE, REASON_LOADS_CODE},
	{"ssl.providers", NOWHERE, REASON_LOADS_CODE},
	{"sasl.kerberos.kinit.cmd", NOWHERE, "it is a shell command"},
	{"enable.sasl.oauthbearer.unsecure.jwt", NOWHERE, "an unsigned token is no authentication", "false"},
	{"internal.*", NOWHERE, "it is internal to librdkafka"},
	{"test.mock.*", NOWHERE, "it replaces the brokers"},
	{"interceptors", NOWHERE, REASON_CALLBACK},
	{"enabled_events", NOWHERE, REASON_CALLBACK},
	{"opaque", NOWHERE, REASON_CALLBACK},
	{"default_topic_conf", NOWHERE, REASON_CALLBACK},
	{"ssl_key", NOWHERE, REASON_CALLBACK},
	{"ssl_certificate", NOWHERE, REASON_CALLBACK},
	{"ssl_ca", NOWHERE, REASON_CALLBACK},
	{"*_cb", NOWHERE, REASON_CALLBACK},

	/* secrets and files */
	{"sasl.password", FILE_ONLY, REASON_SECRET},
	{"ssl.key.password", FILE_ONLY, REASON_SECRET},
	{"ssl.keystore.password", FILE_ONLY, REASON_SECRET},
	{"ssl.key.pem", FILE_ONLY, REASON_SECRET},
	{"ssl.certificate.pem", FILE_ONLY, "it belongs to the key"},
	{"ssl.ca.pem", FILE_ONLY, "it decides whom to trust"},
	{"https.ca.pem", FILE_ONLY, "it decides whom to trust"},
	{"ssl.key.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.certificate.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.ca.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.crl.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.keystore.location", FILE_ONLY, REASON_READS_FILE},
	{"https.ca.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.ca.certificate.stores", FILE_ONLY, "it decides whom to trust"},
	{"sasl.kerberos.keytab", FILE_ONLY, REASON_READS_FILE},
	{"sasl.kerberos.principal", FILE_ONLY, "it becomes part of a shell command"},
	{"sasl.oauthbearer.*", FILE_ONLY, REASON_CALLS_OUT},

	/* security without secrets */
	{"security.protocol", ANYWHERE},
	{"sasl.mechanism", ANYWHERE},
	{"sasl.mechanisms", ANYWHERE},
	{"sasl.username", ANYWHERE},
	{"sasl.kerberos.service.name", ANYWHERE},
	{"sasl.kerberos.min.time.before.relogin", ANYWHERE},
	{"ssl.cipher.suites", ANYWHERE},
	{"ssl.curves.list", ANYWHERE},
	{"ssl.sigalgs.list", ANYWHERE},
	{"ssl.endpoint.identification.algorithm", ANYWHERE},
	{"enable.ssl.certificate.verification", ANYWHERE},

	/* tuning */
	{"client.id", ANYWHERE},
	{"client.rack", ANYWHERE},
	{"client.dns.lookup", ANYWHERE},
	{"compression.codec", ANYWHERE},
	{"compression.type", ANYWHERE},
	{"compression.level", ANYWHERE},
	{"linger.ms", ANYWHERE},
	{"queue.buffering.max.ms", ANYWHERE},
	{"queue.buffering.backpressure.threshold", ANYWHERE},
	{"batch.size", ANYWHERE},
	{"batch.num.messages", ANYWHERE},
	{"message.copy.max.bytes", ANYWHERE},
	{"receive.message.max.bytes", ANYWHERE},
	{"request.timeout.ms", ANYWHERE},
	{"retry.backoff.ms", ANYWHERE},
	{"retry.backoff.max.ms", ANYWHERE},
	{"reconnect.backoff.ms", ANYWHERE},
	{"reconnect.backoff.max.ms", ANYWHERE},
	{"reconnect.backoff.jitter.ms", ANYWHERE},
	{"connections.max.idle.ms", ANYWHERE},
	{"socket.*.bytes", ANYWHERE},
	{"socket.*.ms", ANYWHERE},
	{"socket.keepalive.enable", ANYWHERE},
	{"socket.nagle.disable", ANYWHERE},
	{"socket.max.fails", ANYWHERE},
	{"broker.address.ttl", ANYWHERE},
	{"broker.address.family", ANYWHERE},
	{"metadata.max.age.ms", ANYWHERE},
	{"metadata.recovery.*", ANYWHERE},
	{"topic.metadata.refresh.*", ANYWHERE},
	{"topic.metadata.propagation.max.ms", ANYWHERE},
	{"allow.auto.create.topics", ANYWHERE},
	{"enable.metrics.push", ANYWHERE},
	{"api.version.request.timeout.ms", ANYWHERE},
	{"log_level", ANYWHERE},
	{"log.connection.close", ANYWHERE},
	{"log.thread.name", ANYWHERE},
	{"debug", ANYWHERE},
};

static const PropertyRule *
find_rule(const char *name)
{
	for (size_t i = 0; i < sizeof(property_rules) / sizeof(property_rules[0]); i++)
	{
		if (fnmatch(property_rules[i].pattern, name, 0) == 0)
			return &property_rules[i];
	}
	return NULL;
}

/* Whether value is one of "a|b|c". */
static bool
is_fixed_value(const char *fixed, const char *value)
{
	size_t		length = strlen(value);

	while (fixed != NULL)
	{
		size_t		n = strcspn(fixed, "|");

		if (n == length && strncmp(fixed, value, n) == 0)
			return true;
		fixed = (fixed[n] == '|') ? fixed + n + 1 : NULL;
	}
	return false;
}

static bool
is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\f' || c == '\v';
}

/* Cut white space from both ends, in place. */
static char *
trim(char *text)
{
	size_t		length;

	while (is_space(*text))
		text++;
	length = strlen(text);
	while (length > 0 && is_space(text[length - 1]))
		length--;
	text[length] = '\0';
	return text;
}

static bool
is_property_name(const char *name)
{
	if (*name == '\0')
		return false;
	return name[strspn(name, "abcdefghijklmnopqrstuvwxyz"
					   "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] == '\0';
}

/* Set one property that a text names, if that text may. */
static bool
set_property(rd_kafka_conf_t *conf, const char *name, const char *value,
			 bool from_file, char *reason, size_t reason_size)
{
	const PropertyRule *rule = find_rule(name);
	char		ignored[512];
	rd_kafka_conf_res_t result;

	if (rule == NULL)
	{
		snprintf(reason, reason_size,
				 "property \"%s\" is not among those that can be set", name);
		return false;
	}
	if (rule->place == NOWHERE && !is_fixed_value(rule->fixed, value))
	{
		snprintf(reason, reason_size, "property \"%s\" cannot be set: %s",
				 name, rule->reason);
		return false;
	}
	if (rule->place == FILE_ONLY && !from_file)
	{
		snprintf(reason, reason_size,
				 "property \"%s\" can be set in outbox_kafka.config_file only: %s",
				 name, rule->reason);
		return false;
	}

	result = rd_kafka_conf_set(conf, name, value, ignored, sizeof(ignored));
	explicit_bzero(ignored, sizeof(ignored));
	if (result == RD_KAFKA_CONF_UNKNOWN)
		snprintf(reason, reason_size,
				 "property \"%s\" is not known to librdkafka %s",
				 name, rd_kafka_version_str());
	else if (result != RD_KAFKA_CONF_OK)
		snprintf(reason, reason_size,
				 "librdkafka %s does not take this value of property \"%s\"",
				 rd_kafka_version_str(), name);
	return result == RD_KAFKA_CONF_OK;
}

/*
 * Set what a text names: entries between separators, '=' after the name. The
 * text is cut up in place. Names are shown in the reason only when they look
 * like one: a value in the wrong place must not be.
 */
static bool
set_properties(rd_kafka_conf_t *conf, char *text, char separator,
			   bool from_file, char *reason, size_t reason_size)
{
	int			number = 0;

	while (text != NULL)
	{
		char	   *next = strchr(text, separator);
		char	   *entry;
		char	   *value;

		number++;
		if (next != NULL)
			*next++ = '\0';
		entry = trim(text);
		text = next;
		if (*entry == '\0' || (from_file && *entry == '#'))
			continue;

		value = strchr(entry, '=');
		if (value != NULL)
		{
			*value++ = '\0';
			entry = trim(entry);
			value = trim(value);
		}
		if (value == NULL || !is_property_name(entry))
		{
			snprintf(reason, reason_size, "%s %d is not of the form name=value",
					 from_file ? "line" : "entry", number);
			return false;
		}
		if (!set_property(conf, entry, value, from_file, reason, reason_size))
			return false;
	}
	return true;
}

/*
 * A property of ours. Those that an older or newer librdkafka may not have are
 * optional.
 */
static bool
set_default(rd_kafka_conf_t *conf, const char *name, const char *value,
			bool optional, char *reason, size_t reason_size)
{
	char		text[256];

	if (rd_kafka_conf_set(conf, name, value, text, sizeof(text)) == RD_KAFKA_CONF_OK ||
		optional)
		return true;
	snprintf(reason, reason_size, "librdkafka %s: %s", rd_kafka_version_str(), text);
	return false;
}

static bool
set_defaults(rd_kafka_conf_t *conf, const KafkaProducerConfig *config,
			 char *reason, size_t reason_size)
{
	int64_t		messages = 2 * (int64_t) config->max_in_flight + SPARE_MESSAGES;
	int64_t		kilobytes = 2 * (int64_t) config->max_in_flight_kb + SPARE_KILOBYTES;
	char		messages_text[32];
	char		kilobytes_text[32];
	bool		transactional = config->transactional_id != NULL;

	snprintf(messages_text, sizeof(messages_text), "%lld",
			 (long long) (messages < 10000000 ? messages : 10000000));
	snprintf(kilobytes_text, sizeof(kilobytes_text), "%lld",
			 (long long) (kilobytes < 2097151 ? kilobytes : 2097151));

	{
		const struct
		{
			const char *name;
			const char *value;
			bool		optional;
		}			defaults[] = {
			/* the promises */
			{"acks", "all", false},
			{"enable.idempotence", "true", false},
			/* an error ends a transaction, with all that would follow a gap */
			{"enable.gapless.guarantee", transactional ? "false" : "true", false},
			{"message.timeout.ms", "0", false},
			/* publish() has checked the size; the broker has the last word */
			{"message.max.bytes", "1000000000", false},
			/* the relay's own bounds come first */
			{"queue.buffering.max.messages", messages_text, false},
			{"queue.buffering.max.kbytes", kilobytes_text, false},

			/*
			 * a message that is there is sent at once, or full batches are; a
			 * transaction's last ones are waited for
			 */
			{"linger.ms", !config->bulk ? "0" : transactional ? "5" : "20", false},
			{"socket.nagle.disable", "true", false},
			/* a broker that is gone is noticed, one that is back is used */
			{"socket.keepalive.enable", "true", false},
			{"reconnect.backoff.ms", "50", false},
			{"reconnect.backoff.max.ms", "500", false},

			/*
			 * so long a transaction waits for the last one's markers, each
			 * time
			 */
			{"retry.backoff.ms", transactional ? "2" : "20", false},
			{"retry.backoff.max.ms", "1000", true},
			/* answers to a producer are small: bounds what a broker can send */
			{"receive.message.max.bytes", RECEIVE_MAX_BYTES, false},
			/* the default since librdkafka 2.0; it may be built without TLS */
			{"ssl.endpoint.identification.algorithm", "https", true},
			/* log lines are events, taken by our own thread */
			{"log.queue", "true", false},
			/* what the broker's operator sees */
			{"client.id", config->client_id, false},
			{"client.software.name", "outbox_kafka", true},
			{"client.software.version", rd_kafka_version_str(), true},
			{"bootstrap.servers", config->bootstrap_servers, false},
		};

		for (size_t i = 0; i < sizeof(defaults) / sizeof(defaults[0]); i++)
		{
			if (!set_default(conf, defaults[i].name, defaults[i].value,
							 defaults[i].optional, reason, reason_size))
				return false;
		}
	}
	return !transactional ||
		(set_default(conf, "transactional.id", config->transactional_id, false,
					 reason, reason_size) &&
		 set_default(conf, "transaction.timeout.ms", TRANSACTION_TIMEOUT_MS, false,
					 reason, reason_size));
}

/*
 * Whether only the server's user and root can have written an open file and
 * only they, or a group that root chose, can read it: the rule PostgreSQL has
 * for private keys.
 */
static bool
is_private_file(const struct stat *st)
{
	if (st->st_uid == geteuid())
		return (st->st_mode & (S_IRWXG | S_IRWXO)) == 0;
	return st->st_uid == 0 &&
		(st->st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) == 0;
}

/*
 * The content of config_file, terminated, or NULL with the reason. The checks
 * look at the file that was opened, so links may lead to it.
 */
static char *
read_config_file(const char *path, char *reason, size_t reason_size)
{
	int			fd;
	struct stat st;
	char	   *text = NULL;
	size_t		length = 0;
	ssize_t		n;

	/* nonblocking: opening a pipe must not wait for its writer */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
	{
		snprintf(reason, reason_size, "could not open file \"%s\": %s",
				 path, strerror(errno));
		return NULL;
	}
	if (fstat(fd, &st) != 0)
		snprintf(reason, reason_size, "could not stat file \"%s\": %s",
				 path, strerror(errno));
	else if (!S_ISREG(st.st_mode))
		snprintf(reason, reason_size, "\"%s\" is not a regular file", path);
	else if (!is_private_file(&st))
		snprintf(reason, reason_size,
				 "file \"%s\" must be owned by the server's user with permissions 0600 or less, "
				 "or by root with 0640 or less", path);
	else if (st.st_size > CONFIG_FILE_MAX_SIZE)
		snprintf(reason, reason_size, "file \"%s\" is larger than %d bytes",
				 path, CONFIG_FILE_MAX_SIZE);
	else if ((text = malloc(CONFIG_FILE_MAX_SIZE + 1)) == NULL)
		snprintf(reason, reason_size, "out of memory");
	else
	{
		while ((n = read(fd, text + length, CONFIG_FILE_MAX_SIZE - length)) > 0)
			length += (size_t) n;
		text[length] = '\0';
		if (n < 0)
			snprintf(reason, reason_size, "could not read file \"%s\": %s",
					 path, strerror(errno));
		else if (memchr(text, '\0', length) != NULL)
			snprintf(reason, reason_size, "file \"%s\" is not a text file", path);
		else
		{
			close(fd);
			return text;
		}
		explicit_bzero(text, length);
		free(text);
		text = NULL;
	}
	close(fd);
	return text;
}

static bool
set_from_text(rd_kafka_conf_t *conf, const char *properties,
			  char *reason, size_t reason_size)
{
	char	   *text = strdup(properties);
	bool		ok;

	if (text == NULL)
	{
		snprintf(reason, reason_size, "out of memory");
		return false;
	}
	ok = set_properties(conf, text, ';', false, reason, reason_size);
	free(text);
	return ok;
}

static bool
set_from_file(rd_kafka_conf_t *conf, const char *path,
			  char *reason, size_t reason_size)
{
	char	   *text = read_config_file(path, reason, reason_size);
	char		line_reason[KAFKA_ERROR_LENGTH / 2];
	bool		ok;

	if (text == NULL)
		return false;
	ok = set_properties(conf, text, '\n', true, line_reason, sizeof(line_reason));
	if (!ok)
		snprintf(reason, reason_size, "file \"%s\": %s", path, line_reason);
	explicit_bzero(text, CONFIG_FILE_MAX_SIZE);
	free(text);
	return ok;
}

/*
 * OAUTHBEARER works where librdkafka fetches the tokens itself, in a thread of
 * its own: nothing here could make one up.
 */
static bool
check_oauthbearer(rd_kafka_conf_t *conf, char *reason, size_t reason_size)
{
	char		value[64];
	size_t		size = sizeof(value);

	if (rd_kafka_conf_get(conf, "sasl.mechanisms", value, &size) != RD_KAFKA_CONF_OK ||
		strcmp(value, "OAUTHBEARER") != 0)
		return true;
	size = sizeof(value);
	if (rd_kafka_conf_get(conf, "sasl.oauthbearer.method", value, &size) == RD_KAFKA_CONF_OK &&
		strcmp(value, "oidc") == 0)
	{
		rd_kafka_conf_enable_sasl_queue(conf, 1);
		return true;
	}
	snprintf(reason, reason_size,
			 "OAUTHBEARER needs property \"sasl.oauthbearer.method\" to be oidc, "
			 "and a librdkafka built with it");
	return false;
}

void
kafka_conf_batching(const rd_kafka_conf_t *conf, int *batch_size, bool *compresses)
{
	char		value[64];
	size_t		size = sizeof(value);

	*batch_size = INT_MAX;
	if (rd_kafka_conf_get(conf, "batch.size", value, &size) == RD_KAFKA_CONF_OK)
		*batch_size = (int) strtol(value, NULL, 10);
	size = sizeof(value);
	*compresses = rd_kafka_conf_get(conf, "compression.codec", value, &size) != RD_KAFKA_CONF_OK ||
		strcmp(value, "none") != 0;
}

/* Batches of a size that somebody chose are made smaller, never larger. */
static bool
bound_batches(rd_kafka_conf_t *conf, int max_bytes, char *reason, size_t reason_size)
{
	int			batch_size;
	bool		compresses;
	char		value[32];

	kafka_conf_batching(conf, &batch_size, &compresses);
	if (max_bytes == 0 || batch_size <= max_bytes)
		return true;
	snprintf(value, sizeof(value), "%d", max_bytes);
	return set_default(conf, "batch.size", value, false, reason, reason_size);
}

rd_kafka_conf_t *
kafka_conf_build(const KafkaProducerConfig *config,
				 char *reason, size_t reason_size)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	if (set_defaults(conf, config, reason, reason_size) &&
		set_from_text(conf, config->properties, reason, reason_size) &&
		(config->config_file[0] == '\0' ||
		 set_from_file(conf, config->config_file, reason, reason_size)) &&
		bound_batches(conf, config->max_batch_bytes, reason, reason_size) &&
		check_oauthbearer(conf, reason, reason_size))
		return conf;
	rd_kafka_conf_destroy(conf);
	return NULL;
}

const char *
kafka_library_risk(void)
{
	static char text[KAFKA_ERROR_LENGTH];
	int			version = rd_kafka_version();

	if (version < 0x020100ff || version >= 0x020a00ff)
		return NULL;
	snprintf(text, sizeof(text),
			 "librdkafka %s can crash, and with it the server, on a broker's answer (its issue 4907)",
			 rd_kafka_version_str());
	return text;
}

const char *
kafka_conf_check(const char *properties)
{
	static char reason[KAFKA_ERROR_LENGTH];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	bool		ok;

	ok = set_from_text(conf, properties, reason, sizeof(reason));
	rd_kafka_conf_destroy(conf);
	return ok ? NULL : reason;
}
