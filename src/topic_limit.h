/*
 * topic_limit.h
 *	  How large a message of a topic may be (max.message.bytes), as the broker
 *	  told the relay: outbox.topic_limit.
 */
#ifndef OUTBOX_TOPIC_LIMIT_H
#define OUTBOX_TOPIC_LIMIT_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "catalog.h"
#include "cursor.h"
#include "outbox_kafka.h"

/* A row of the table. */
typedef struct TopicLimit
{
	char		topic[OUTBOX_TOPIC_MAX_LENGTH + 3];
	int			bytes;
	bool		compressed;		/* the relay compresses: more may fit */
} TopicLimit;

/*
 * A message is about to be stored: an error if the broker would refuse it
 * whatever the relay does. least_bytes: see message_check(). Call it where
 * invalidations have just been accepted. Costs next to nothing for a message
 * that is smaller than the smallest limit.
 */
extern void topic_limit_check(const char *topic, int length, Size least_bytes);

/* ---- for the relay ---- */

/*
 * All rows, TopicLimit, in the current context. In a transaction. False: the
 * table is locked.
 */
extern bool topic_limit_read(const OutboxCatalog *catalog, CursorLocking locking,
							 List **limits);

/*
 * Write a row; bytes 0 deletes it. In a transaction. False: the table is
 * locked.
 */
extern bool topic_limit_write(const OutboxCatalog *catalog, const TopicLimit *limit);

#endif							/* OUTBOX_TOPIC_LIMIT_H */
