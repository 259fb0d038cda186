/*
 * common.h
 *	  What the benchmark's two librdkafka programs share: options, time and
 *	  dying.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdint.h>

#include <librdkafka/rdkafka.h>

/* Print "<program>: <text>" and exit 1. */
extern void die(const char *format,...) __attribute__((noreturn, format(printf, 1, 2)));

/* malloc and realloc that die instead of returning NULL. */
extern void *xmalloc(size_t size);
extern void *xrealloc(void *old, size_t size);

/* Wall-clock time in nanoseconds since 1970: the clock PostgreSQL uses too. */
extern int64_t now_ns(void);

/* Set a librdkafka property given as "name=value", or die. */
extern void set_property(rd_kafka_conf_t *conf, const char *assignment);

/* The same for name and value, or die. */
extern void set_property_value(rd_kafka_conf_t *conf, const char *name, const char *value);

/* A positive whole number, or die naming the option. */
extern long positive(const char *text, const char *option);

/* How many partitions the topic has; dies if the broker does not know it. */
extern int	partition_count(rd_kafka_t *rk, const char *topic);

#endif							/* BENCH_COMMON_H */
