/*
 * inbox_dead.c
 *	  Dead letters: writing them, and trying again those for which inbox.retry()
 *	  asks, out of the order of their partition, each in a transaction of its
 *	  own.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "commands/sequence.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "handled_message.h"
#include "handler.h"
#include "inbox_internal.h"

/* Columns of inbox.dead_letter; DEAD_TOPIC and on as in inbox.message. */
enum
{
	DEAD_ID = 1, DEAD_SUBSCRIPTION, DEAD_SUBSCRIPTION_NAME, DEAD_TOPIC,
	DEAD_PARTITION, DEAD_OFFSET, DEAD_KEY, DEAD_PAYLOAD, DEAD_HEADERS,
	DEAD_TIMESTAMP, DEAD_EVENT_ID, DEAD_CORRELATION_ID, DEAD_SQLSTATE,
	DEAD_ERROR, DEAD_ATTEMPTS, DEAD_FAILED_AT, DEAD_RETRY_AT,
	DEAD_COLUMNS = DEAD_RETRY_AT
};

#define MESSAGE_COLUMNS 9

/* Before looking again when something else than the handler failed. */
#define AGAIN_MS 1000

static void
check_columns(Relation rel)
{
	if (RelationGetDescr(rel)->natts != DEAD_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("table \"%s.dead_letter\" was altered", INBOX_SCHEMA)));
}

/*
 * The message as its handler would get it; without headers if they cannot be
 * shown in this database, which may be what it died of.
 */
static void
build_message(const InboxPartition *partition, const KafkaItem *item, InboxMessage *message)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		inbox_message_build(partition, item, false, message);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		inbox_message_build(partition, item, true, message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

void
inbox_bury(Inbox *inbox, InboxPartition *partition, const KafkaItem *item,
		   const InboxError *error, int attempts)
{
	Relation	rel = inbox_store_open("dead_letter", RowExclusiveLock);
	Oid			sequence = inbox_store_relation("dead_letter_id");
	InboxMessage message;
	HeapTupleHeader header;
	HeapTupleData tuple;
	Datum		values[DEAD_COLUMNS + 1] = {0};
	bool		nulls[DEAD_COLUMNS + 1] = {false};
	int64		id;

	check_columns(rel);
	build_message(partition, item, &message);
	header = DatumGetHeapTupleHeader(message.datum);
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	tuple.t_data = header;
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, inbox_message_type(), values + DEAD_TOPIC, nulls + DEAD_TOPIC);

	id = nextval_internal(sequence, false);
	values[DEAD_ID] = Int64GetDatum(id);
	values[DEAD_SUBSCRIPTION] = Int32GetDatum(inbox->subscription->id);
	values[DEAD_SUBSCRIPTION_NAME] = CStringGetTextDatum(inbox->subscription->name);
	nulls[DEAD_SQLSTATE] = error->sqlstate[0] == '\0';
	values[DEAD_SQLSTATE] = CStringGetTextDatum(error->sqlstate);
	nulls[DEAD_ERROR] = error->text[0] == '\0';
	values[DEAD_ERROR] = CStringGetTextDatum(error->text);
	values[DEAD_ATTEMPTS] = Int32GetDatum(attempts);
	values[DEAD_FAILED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	nulls[DEAD_RETRY_AT] = true;
	CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values + 1, nulls + 1));
	table_close(rel, NoLock);

	ereport(WARNING,
			(errmsg("subscription \"%s\": topic \"%s\" partition %d offset " INT64_FORMAT " is dead letter " INT64_FORMAT,
					inbox->subscription->name, partition->topic, partition->number,
					item->offset, id)));
}

/* The next one after an id that is to be tried again, copied; or NULL. */
static HeapTuple
next_letter(Inbox *inbox, Relation rel, int64 after)
{
	Oid			index = inbox_store_relation("dead_letter_retry_at");
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	HeapTuple	best = NULL;
	int64		best_id = 0;

	ScanKeyInit(&keys[0], DEAD_SUBSCRIPTION, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(inbox->subscription->id));
	ScanKeyEntryInitialize(&keys[1], SK_ISNULL | SK_SEARCHNOTNULL, DEAD_RETRY_AT,
						   InvalidStrategy, InvalidOid, InvalidOid, InvalidOid, (Datum) 0);
	scan = systable_beginscan(rel, index, true, snapshot, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		int64		id = DatumGetInt64(heap_getattr(tuple, DEAD_ID, RelationGetDescr(rel), &isnull));

		if (id <= after || (best != NULL && id > best_id))
			continue;
		if (best != NULL)
			heap_freetuple(best);
		best = heap_copytuple(tuple);
		best_id = id;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return best;
}

/* In its transaction. */
static void
call_handler(Inbox *inbox, HeapTuple letter, TupleDesc desc, Oid type)
{
	Datum		values[DEAD_COLUMNS + 1];
	bool		nulls[DEAD_COLUMNS + 1];
	HandlerFunction *function;
	HeapTuple	message;

	heap_deform_tuple(letter, desc, values + 1, nulls + 1);
	for (int i = DEAD_TOPIC; i < DEAD_TOPIC + MESSAGE_COLUMNS; i++)
	{
		/* a row type as a value must not point to other places */
		if (!nulls[i] && TupleDescAttr(desc, i - 1)->attlen == -1)
			values[i] = PointerGetDatum(PG_DETOAST_DATUM(values[i]));
	}
	message = heap_form_tuple(inbox_message_type(), values + DEAD_TOPIC, nulls + DEAD_TOPIC);

	handler_begin(inbox->subscription->owner);
	function = handler_lookup(inbox->subscription->handler, type);
	handled_message_set(inbox->subscription->name,
						nulls[DEAD_EVENT_ID] ? NULL : DatumGetUUIDP(values[DEAD_EVENT_ID]),
						nulls[DEAD_CORRELATION_ID] ? NULL :
						TextDatumGetCString(values[DEAD_CORRELATION_ID]));
	handler_call(function, HeapTupleGetDatum(message));
	handled_message_clear();
	handler_finish();
}

/* Store what became of the attempt. */
static void
note_failure(Inbox *inbox, HeapTuple letter, const InboxError *error)
{
	Relation	rel;
	Datum		values[DEAD_COLUMNS + 1] = {0};
	bool		nulls[DEAD_COLUMNS + 1] = {false};
	bool		replace[DEAD_COLUMNS + 1] = {false};
	bool		isnull;
	HeapTuple	changed;

	inbox_begin();
	rel = inbox_store_open("dead_letter", RowExclusiveLock);
	values[DEAD_SQLSTATE] = CStringGetTextDatum(error->sqlstate);
	values[DEAD_ERROR] = CStringGetTextDatum(error->text);
	values[DEAD_ATTEMPTS] = Int32GetDatum(DatumGetInt32(heap_getattr(letter, DEAD_ATTEMPTS,
																	 RelationGetDescr(rel), &isnull)) + 1);
	values[DEAD_FAILED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	nulls[DEAD_RETRY_AT] = true;
	replace[DEAD_SQLSTATE] = replace[DEAD_ERROR] = replace[DEAD_ATTEMPTS] = true;
	replace[DEAD_FAILED_AT] = replace[DEAD_RETRY_AT] = true;
	changed = heap_modify_tuple(letter, RelationGetDescr(rel), values + 1, nulls + 1, replace + 1);
	CatalogTupleUpdate(rel, &letter->t_self, changed);
	table_close(rel, NoLock);
	inbox_commit(inbox);
	pg_atomic_fetch_add_u64(&inbox->slot->failed, 1);
}

/* Try one. Returns its id, or 0: there is none, or not now. */
static int64
try_next(Inbox *inbox, int64 after, TimestampTz now)
{
	volatile int64 id = 0;
	HeapTuple volatile letter = NULL;
	ErrorData  *volatile caught = NULL;
	InboxError	error;

	PG_TRY();
	{
		inbox_begin();
		if (inbox_store_enter(inbox))
		{
			Relation	rel = inbox_store_open("dead_letter", RowExclusiveLock);
			MemoryContext old = MemoryContextSwitchTo(inbox->loop_context);

			check_columns(rel);
			letter = next_letter(inbox, rel, after);
			MemoryContextSwitchTo(old);
			if (letter != NULL)
			{
				Oid			type;
				bool		isnull;

				id = DatumGetInt64(heap_getattr(letter, DEAD_ID, RelationGetDescr(rel), &isnull));
				inbox_message_prepare(&type);
				CatalogTupleDelete(rel, &letter->t_self);
				CommandCounterIncrement();
				call_handler(inbox, letter, RelationGetDescr(rel), type);
			}
			table_close(rel, NoLock);
		}
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		caught = handler_caught(inbox->loop_context);
		handled_message_clear();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	handler_end();
	MemoryContextSwitchTo(inbox->loop_context);

	if (caught == NULL)
	{
		if (id != 0)
			pg_atomic_fetch_add_u64(&inbox->slot->handled, 1);
		return id;
	}
	inbox_describe_error(caught, &error);
	ereport(WARNING,
			(errmsg("subscription \"%s\": the handler failed again for dead letter " INT64_FORMAT ": %s (%s)",
					inbox->subscription->name, (int64) id, error.text, error.sqlstate)));
	if (id == 0 || !error.counts)
	{
		inbox->dead_at = TimestampTzPlusMilliseconds(now, AGAIN_MS);
		return 0;
	}
	note_failure(inbox, letter, &error);
	return id;
}

bool
inbox_retry_dead_letters(Inbox *inbox, TimestampTz now)
{
	/* one worker of the subscription is enough */
	if (inbox->number != 0 || inbox->dead_at == 0 || inbox->dead_at > now)
		return false;
	inbox->dead_at = 0;
	if (try_next(inbox, 0, now) != 0)
	{
		inbox->dead_at = now;
		return true;
	}
	if (inbox->deciding || inbox->reload)
		inbox->dead_at = now;
	return false;
}
