/*
 * relay_session.c
 *	  What the parts of the relay stand on: transactions of its own, the
 *	  extension's objects, and waiting.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_sequence.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "relay_internal.h"
#include "side_slot.h"

void
relay_begin(Relay *relay)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetLatestSnapshot());
}

void
relay_commit(Relay *relay)
{
	FullTransactionId own = GetTopFullTransactionIdIfAny();

	/* an xid of our own, if it is the next one, is no news */
	if (FullTransactionIdIsValid(own) && relay->quiet_next_xid != 0)
		relay->quiet_next_xid =
			U64FromFullTransactionId(own) == relay->quiet_next_xid ?
			relay->quiet_next_xid + 1 : 0;

	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(relay->loop_context);

	if (FullTransactionIdIsValid(own))
		side_slots_progressed(relay->slot);
}

const OutboxCatalog *
relay_catalog(Relay *relay)
{
	const OutboxCatalog *catalog = catalog_get(true);

	if (catalog != NULL && catalog->extension == relay->extension)
		return catalog;
	relay->superseded = true;
	return NULL;
}

void
relay_set_wait_events(Relay *relay)
{
	if (relay->wait_latch == NULL)
	{
		relay->wait_latch = compat_create_wait_event_set(2);
		AddWaitEventToSet(relay->wait_latch, WL_LATCH_SET, PGINVALID_SOCKET,
						  MyLatch, NULL);
		AddWaitEventToSet(relay->wait_latch, WL_EXIT_ON_PM_DEATH,
						  PGINVALID_SOCKET, NULL, NULL);
	}
	if (relay->wait_all != NULL)
		FreeWaitEventSet(relay->wait_all);
	relay->wait_all = NULL;
	if (relay->producer != NULL)
	{
		relay->wait_all = compat_create_wait_event_set(4);
		AddWaitEventToSet(relay->wait_all, WL_LATCH_SET, PGINVALID_SOCKET,
						  MyLatch, NULL);
		AddWaitEventToSet(relay->wait_all, WL_EXIT_ON_PM_DEATH,
						  PGINVALID_SOCKET, NULL, NULL);
		AddWaitEventToSet(relay->wait_all, WL_SOCKET_READABLE,
						  kafka_producer_fd(relay->producer), NULL, NULL);
		if (relay->isolation_fd >= 0)
			AddWaitEventToSet(relay->wait_all, WL_SOCKET_READABLE,
							  relay->isolation_fd, NULL, NULL);
	}
}

void
relay_wait(Relay *relay, bool reports, long timeout_ms)
{
	static uint32 wait_event = 0;
	WaitEvent	event;
	WaitEventSet *set = (reports && relay->wait_all) ? relay->wait_all : relay->wait_latch;

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxRelayMain");
	(void) WaitEventSetWait(set, timeout_ms, &event, 1, wait_event);
}

void
relay_check_sequence(const OutboxCatalog *catalog)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(catalog->sequence));
	Form_pg_sequence form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", catalog->sequence);
	form = (Form_pg_sequence) GETSTRUCT(tuple);
	if (form->seqincrement != 1 || form->seqcache != 1 || form->seqcycle)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sequence outbox.message_id was altered, messages cannot be told apart by their ids any more"),
				 errhint("ALTER SEQUENCE outbox.message_id INCREMENT 1 CACHE 1 NO CYCLE;")));
	ReleaseSysCache(tuple);
}
