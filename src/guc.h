/*
 * guc.h
 *	  The settings outbox_kafka.*, each with what an administrator decides
 *	  with it. Definitions and check hooks are in guc.c.
 *
 * Strings are never NULL; the empty string means "not set".
 */
#ifndef OUTBOX_GUC_H
#define OUTBOX_GUC_H

enum HeaderStyle
{
	HEADERS_CLOUDEVENTS,
	HEADERS_PLAIN,
	HEADERS_NONE
};

enum RecordTimestamp
{
	RECORD_TIMESTAMP_CREATED,
	RECORD_TIMESTAMP_SENT
};

/* Where to send: host:port, comma separated. Empty: the relay waits. */
extern char *guc_bootstrap_servers;

/* librdkafka producer properties, "k=v; k=v", from the allow-list only. */
extern char *guc_producer_config;

/* A properties file for what must not be seen in SQL: passwords, keys. */
extern char *guc_config_file;

/* Upper bound, in bytes, of one record (key + value + headers). */
extern int	guc_max_message_bytes;

/* How many messages may be unacknowledged; also bounds repeats after a crash. */
extern int	guc_max_in_flight;

/* The same bound in kilobytes of keys, values and headers. */
extern int	guc_max_in_flight_size;

/* Seconds a delivered message stays readable before its segment is emptied. */
extern int	guc_retention;

/* Megabytes after which publishing moves on to the next segment. */
extern int	guc_segment_size;

/* What the relay adds to a record's headers (enum HeaderStyle). */
extern int	guc_headers;

/* Which time a record carries (enum RecordTimestamp). */
extern int	guc_record_timestamp;

/* ce_source of CloudEvents. Empty: "/postgresql/<database>". */
extern char *guc_source;

enum BacklogPolicy
{
	BACKLOG_WARN,
	BACKLOG_REFUSE
};

/* Megabytes that messages may take on disk; 0: no limit. */
extern int	guc_max_backlog;

/* What publishing does beyond that (enum BacklogPolicy). */
extern int	guc_backlog_policy;

/* Send only what the synchronous standby has flushed. */
extern bool guc_wait_for_standby;

/* A file, not copied with the server, that names the databases that send. */
extern char *guc_identity_file;

/* How many databases of this server can have a relay at a time. */
extern int	guc_max_databases;

/* How many inbox workers this server can have at a time. */
extern int	guc_max_inbox_workers;

/* librdkafka consumer properties, "k=v; k=v", from the allow-list only. */
extern char *guc_consumer_config;

/* Seconds between looks for new topics and partitions. */
extern int	guc_metadata_refresh;

enum Delivery
{
	DELIVERY_AT_LEAST_ONCE,
	DELIVERY_EXACTLY_ONCE
};

/* Whether messages are sent in Kafka transactions (enum Delivery). */
extern int	guc_delivery;

/* A larger batch of messages is split into several of them. */
extern int	guc_max_transaction_messages;

/* Milliseconds that one call of a handler may take; 0: no limit. */
extern int	guc_handler_timeout;

/* Seconds that a decided confirmation is kept. */
extern int	guc_confirmation_retention;

/* Where a test lets the relay die, see fault.h. */
extern char *guc_fault_point;

extern void guc_define(void);

#endif							/* OUTBOX_GUC_H */
