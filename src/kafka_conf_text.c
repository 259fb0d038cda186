/*
 * kafka_conf_text.c
 *	  Properties of librdkafka from text.
 *
 * Two texts can set properties: outbox_kafka.producer_config or
 * consumer_config, which anybody who may read settings can see, and the file
 * outbox_kafka.config_file, which is for producers and consumers alike. Where
 * both name a property the file wins, so that a setting made in SQL cannot turn
 * off the encryption the file asks for. kafka_conf_rules.c says which
 * properties there are.
 *
 * Nothing here depends on the server, and no message holds a value: librdkafka
 * repeats a value it refuses, so its texts are not passed on.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* explicit_bzero */
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kafka.h"
#include "kafka_conf_text.h"

#define CONFIG_FILE_MAX_SIZE (64 * 1024)

bool
kafka_conf_defaults(rd_kafka_conf_t *conf, const PropertyDefault *defaults, size_t count,
					char *reason, size_t reason_size)
{
	char		text[256];

	for (size_t i = 0; i < count; i++)
	{
		if (rd_kafka_conf_set(conf, defaults[i].name, defaults[i].value,
							  text, sizeof(text)) == RD_KAFKA_CONF_OK ||
			defaults[i].optional)
			continue;
		snprintf(reason, reason_size, "librdkafka %s: %s", rd_kafka_version_str(), text);
		return false;
	}
	return true;
}

bool
kafka_conf_client_defaults(rd_kafka_conf_t *conf, const char *bootstrap_servers,
						   const char *client_id, char *reason, size_t reason_size)
{
	const PropertyDefault defaults[] = {
		{"socket.nagle.disable", "true", false},
		/* a broker that is gone is noticed, one that is back is used */
		{"socket.keepalive.enable", "true", false},
		{"reconnect.backoff.ms", "50", false},
		/* the default since librdkafka 2.0; it may be built without TLS */
		{"ssl.endpoint.identification.algorithm", "https", true},
		/* log lines are events, taken by our own thread */
		{"log.queue", "true", false},
		/* what the broker's operator sees */
		{"client.id", client_id, false},
		{"client.software.name", "outbox_kafka", true},
		{"client.software.version", rd_kafka_version_str(), true},
		{"bootstrap.servers", bootstrap_servers, false},
	};

	return kafka_conf_defaults(conf, defaults, sizeof(defaults) / sizeof(defaults[0]),
							   reason, reason_size);
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
set_property(rd_kafka_conf_t *conf, PropertyUser user, const char *name, const char *value,
			 bool from_file, char *reason, size_t reason_size)
{
	const PropertyRule *rule = kafka_conf_rule(name, user);
	bool		others = false;
	char		ignored[512];
	rd_kafka_conf_res_t result;

	/* the file is for all clients: what only the others have is theirs */
	if (rule == NULL && from_file)
	{
		rule = kafka_conf_rule(name, user == FOR_PRODUCER ? FOR_CONSUMER : FOR_PRODUCER);
		others = true;
	}

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

	if (others)
		return true;
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
set_properties(rd_kafka_conf_t *conf, PropertyUser user, char *text, char separator,
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
		if (!set_property(conf, user, entry, value, from_file, reason, reason_size))
			return false;
	}
	return true;
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
set_from_text(rd_kafka_conf_t *conf, PropertyUser user, const char *properties,
			  char *reason, size_t reason_size)
{
	char	   *text = strdup(properties);
	bool		ok;

	if (text == NULL)
	{
		snprintf(reason, reason_size, "out of memory");
		return false;
	}
	ok = set_properties(conf, user, text, ';', false, reason, reason_size);
	free(text);
	return ok;
}

static bool
set_from_file(rd_kafka_conf_t *conf, PropertyUser user, const char *path,
			  char *reason, size_t reason_size)
{
	char	   *text = read_config_file(path, reason, reason_size);
	char		line_reason[KAFKA_ERROR_LENGTH / 2];
	bool		ok;

	if (text == NULL)
		return false;
	ok = set_properties(conf, user, text, '\n', true, line_reason, sizeof(line_reason));
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

bool
kafka_conf_apply(rd_kafka_conf_t *conf, PropertyUser user,
				 const char *properties, const char *file,
				 char *reason, size_t reason_size)
{
	return set_from_text(conf, user, properties, reason, reason_size) &&
		(file[0] == '\0' || set_from_file(conf, user, file, reason, reason_size)) &&
		check_oauthbearer(conf, reason, reason_size);
}

const char *
kafka_conf_problem(PropertyUser user, const char *properties)
{
	static char reason[KAFKA_ERROR_LENGTH];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	bool		ok;

	ok = set_from_text(conf, user, properties, reason, sizeof(reason));
	rd_kafka_conf_destroy(conf);
	return ok ? NULL : reason;
}
