/*
 * inbox_request.c
 *	  Following what inbox.seek(), inbox.retry() and inbox.skip() ask for.
 *
 * Nothing is handled while a request is open, so one that needs an answer from
 * Kafka keeps its subscription waiting until there is one.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "inbox_internal.h"
#include "unix_time.h"

/* Where a request leads. False: no answer. */
static bool
find_target(Inbox *inbox, const InboxRequest *request, int64 *position)
{
	KafkaError	error;
	int64_t		low = 0;
	int64_t		high = 0;
	int64_t		offset = request->offset;
	bool		ok = true;

	if (request->kind == INBOX_SEEK_EARLIEST || request->kind == INBOX_SEEK_LATEST)
	{
		ok = kafka_consumer_watermarks(inbox->consumer, request->topic, request->number,
									   &low, &high, INBOX_ASK_MS, &error);
		offset = request->kind == INBOX_SEEK_EARLIEST ? low : high;
	}
	else if (request->kind == INBOX_SEEK_TIME)
		ok = kafka_consumer_offset_at(inbox->consumer, request->topic, request->number,
									  unix_ms(request->time), &offset, INBOX_ASK_MS, &error);
	if (!ok)
	{
		resetStringInfo(&inbox->problem);
		inbox_add_problem(inbox, "inbox.seek() for topic \"%s\" partition %d: no answer from Kafka: %s",
						  request->topic, request->number, error.message);
	}
	*position = offset;
	return ok;
}

static void
change_partition(Inbox *inbox, InboxPartition *partition, const InboxRequest *request,
				 int64 position)
{
	inbox_stop_reading(partition);
	partition->look_at = 0;
	partition->next_try_at = 0;
	if (request->kind == INBOX_SKIP)
	{
		if (partition->failing_offset >= 0)
			partition->state = INBOX_SKIPPING;
		return;
	}
	partition->state = INBOX_RUNNING;
	partition->attempts = 0;
	if (request->kind == INBOX_RETRY)
	{
		partition->alone_until = Max(partition->alone_until, partition->position + 1);
		return;
	}
	partition->position = position;
	partition->end_offset = -1;
	partition->failing_offset = -1;
	partition->last_offset = -1;
	partition->leader_epoch = -1;
	partition->cluster = inbox->cluster;
	partition->error[0] = '\0';
	partition->error_at = 0;
	partition->range_error = false;
	partition->savepoints_until = 0;
	partition->alone_until = 0;
}

bool
inbox_apply_requests(Inbox *inbox)
{
	List	   *requests;
	ListCell   *cell;
	MemoryContext old;

	inbox_begin();
	old = MemoryContextSwitchTo(inbox->loop_context);
	requests = inbox_store_requests(inbox);
	MemoryContextSwitchTo(old);
	inbox_commit(inbox);

	foreach(cell, requests)
	{
		const InboxRequest *request = lfirst(cell);
		InboxPartition *partition = inbox_partition(inbox, request->topic, request->number);
		int64		position = 0;
		bool		applied;

		if (partition != NULL && request->kind < INBOX_RETRY &&
			(inbox->cluster == NULL || !find_target(inbox, request, &position)))
			return false;

		inbox_begin();
		applied = inbox_store_lock(inbox) && inbox_store_remove_request(inbox, request);
		if (applied && partition != NULL)
		{
			change_partition(inbox, partition, request, position);
			inbox_store_partition(inbox, partition);
		}
		inbox_commit(inbox);
		if (!applied)
			return false;
	}
	return true;
}
