/*
 * relay_transaction.h
 *	  Exactly once into Kafka (outbox_kafka.delivery = exactly_once): the
 *	  relay's Kafka transactions. See relay_transaction.c.
 */
#ifndef OUTBOX_RELAY_TRANSACTION_H
#define OUTBOX_RELAY_TRANSACTION_H

#include "held.h"
#include "relay_internal.h"
#include "transaction_state.h"

/* The producers: each has transactions of its own. */
#define TRANSACTION_MAIN 0
#define TRANSACTION_SECOND 1	/* relay_isolation.c */
#define TRANSACTIONS 2

/* Read what the last relay left. In a transaction. */
extern void relay_transactions_load(Relay *relay, const OutboxCatalog *catalog);

/* This database was copied: what it knows is another one's. In a transaction. */
extern bool relay_transactions_reset(const OutboxCatalog *catalog);

/* Follow the setting. There is no producer. */
extern void relay_transactions_configure(Relay *relay);

/*
 * Whether somebody has found a conflict, and outbox.claim() has ended it. In a
 * transaction.
 */
extern void relay_transactions_read_conflict(Relay *relay);

/* The transactional.id of a producer, palloc'd; NULL: at least once. */
extern char *relay_transaction_id(const Relay *relay, int number);

/* A producer was made; it is gone, and with it what was not committed. */
extern void relay_transaction_opened(Relay *relay, int number, KafkaProducer *producer);
extern void relay_transaction_closed(Relay *relay, int number);

/* It has fenced its predecessor and knows what that one committed. */
extern bool relay_transaction_is_open(const Relay *relay, int number);

/* How many ms to wait at least before a producer that was lost is made anew. */
extern int	relay_transaction_patience(const Relay *relay);

/* Nothing of it is under way. */
extern bool relay_transaction_is_idle(const Relay *relay, int number);

/* Whether a cursor (held NULL: the main one) may read and send now. */
extern bool relay_transaction_may_read(const Relay *relay, const struct RelayHeld *held);

/*
 * To be called before the main cursor reads. False: a transaction is being
 * begun, come again when the producer reports.
 */
extern bool relay_transaction_prepare(Relay *relay, TimestampTz now);

/* A transaction that has records has to be read on, whatever else is asked for. */
extern bool relay_transaction_has_begun(const Relay *relay);

/* It is complete, and will be committed or not without being read on. */
extern bool relay_transaction_is_ending(const Relay *relay);

/* Whether the batch that a cursor is to send is defined. */
extern bool relay_transaction_is_defined(const Relay *relay, const struct RelayHeld *held);

/*
 * Define it, in the caller's transaction, and note after its commit that it is
 * defined. False: a lock was not to be had.
 */
extern bool relay_transaction_define(Relay *relay, struct RelayHeld *held);
extern void relay_transaction_defined(Relay *relay, struct RelayHeld *held);

/* Parked messages: may some be chosen now, define these, they are. */
extern bool relay_transaction_may_choose(const Relay *relay);
extern bool relay_transaction_is_parked(const Relay *relay);
extern bool relay_transaction_define_parked(Relay *relay, const int64 *ids, int count);
extern void relay_transaction_defined_parked(Relay *relay);

/* Before a record is produced. False: it cannot be now. */
extern bool relay_transaction_begin(Relay *relay, const struct RelayHeld *held, TimestampTz now);
extern bool relay_transaction_begin_parked(Relay *relay, TimestampTz now);

/* One was. */
extern void relay_transaction_sent(Relay *relay, const struct RelayHeld *held);
extern void relay_transaction_sent_parked(Relay *relay, int64 id);

/* None can be any more: its producer is given up. */
extern void relay_transaction_broke(Relay *relay, const struct RelayHeld *held,
									const char *text);

/* Whether no more should be added to it. */
extern bool relay_transaction_is_full(const Relay *relay, const struct RelayHeld *held,
									  TimestampTz now);

/*
 * All of it was produced, up to this position: commit it when all is
 * acknowledged. Nothing was: that counts as done at once.
 */
extern void relay_transaction_complete(Relay *relay, struct RelayHeld *held);
extern void relay_transaction_complete_parked(Relay *relay);

/*
 * To be called when a transaction can be complete: the definition goes to disk
 * while the brokers answer.
 */
extern void relay_transaction_flush(Relay *relay);

/*
 * What the main cursor has passed over is done with when no transaction was
 * begun: nothing may wait for one to end that need not ever begin.
 */
extern void relay_transaction_settle(Relay *relay);

/* Some rows of it were parked, in a transaction that is committed. */
extern void relay_transaction_parked_some(Relay *relay, struct RelayHeld *held);

/* What has happened since: go on. Runs transactions. */
extern void relay_transaction_serve(Relay *relay, int number, TimestampTz now);

/* When to come again without a report, 0: there is no need to. */
extern TimestampTz relay_transaction_due(const Relay *relay);

/*
 * Hold a lane as soon as the transaction has ended: it is given up for that,
 * unless the lane is merely paused.
 */
extern bool relay_transaction_hold_later(Relay *relay, RelayTopic *topic, int partition,
										 HeldReason reason, const char *error);

/* Hold one now, with the number of partitions that its topic had. */
extern bool relay_transaction_hold_now(Relay *relay, RelayTopic *topic, int partition,
									   int partitions, HeldReason reason,
									   const char *error, TimestampTz now);

/* A lane is not held any more. */
extern void relay_transaction_forget_held(Relay *relay, const struct RelayHeld *held);

#endif							/* OUTBOX_RELAY_TRANSACTION_H */
