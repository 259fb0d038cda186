/*
 * common.c
 *	  See common.h.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common.h"

#define METADATA_TIMEOUT_MS 10000

void
die(const char *format,...)
{
	va_list		args;

	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

void *
xmalloc(size_t size)
{
	return xrealloc(NULL, size);
}

void *
xrealloc(void *old, size_t size)
{
	void	   *new = realloc(old, size);

	if (new == NULL)
		die("out of memory (%zu bytes)", size);
	return new;
}

int64_t
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

void
set_property_value(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char		error[512];

	if (rd_kafka_conf_set(conf, name, value, error, sizeof(error)) != RD_KAFKA_CONF_OK)
		die("%s", error);
}

void
set_property(rd_kafka_conf_t *conf, const char *assignment)
{
	const char *equals = strchr(assignment, '=');
	char		name[128];

	if (equals == NULL || (size_t) (equals - assignment) >= sizeof(name))
		die("not a property: \"%s\"", assignment);
	memcpy(name, assignment, equals - assignment);
	name[equals - assignment] = '\0';
	set_property_value(conf, name, equals + 1);
}

long
positive(const char *text, const char *option)
{
	char	   *end;
	long		value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || value <= 0)
		die("option %s needs a positive number, not \"%s\"", option, text);
	return value;
}

int
partition_count(rd_kafka_t *rk, const char *topic)
{
	rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, topic, NULL);
	const struct rd_kafka_metadata *metadata;
	rd_kafka_resp_err_t err;
	int			count;

	if (rkt == NULL)
		die("topic %s: %s", topic, rd_kafka_err2str(rd_kafka_last_error()));
	err = rd_kafka_metadata(rk, 0, rkt, &metadata, METADATA_TIMEOUT_MS);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("metadata of topic %s: %s", topic, rd_kafka_err2str(err));
	if (metadata->topic_cnt != 1 || metadata->topics[0].err != RD_KAFKA_RESP_ERR_NO_ERROR ||
		metadata->topics[0].partition_cnt == 0)
		die("the broker does not know topic %s", topic);
	count = metadata->topics[0].partition_cnt;
	rd_kafka_metadata_destroy(metadata);
	rd_kafka_topic_destroy(rkt);
	return count;
}
