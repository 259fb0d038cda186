/*
 * relay_transaction_define.c
 *	  What the positions of Kafka transactions count in.
 *
 * A position is an id within a batch, so it means nothing without the batch.
 * Before the first message of a batch is sent, its definition (the bounds in
 * outbox.relay_state) is written with a random nonce, and each position in
 * Kafka carries the nonce. The definition has to be on disk before a transaction
 * with messages of the batch is committed, and need not be before: what is not
 * committed is aborted, and nobody has to know where it would have ended. So
 * the disk and the brokers work at the same time. (With wait_for_standby the
 * definition is on the standby before the first message is sent; or a standby
 * that is away would leave transactions open.)
 *
 * A position counts if its nonce is that of a batch in outbox.relay_state, and
 * is then added to what is stored there. Otherwise PostgreSQL's own progress
 * counts: silently if the nonce is one that was known when the last definition
 * was written (its batch is done), else with a warning, because what was sent
 * under an unknown nonce may be sent again: the database was recovered to an
 * earlier point in time, or a failover lost some.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "utils/timestamp.h"

#include "fault.h"
#include "guc.h"
#include "relay_transaction_internal.h"

bool
relay_transaction_is_defined(const Relay *relay, const RelayHeld *held)
{
	const RelayTransaction *t = relay_transaction_of(relay, held);

	return relay_transaction_has_nonce(relay_window_of(relay, held), t->state.defined);
}

/* A new nonce for the next definition; what it is about is the caller's. */
static pg_uuid_t
begin_definition(RelayTransaction *t)
{
	pg_uuid_t	nonce;

	if (!pg_strong_random(&nonce, sizeof(nonce)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random nonce")));
	t->next = t->state;
	t->next.nparked = 0;
	relay_transaction_nonce_text(&nonce, t->next.defined);
	return nonce;
}

/* With it, the progress of all cursors goes to disk. */
static bool
write_definition(Relay *relay, RelayTransaction *t)
{
	return relay_progress_write(relay, relay_catalog(relay), guc_wait_for_standby) &&
		transaction_state_write(relay_catalog(relay), t->number, &t->place, &t->next);
}

bool
relay_transaction_define(Relay *relay, RelayHeld *held)
{
	RelayTransaction *t = relay_transaction_of(relay, held);
	pg_uuid_t	nonce = begin_definition(t);

	window_define(relay_window_of(relay, held), &nonce);
	if (held)
		held->define = true;
	else
		relay->define = true;
	return write_definition(relay, t);
}

/* It is committed, and will be on disk before Kafka's transaction is. */
static void
take_definition(Relay *relay, RelayTransaction *t, TransactionOwner owner, RelayHeld *held)
{
	t->state = t->next;
	t->owner = owner;
	t->held = held;
	t->since = GetCurrentTimestamp();
	t->needs = XactLastCommitEnd;
	relay_progress_written(relay, t->since, guc_wait_for_standby);
	FAULT_POINT("defined");
}

void
relay_transaction_defined(Relay *relay, RelayHeld *held)
{
	if (guc_wait_for_standby)
		*(held ? &held->standby_awaited : &relay->standby_awaited) = XactLastCommitEnd;
	take_definition(relay, relay_transaction_of(relay, held), held ? OWNER_HELD : OWNER_MAIN, held);
}

bool
relay_transaction_may_choose(const Relay *relay)
{
	const RelayTransaction *t = &relay->transactions->of[TRANSACTION_SECOND];
	ListCell   *lc;

	if (t->phase != TRANSACTION_READY || t->owner != OWNER_NONE ||
		relay->transactions->tentative)
		return false;
	foreach(lc, relay->held)
	{
		if (((const RelayHeld *) lfirst(lc))->tentative)
			return false;
	}
	return true;
}

bool
relay_transaction_is_parked(const Relay *relay)
{
	return relay->transactions->of[TRANSACTION_SECOND].owner == OWNER_PARKED;
}

bool
relay_transaction_define_parked(Relay *relay, const int64 *ids, int count)
{
	RelayTransaction *t = &relay->transactions->of[TRANSACTION_SECOND];

	(void) begin_definition(t);
	memcpy(t->next.parked, ids, sizeof(int64) * count);
	t->next.nparked = count;
	return write_definition(relay, t);
}

void
relay_transaction_defined_parked(Relay *relay)
{
	take_definition(relay, &relay->transactions->of[TRANSACTION_SECOND], OWNER_PARKED, NULL);
}
