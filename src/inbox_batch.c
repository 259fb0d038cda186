/*
 * inbox_batch.c
 *	  Handling messages: a transaction for a batch, the handlers' effects and
 *	  the new positions in it.
 *
 * Three ways, of which a message takes the next one when the one before failed:
 *
 *	bare		as many messages as batch_size allows, of any partitions, and no
 *				savepoint. If anything fails, all of it is rolled back.
 *	savepoints	the same messages again, at most INBOX_SAVEPOINTS at a time, each
 *				in a savepoint of its own. (More than 64 subtransactions with
 *				xids in a transaction slow down every session of the server.)
 *				A message that fails is rolled back alone, and those behind it in
 *				its partition wait.
 *	alone		in a transaction of its own: what has failed before, and where
 *				a transaction as a whole has failed, in a deferred constraint or
 *				at commit, so nobody knows whose fault it was.
 *
 * A handler that ends its process leaves no error behind. After a start that
 * was not an ordinary one the messages that may be to blame are handled alone,
 * and each attempt is stored before it is made, so it counts.
 *
 * Nothing here waits for Kafka.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "due.h"
#include "fault.h"
#include "handled_message.h"
#include "handler.h"
#include "inbox_internal.h"

/* Messages of a batch take so much memory at most, or are one. */
#define BATCH_BYTES (16 * 1024 * 1024)

/* Before trying again when something else than a handler failed. */
#define AGAIN_MS 500

/* Before looking again for a handler that cannot be called. */
#define LOOKUP_AGAIN_MS 5000

/* How far a transaction came; what an error means depends on it. */
typedef enum Stage
{
	STAGE_OURS,					/* nothing of the user's has run */
	STAGE_LOOKUP,				/* role and function are looked for */
	STAGE_HANDLER
} Stage;

typedef enum Way
{
	WAY_BARE,
	WAY_SAVEPOINTS,
	WAY_ALONE
} Way;

/* A batch under way, and what its partitions were like before. */
typedef struct Batch
{
	InboxEntry *entries;
	int			count;
	InboxPartition **partitions;	/* each once */
	InboxPartition *before;		/* copies of them */
	int		   *passed;			/* messages of each that are done with */
	bool	   *blocked;		/* each: a message has failed */
	int			npartitions;
	Stage		stage;
	HandlerFunction *function;
} Batch;

static Way
way_of(const InboxPartition *partition)
{
	int64		offset = partition->items[partition->first].offset;

	if (offset < partition->alone_until || partition->failing_offset >= 0 ||
		partition->state != INBOX_RUNNING)
		return WAY_ALONE;
	return offset < partition->savepoints_until ? WAY_SAVEPOINTS : WAY_BARE;
}

/* ---- gathering ---- */

static Batch *
new_batch(int room, int npartitions)
{
	Batch	   *batch = palloc0(sizeof(Batch));

	batch->entries = palloc(sizeof(InboxEntry) * room);
	batch->partitions = palloc(sizeof(InboxPartition *) * npartitions);
	batch->before = palloc(sizeof(InboxPartition) * npartitions);
	batch->passed = palloc0(sizeof(int) * npartitions);
	batch->blocked = palloc0(sizeof(bool) * npartitions);
	return batch;
}

static void
add_partition(Batch *batch, InboxPartition *partition, int count)
{
	for (int i = 0; i < count; i++)
	{
		batch->entries[batch->count].partition = partition;
		batch->entries[batch->count].item = &partition->items[partition->first + i];
		batch->count++;
	}
	batch->partitions[batch->npartitions] = partition;
	batch->before[batch->npartitions] = *partition;
	batch->npartitions++;
}

/* How many of the messages in hand fit. */
static int
fitting(const InboxPartition *partition, int max, int64 until, Size *bytes, bool first)
{
	int			count = 0;

	while (count < Min(max, partition->count))
	{
		const KafkaItem *item = &partition->items[partition->first + count];
		Size		size = item->key_length + item->value_length;

		if (until >= 0 && item->offset >= until)
			break;
		if (*bytes + size > BATCH_BYTES && !(first && count == 0))
			break;
		*bytes += size;
		count++;
	}
	return count;
}

/*
 * A batch of what can go this way. For bare ones messages are taken from Kafka;
 * of every other partition there is at least one in hand, if it has any.
 */
static Batch *
gather(Inbox *inbox, Way way, TimestampTz now)
{
	int			limit = (way == WAY_BARE) ? inbox->subscription->batch_size :
	Min(inbox->subscription->batch_size, INBOX_SAVEPOINTS);
	Batch	   *batch = NULL;
	Size		bytes = 0;

	for (int i = 0; i < inbox->npartitions; i++)
	{
		InboxPartition *partition = inbox->partitions[(inbox->next_partition + i) % inbox->npartitions];
		int			room = limit - (batch ? batch->count : 0);
		int			count;

		if (room <= 0 || bytes >= BATCH_BYTES)
			break;
		if (!inbox_partition_is_ready(partition, now))
			continue;
		if (way == WAY_BARE || partition->count == 0)
			inbox_take(inbox, partition, way == WAY_BARE ? room : 1);
		if (partition->count == 0 || way_of(partition) != way)
			continue;
		count = fitting(partition, room,
						way == WAY_SAVEPOINTS ? partition->savepoints_until : -1,
						&bytes, batch == NULL);
		if (count == 0)
			continue;
		if (batch == NULL)
			batch = new_batch(limit, inbox->npartitions);
		add_partition(batch, partition, count);
	}
	return batch;
}

/* ---- running ---- */

static void
restore(Inbox *inbox, Batch *batch)
{
	for (int i = 0; i < batch->npartitions; i++)
		*batch->partitions[i] = batch->before[i];
	inbox_store_forget_places(inbox);
}

/* After the commit: what was handled is done with. */
static void
finish(Inbox *inbox, Batch *batch, TimestampTz now)
{
	int			handled = 0;

	for (int i = 0; i < batch->npartitions; i++)
	{
		InboxPartition *partition = batch->partitions[i];

		for (int n = 0; n < batch->passed[i]; n++)
			inbox_drop_first(partition);
		handled += batch->passed[i];
		if (partition->state == INBOX_STOPPED)
		{
			inbox_stop_reading(partition);
			inbox->discover_at = now;	/* what is behind it */
		}
	}
	pg_atomic_fetch_add_u64(&inbox->slot->handled, handled);
	pg_atomic_write_u64(&inbox->slot->last_activity_at, (uint64) now);
	inbox->mirror_at = due_sooner(inbox->mirror_at, TimestampTzPlusMilliseconds(now, 1000));
}

static void
call_handler(Inbox *inbox, Batch *batch, const InboxEntry *entry)
{
	MemoryContext old;
	InboxMessage message;

	MemoryContextReset(inbox->message_context);
	old = MemoryContextSwitchTo(inbox->message_context);
	inbox_message_build(entry->partition, entry->item, false, &message);
	if (inbox->subscription->dedupe_ms == 0 || !message.has_event_id ||
		!inbox_is_duplicate(inbox, entry->partition, entry->item, &message.event_id))
	{
		handled_message_set(inbox->subscription->name,
							message.has_event_id ? &message.event_id : NULL,
							message.correlation_id);
		handler_call(batch->function, message.datum);
		handled_message_clear();
	}
	MemoryContextSwitchTo(old);
}

/* In a savepoint. False: it failed. */
static bool
call_in_savepoint(Inbox *inbox, Batch *batch, const InboxEntry *entry, InboxError *error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		call_handler(inbox, batch, entry);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *caught = handler_caught(inbox->loop_context);

		handled_message_clear();
		RollbackAndReleaseCurrentSubTransaction();
		inbox_describe_error(caught, error);
		FreeErrorData(caught);
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}

/* New positions first: nothing of ours runs after the user's code. */
static void
handle_bare(Inbox *inbox, Batch *batch)
{
	for (int i = 0, last = -1; i < batch->npartitions; i++)
	{
		InboxPartition *partition = batch->partitions[i];

		while (last + 1 < batch->count && batch->entries[last + 1].partition == partition)
		{
			last++;
			batch->passed[i]++;
		}
		inbox_passed(inbox, partition, batch->entries[last].item);
		inbox_store_partition(inbox, partition);
	}
	for (int i = 0; i < batch->count; i++)
		call_handler(inbox, batch, &batch->entries[i]);
	FAULT_POINT("inbox_handled");
	handler_finish();
}

static void
handle_with_savepoints(Inbox *inbox, Batch *batch, TimestampTz now)
{
	int			number = 0;
	InboxError	error;

	for (int i = 0; i < batch->count; i++)
	{
		const InboxEntry *entry = &batch->entries[i];

		while (batch->partitions[number] != entry->partition)
			number++;
		if (batch->blocked[number])
			continue;
		if (call_in_savepoint(inbox, batch, entry, &error))
		{
			inbox_passed(inbox, entry->partition, entry->item);
			batch->passed[number]++;
			continue;
		}
		batch->blocked[number] = true;
		if (inbox_failed(inbox, entry->partition, entry->item, &error, false, now))
		{
			inbox_bury(inbox, entry->partition, entry->item, &error,
					   entry->partition->attempts);
			inbox_passed(inbox, entry->partition, entry->item);
			batch->passed[number]++;
		}
	}
	handler_finish();
	for (int i = 0; i < batch->npartitions; i++)
		inbox_store_partition(inbox, batch->partitions[i]);
}

/*
 * Run a batch. False: it was not, or was rolled back; the partitions are as
 * before, and *caught is the error if one of a handler's was the reason.
 */
static bool
run(Inbox *inbox, Batch *batch, Way way, TimestampTz now, ErrorData **caught)
{
	volatile bool done = false;
	ErrorData  *volatile error = NULL;
	InboxError	described;

	*caught = NULL;
	PG_TRY();
	{
		inbox_begin();
		done = inbox_store_enter(inbox);
		if (done)
		{
			Oid			type;

			inbox_message_prepare(&type);
			batch->stage = STAGE_LOOKUP;
			handler_begin(inbox->subscription->owner);
			batch->function = handler_lookup(inbox->subscription->handler, type);
			batch->stage = STAGE_HANDLER;
			if (way == WAY_SAVEPOINTS)
				handle_with_savepoints(inbox, batch, now);
			else
				handle_bare(inbox, batch);
		}
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		error = handler_caught(inbox->loop_context);
		handled_message_clear();
		AbortCurrentTransaction();
		done = false;
	}
	PG_END_TRY();
	handler_end();
	MemoryContextSwitchTo(inbox->loop_context);

	if (done)
	{
		FAULT_POINT("inbox_committed");
		finish(inbox, batch, now);
		return true;
	}
	restore(inbox, batch);
	if (error == NULL)
		return false;
	if (batch->stage == STAGE_HANDLER)
	{
		*caught = error;
		return false;
	}
	inbox_describe_error(error, &described);
	resetStringInfo(&inbox->problem);
	if (batch->stage == STAGE_LOOKUP)
		appendStringInfo(&inbox->problem, "the handler cannot be called: %s", described.text);
	else
		appendStringInfo(&inbox->problem, "%s", described.text);
	inbox->wait_until = TimestampTzPlusMilliseconds(now, batch->stage == STAGE_LOOKUP ?
													LOOKUP_AGAIN_MS : AGAIN_MS);
	return false;
}

/* The next way for those of a batch that failed. */
static void
be_careful(Batch *batch, Way way)
{
	for (int i = 0; i < batch->count; i++)
	{
		InboxPartition *partition = batch->entries[i].partition;
		int64		until = batch->entries[i].item->offset + 1;

		if (way == WAY_BARE && batch->count > 1)
			partition->savepoints_until = Max(partition->savepoints_until, until);
		else
			partition->alone_until = Max(partition->alone_until, until);
	}
}

/* ---- alone ---- */

/*
 * Write a partition's row in a transaction of its own, with the dead letter
 * that its first message has become. False: not now.
 */
static bool
store_alone(Inbox *inbox, Batch *batch, const InboxError *dead, TimestampTz now)
{
	InboxPartition *partition = batch->partitions[0];
	KafkaItem  *item = batch->entries[0].item;
	volatile bool done = false;
	volatile bool failed = false;

	PG_TRY();
	{
		inbox_begin();
		done = inbox_store_enter(inbox);
		if (done && dead != NULL)
		{
			Oid			type;

			inbox_message_prepare(&type);
			inbox_bury(inbox, partition, item, dead, partition->attempts);
			inbox_passed(inbox, partition, item);
		}
		if (done)
			inbox_store_partition(inbox, partition);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *caught = handler_caught(inbox->loop_context);
		InboxError	error;

		AbortCurrentTransaction();
		inbox_describe_error(caught, &error);
		resetStringInfo(&inbox->problem);
		appendStringInfo(&inbox->problem, "%s", error.text);
		failed = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(inbox->loop_context);

	if (failed || !done)
	{
		restore(inbox, batch);
		inbox->wait_until = TimestampTzPlusMilliseconds(now, AGAIN_MS);
		return false;
	}
	batch->passed[0] = (dead != NULL) ? 1 : 0;
	batch->before[0] = *partition;
	finish(inbox, batch, now);
	return true;
}

/* The first message of a partition, in a transaction of its own. */
static bool
handle_alone(Inbox *inbox, InboxPartition *partition, TimestampTz now)
{
	Batch	   *batch = new_batch(1, 1);
	KafkaItem  *item = &partition->items[partition->first];
	ErrorData  *caught;
	InboxError	error;
	bool		known = partition->failing_offset == item->offset;
	bool		attempted = false;

	add_partition(batch, partition, 1);

	/* what waited for a decision, or has ended its process too often */
	strlcpy(error.text, partition->error, sizeof(error.text));
	error.sqlstate[0] = '\0';
	error.counts = true;
	if (known && partition->state == INBOX_SKIPPING)
		return store_alone(inbox, batch, &error, now);
	if (known && partition->attempts >= inbox->subscription->max_attempts)
	{
		strlcpy(error.text, "the worker ended while the handler ran", sizeof(error.text));
		if (inbox_failed(inbox, partition, item, &error, true, now))
			return store_alone(inbox, batch, &error, now);
		return store_alone(inbox, batch, NULL, now);
	}
	if (!known)
	{
		partition->attempts = 0;
		partition->failing_offset = -1;
		partition->state = INBOX_RUNNING;
	}

	if (partition->record_attempts && item->offset < partition->alone_until)
	{
		partition->failing_offset = item->offset;
		partition->attempts++;
		if (!store_alone(inbox, batch, NULL, now))
			return false;
		batch->passed[0] = 0;
		attempted = true;
	}
	if (run(inbox, batch, WAY_ALONE, now, &caught))
		return true;
	if (caught == NULL)
		return false;

	inbox_describe_error(caught, &error);
	if (attempted && !error.counts)
		partition->attempts--;
	if (inbox_failed(inbox, partition, item, &error, attempted, now))
		return store_alone(inbox, batch, &error, now);
	return store_alone(inbox, batch, NULL, now);
}

/*
 * All partitions that need care, one message each; then a transaction of those
 * with savepoints, then a bare one.
 */
bool
inbox_handle(Inbox *inbox, TimestampTz now)
{
	bool		more = false;
	ErrorData  *caught;
	static const Way ways[] = {WAY_SAVEPOINTS, WAY_BARE};

	if (inbox->npartitions == 0)
		return false;
	inbox->next_partition = (inbox->next_partition + 1) % inbox->npartitions;

	for (int i = 0; i < inbox->npartitions; i++)
	{
		InboxPartition *partition = inbox->partitions[i];

		if (!inbox_partition_is_ready(partition, now))
			continue;
		if (partition->count == 0)
			inbox_take(inbox, partition, 1);
		if (partition->count > 0 && way_of(partition) == WAY_ALONE)
			more |= handle_alone(inbox, partition, now);
		if (inbox->reload || inbox->deciding || inbox->wait_until != 0)
			return false;
	}
	for (int i = 0; i < (int) lengthof(ways); i++)
	{
		Batch	   *batch = gather(inbox, ways[i], now);

		if (batch == NULL)
			continue;
		if (run(inbox, batch, ways[i], now, &caught))
			more = true;
		else if (caught != NULL)
		{
			be_careful(batch, ways[i]);
			more = true;
		}
		if (inbox->reload || inbox->deciding || inbox->wait_until != 0)
			return false;
	}
	return more;
}
