/*
 * relay_isolation.h
 *	  The second producer, for what may be refused.
 */
#ifndef OUTBOX_RELAY_ISOLATION_H
#define OUTBOX_RELAY_ISOLATION_H

#include "relay_internal.h"

typedef struct RelayIsolation RelayIsolation;

extern RelayIsolation *isolation_create(MemoryContext context);

/*
 * The producer, made if there is none; NULL when it cannot be made, or has
 * failed and its last reports are awaited.
 */
extern KafkaProducer *isolation_producer(Relay *relay, TimestampTz now);

/* The topics as it knows them. */
extern RelayTopics *isolation_topics(const Relay *relay);

/* Take what it has to say; end it when it failed, or when nobody needs it. */
extern void isolation_serve(Relay *relay, TimestampTz now);

/* When that has to be called again, other than after reports; 0: never. */
extern TimestampTz isolation_due(const Relay *relay);

extern void isolation_close(Relay *relay);

/*
 * It is of no use any more: end it when it has reported what it has to, and make
 * another one after a pause. False: that is under way.
 */
extern bool isolation_lose(Relay *relay, const char *text, TimestampTz now);

#endif							/* OUTBOX_RELAY_ISOLATION_H */
