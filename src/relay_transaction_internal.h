/*
 * relay_transaction_internal.h
 *	  Kafka transactions, shared by the files relay_transaction*.c and nobody
 *	  else.
 */
#ifndef OUTBOX_RELAY_TRANSACTION_INTERNAL_H
#define OUTBOX_RELAY_TRANSACTION_INTERNAL_H

#include "relay_held.h"
#include "relay_transaction.h"

typedef enum TransactionPhase
{
	TRANSACTION_CLOSED,			/* no producer */
	TRANSACTION_OPENING,		/* fences, reads back */
	TRANSACTION_RESTATING,		/* says what is to be thought of the position */
	TRANSACTION_READY,			/* nothing is under way */
	TRANSACTION_BEGINNING,		/* begun, the coordinator is waited for */
	TRANSACTION_BEGUN,			/* it takes records at once, has none yet */
	TRANSACTION_SENDING,		/* begun, records are being added */
	TRANSACTION_ENDING,			/* complete, reports are waited for */
	TRANSACTION_COMMITTING
} TransactionPhase;

/* Whose transaction, or definition, the producer's present one is. */
typedef enum TransactionOwner
{
	OWNER_NONE,
	OWNER_MAIN,
	OWNER_HELD,
	OWNER_PARKED
} TransactionOwner;

typedef struct RelayTransaction
{
	int			number;
	KafkaProducer *producer;
	TransactionPhase phase;
	TransactionOwner owner;
	RelayHeld  *held;			/* if it is one's */
	TimestampTz since;			/* owner since then, or phase SENDING */
	TransactionState state;		/* as it stands on disk, or soon will */
	TransactionState next;		/* being written */
	RowPlace	place;
	int			sent;
	int64		sent_id;		/* of parked messages, the highest */
	int64		position;		/* that was sent along last */
	TimestampTz committed_at;	/* by this producer, or 0 */
	bool		empty;			/* none was sent in the one being committed */
	int			limit;
	bool		lost_idle;		/* the last producer failed without need */
	char		broken[KAFKA_ERROR_LENGTH]; /* it failed for this reason, or
											 * "" */
	bool		positioned;		/* the position is part of it */
	bool		wrote;			/* this process has committed one */
	bool		fenced;			/* somebody has taken its right to write */
	bool		unsure;			/* it may not be the one to send */
	KafkaTransactionResult opened;	/* what was read back, if RESTATING */
	bool		dispute;		/* if so: this is what is being said */
	int			disputes;		/* how often it was tried */
	XLogRecPtr	needs;			/* to be on disk, and on the standby, before
								 * the commit; or invalid */
} RelayTransaction;

/* A lane to be held when the main transaction has ended. */
typedef struct PendingHold
{
	RelayTopic *topic;
	int			partition;
	int			partitions;
	HeldReason	reason;
	char		error[HELD_ERROR_LENGTH];
} PendingHold;

struct RelayTransactions
{
	RelayTransaction of[TRANSACTIONS];
	bool		both_opened;	/* once, by this process */
	bool		tentative;		/* the main cursor's batch has parked rows */
	bool		claimed;		/* what is found now is as it should be */
	List	   *pending;		/* of PendingHold */
	bool		give_up;		/* the main transaction, for it */
};

/* Of whose producer a cursor's messages are (held NULL: the main one's). */
extern RelayTransaction *relay_transaction_of(const Relay *relay, const RelayHeld *held);

/* A nonce as text; whether a window's batch was defined with this one. */
extern void relay_transaction_nonce_text(const pg_uuid_t *nonce, char *text);
extern bool relay_transaction_has_nonce(const Window *window, const char *text);

/* The producer has been opened: take over what Kafka knows. */
extern void relay_transaction_finish_opening(Relay *relay, RelayTransaction *t,
											 const KafkaTransactionResult *result);

/* A call made in the phase TRANSACTION_RESTATING has ended well. */
extern void relay_transaction_restate_further(Relay *relay, RelayTransaction *t,
											  KafkaTransactionCall call);

/* Send a position along, with the nonce that it counts in. */
extern void relay_transaction_send_position(RelayTransaction *t, int64 position,
											const char *nonce);

/* Hold the lanes that wait for it, if nothing is under way. */
extern void relay_transaction_hold_pending(Relay *relay, TimestampTz now);

#endif							/* OUTBOX_RELAY_TRANSACTION_INTERNAL_H */
