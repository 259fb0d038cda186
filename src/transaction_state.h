/*
 * transaction_state.h
 *	  What is known of a producer's Kafka transactions, on disk:
 *	  outbox.relay_transaction.
 */
#ifndef OUTBOX_TRANSACTION_STATE_H
#define OUTBOX_TRANSACTION_STATE_H

#include "catalog.h"
#include "cursor.h"
#include "kafka_transaction.h"
#include "row_place.h"

/* As many parked messages can be in one transaction. */
#define TRANSACTION_PARKED 100

typedef struct TransactionState
{
	char		defined[KAFKA_NONCE_LENGTH];	/* the last definition's
												 * nonce, or "" */
	char		committed[KAFKA_NONCE_LENGTH];	/* what Kafka had when it was
												 * written, or "" */
	char		cluster[KAFKA_CLUSTER_LENGTH];	/* or "" */
	int64		parked[TRANSACTION_PARKED]; /* that the definition is about */
	int			nparked;
} TransactionState;

/*
 * Read that of a producer, as committed now. False: the table is locked or the
 * row is gone. Inside a transaction.
 */
extern bool transaction_state_read(const OutboxCatalog *catalog, int producer,
								   TransactionState *state);

/* Write it, as the only writer. The same rules. Never waits for a lock. */
extern bool transaction_state_write(const OutboxCatalog *catalog, int producer,
									RowPlace *place, const TransactionState *state);

#endif							/* OUTBOX_TRANSACTION_STATE_H */
