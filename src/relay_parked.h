/*
 * relay_parked.h
 *	  Messages set aside: outbox.parked_message, as the relay uses it.
 */
#ifndef OUTBOX_RELAY_PARKED_H
#define OUTBOX_RELAY_PARKED_H

#include "cursor.h"
#include "relay_internal.h"

typedef struct ParkedMessages ParkedMessages;

extern ParkedMessages *parked_create(MemoryContext context);

/*
 * Read again which keys have parked messages: at the start, and when somebody
 * changed the table (retry, discard, adopt). In a transaction.
 */
extern void parked_load(ParkedMessages *parked);

/* Whether a message has to queue behind a parked one of its topic and key. */
extern bool parked_blocks(const ParkedMessages *parked, const char *topic,
						  const void *key, size_t key_length);

/*
 * Put a copy of a row aside, in the transaction that reads it. reason is
 * "refused" (error says what the broker said) or "behind".
 */
extern void parked_add(ParkedMessages *parked, const CursorRow *row,
					   const char *topic, const char *reason, const char *error);

/* The same for a row that another database has to send. */
extern void parked_add_restored(ParkedMessages *parked, const CursorRow *row);

/* When the next one is to be tried; 0: none is. */
extern TimestampTz parked_due(const ParkedMessages *parked);

/* Messages of it that are in the producer's hands. */
extern int	parked_in_flight(const ParkedMessages *parked);

/* Send those that are due, if none is in flight. Runs transactions. */
extern void parked_send(Relay *relay, TimestampTz now);

/* A report of one: tag as PARKED_TAG says. Must not raise an error. */
extern void parked_delivered(ParkedMessages *parked, uint64 tag,
							 const KafkaDelivery *delivery);

/*
 * Whether all reports have come. Then the outcome has to be stored by
 * parked_finish(), which runs a transaction.
 */
extern bool parked_is_finished(const ParkedMessages *parked);
extern void parked_finish(Relay *relay, TimestampTz now);

/* The producer is gone: what it did not report is to be sent again. */
extern void parked_forget_producer(ParkedMessages *parked);

/* It is gone, and its transaction with it: nothing of it was delivered. */
extern void parked_forget_delivered(ParkedMessages *parked);

/* Those up to that id were delivered by another producer. In a transaction. */
extern void parked_delete(ParkedMessages *parked, const int64 *ids, int count, int64 upto);

/* Whether all that were sent are acknowledged. */
extern bool parked_are_delivered(const ParkedMessages *parked);

/* Tags of parked messages have this bit, others do not. */
#define PARKED_TAG UINT64CONST(0x4000000000000000)

#endif							/* OUTBOX_RELAY_PARKED_H */
