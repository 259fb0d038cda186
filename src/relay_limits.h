/*
 * relay_limits.h
 *	  How large a batch the broker takes, topic by topic: see relay_limits.c.
 */
#ifndef OUTBOX_RELAY_LIMITS_H
#define OUTBOX_RELAY_LIMITS_H

#include "relay_internal.h"

typedef struct RelayLimits RelayLimits;

extern RelayLimits *limits_create(MemoryContext context);

/* Read what the last relay left. In a transaction. */
extern void limits_load(Relay *relay, const OutboxCatalog *catalog);

/*
 * relay_topic_resolve(), and what is known of the topic's limit by the producer
 * that is to send.
 */
extern bool limits_resolve(Relay *relay, RelayTopic *topic, KafkaProducer *producer,
						   TimestampTz now, KafkaError *error);

/* The same for all topics of the main producer that are expected. */
extern void limits_resolve_expected(Relay *relay, TimestampTz now);

/*
 * Whether to wait a little for the broker to tell the limit of a topic that is
 * just being resolved; asks for it. If so, relay->retry_at says how long.
 */
extern bool limits_await(Relay *relay, const RelayTopic *topic, TimestampTz now);

/* A batch of the topic was refused for its size. */
extern void limits_doubt(Relay *relay, const char *topic);

/* Somebody changed something: ask for all of them now. */
extern void limits_ask_for_all(Relay *relay);

/* The main producer was made, or is gone. */
extern void limits_producer_opened(Relay *relay);
extern void limits_producer_closed(Relay *relay);

/* Handler for the main producer's events; raises no error. */
extern void limits_answer(void *arg, const KafkaTopicLimit *limit);

/* Ask, and store what is new, if that is due; when it is next, 0: it is not. */
extern void limits_work(Relay *relay, TimestampTz now);
extern TimestampTz limits_due(const Relay *relay, TimestampTz now);

/* No batch should be larger; 0: as large as it is configured. */
extern int	limits_batch_size(const Relay *relay);

/* Whether the main producer's batches are as they should be. */
extern bool limits_batches_fit(const Relay *relay);

#endif							/* OUTBOX_RELAY_LIMITS_H */
