/*
 * message_check.h
 *	  What a message has to be before it is stored, checked in the
 *	  publisher's transaction, so that no message is stored that can never be
 *	  sent.
 *
 * Every function raises an error when the check fails. No error quotes a key,
 * a payload or the value of a header.
 */
#ifndef OUTBOX_MESSAGE_CHECK_H
#define OUTBOX_MESSAGE_CHECK_H

#include "access/tupdesc.h"
#include "utils/jsonb.h"

/* The fields a publisher gives, as they would be stored. */
typedef struct MessageFields
{
	const char *topic;			/* NULL: SQL NULL; not terminated */
	int			topic_length;
	bool		has_key;
	Size		key_length;		/* bytes */
	bool		has_payload;	/* false: a tombstone */
	Size		payload_length; /* bytes */
	Jsonb	   *headers;		/* or NULL */
	bool		has_partition;
	int32		partition;
	const char *correlation_id; /* or NULL; not terminated; server encoding */
	int			correlation_id_length;
} MessageFields;

#define CORRELATION_ID_MAX_LENGTH 1024

/*
 * What the record's limit leaves for the headers that the relay adds, beside
 * the topic's name, the source and the correlation id.
 */
#define RELAY_HEADERS_ALLOWANCE 256

/* That this session may write at all; what is named in the error. */
extern void message_check_writable(const char *what);

/* That the columns are those of message.h: a changed table is an error. */
extern void message_check_columns(TupleDesc desc);

/* Kafka's rule: 1 to 249 of [a-zA-Z0-9._-], neither "." nor "..". */
extern void message_check_topic(const char *topic, int length);

/*
 * An object of string, null, or array of those; no empty name, none of the
 * names that only the relay writes. Returns the bytes they take in a record at
 * most; *least: at least.
 */
extern Size message_check_headers(Jsonb *headers, Size *least);

/*
 * All of the above and the rest: tombstone, partition, correlation id, size
 * (but not the limit of the topic, topic_limit.h). Returns the bytes of a batch
 * that holds nothing but this record, as far as they are certain: without the
 * headers that the relay adds, since its settings decide on them.
 */
extern Size message_check(const MessageFields *fields);

/*
 * The bytes of text in UTF-8, which is what goes to Kafka: text itself when
 * the server encoding is UTF-8 or the text already is, else converted in the
 * current context. An error if it has a character that UTF-8 has not.
 */
extern char *message_to_utf8(char *text, int length, int *utf8_length);

#endif							/* OUTBOX_MESSAGE_CHECK_H */
