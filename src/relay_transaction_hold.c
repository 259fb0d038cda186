/*
 * relay_transaction_hold.c
 *	  Lanes that are to be held while a Kafka transaction is open.
 *
 * Messages of the lane in an open transaction are neither delivered nor not, so
 * the lane is held when the transaction has ended, the one way or the other:
 * with its cursor from where the main one stands then.
 */
#include "postgres.h"

#include "relay_transaction_internal.h"

bool
relay_transaction_hold_later(Relay *relay, RelayTopic *topic, int partition,
							 HeldReason reason, const char *error)
{
	PendingHold *pending = NULL;
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, relay->transactions->pending)
	{
		PendingHold *other = (PendingHold *) lfirst(lc);

		if (other->topic == topic && other->partition == partition)
			pending = other;
	}
	if (pending == NULL)
	{
		old = MemoryContextSwitchTo(relay->context);
		pending = palloc0(sizeof(PendingHold));
		relay->transactions->pending = lappend(relay->transactions->pending, pending);
		MemoryContextSwitchTo(old);
		pending->topic = topic;
		pending->partition = partition;
		pending->partitions = topic->partitions;
		pending->reason = reason;
		strlcpy(pending->error, error, sizeof(pending->error));
	}

	/* a pause is asked for again until it is there */
	if (reason == HELD_PAUSED)
		return false;
	relay->transactions->give_up = true;
	return true;
}

bool
relay_transaction_hold_now(Relay *relay, RelayTopic *topic, int partition, int partitions,
						   HeldReason reason, const char *error, TimestampTz now)
{
	int			present = topic->partitions;
	bool		held;

	/* the producer that knew it is gone */
	topic->partitions = partitions;
	held = relay_hold(relay, topic, partition, reason, error, now);
	topic->partitions = present;
	return held;
}

void
relay_transaction_hold_pending(Relay *relay, TimestampTz now)
{
	List	   *all = relay->transactions->pending;
	ListCell   *lc;

	if (all == NIL || window_oldest(relay->window) != NULL)
		return;

	/* should it fail, what led to it leads to it again */
	relay->transactions->pending = NIL;
	foreach(lc, all)
	{
		PendingHold *pending = (PendingHold *) lfirst(lc);

		(void) relay_transaction_hold_now(relay, pending->topic, pending->partition,
										  pending->partitions, pending->reason,
										  pending->error, now);
	}
	list_free_deep(all);
}

void
relay_transaction_forget_held(Relay *relay, const RelayHeld *held)
{
	RelayTransaction *t = &relay->transactions->of[TRANSACTION_SECOND];

	if (t->held == held)
	{
		t->held = NULL;
		t->owner = OWNER_NONE;
	}
}
