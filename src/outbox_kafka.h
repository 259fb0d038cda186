/*
 * outbox_kafka.h
 *	  Names that every file of the extension shares.
 *
 * Nothing from the server is included here, so that each file decides for
 * itself what it depends on.
 */
#ifndef OUTBOX_KAFKA_H
#define OUTBOX_KAFKA_H

#define OUTBOX_EXTENSION "outbox_kafka"
#define OUTBOX_LIBRARY "outbox_kafka"
#define OUTBOX_SCHEMA "outbox"
#define INBOX_SCHEMA "inbox"

/* The SQL definitions this library can serve; see catalog_get() */
#define OUTBOX_SQL_VERSION "0.1.0"

/* The ring of outbox.message_0 .. outbox.message_<OUTBOX_SEGMENTS - 1> */
#define OUTBOX_SEGMENTS 8

/* Kafka's rule for topic names: [a-zA-Z0-9._-]{1,249}, not "." or ".." */
#define OUTBOX_TOPIC_MAX_LENGTH 249

#endif							/* OUTBOX_KAFKA_H */
