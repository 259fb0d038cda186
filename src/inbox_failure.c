/*
 * inbox_failure.c
 *	  What becomes of a message that could not be handled.
 *
 * It is tried again after a pause, which doubles each time; its partition waits,
 * the others go on. After max_attempts it becomes a dead letter, or the
 * partition stops. Errors that say nothing about the message (a full disk, no
 * memory, a shutdown) are not counted: it is tried until they are over.
 *
 * The texts of errors go to the log and into a view, so it is the message alone
 * that is kept: detail and context quote data.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/timestamp.h"

#include "due.h"
#include "inbox_internal.h"

/* No pause is longer, unless retry_backoff is. */
#define BACKOFF_MAX_MS 300000

void
inbox_describe_error(const ErrorData *data, InboxError *error)
{
	int			category = ERRCODE_TO_CATEGORY(data->sqlerrcode);
	const char *message = data->message ? data->message : "";

	strlcpy(error->sqlstate, unpack_sql_state(data->sqlerrcode), sizeof(error->sqlstate));
	strlcpy(error->text, message, sizeof(error->text));
	error->text[pg_mbcliplen(error->text, (int) strlen(error->text), sizeof(error->text) - 1)] = '\0';
	error->counts = category != ERRCODE_INSUFFICIENT_RESOURCES &&
		category != ERRCODE_SYSTEM_ERROR &&
		data->sqlerrcode != ERRCODE_ADMIN_SHUTDOWN &&
		data->sqlerrcode != ERRCODE_CRASH_SHUTDOWN &&
		data->sqlerrcode != ERRCODE_CANNOT_CONNECT_NOW;
}

void
inbox_passed(Inbox *inbox, InboxPartition *partition, const KafkaItem *item)
{
	partition->position = item->offset + 1;
	partition->last_offset = item->offset;
	partition->last_fingerprint = inbox_fingerprint(item);
	if (item->leader_epoch >= 0)
		partition->leader_epoch = item->leader_epoch;
	partition->failing_offset = -1;
	partition->attempts = 0;
	partition->next_try_at = 0;
	partition->state = INBOX_RUNNING;
	partition->end_offset = Max(partition->end_offset, partition->position);
	if (partition->reading != NULL)
		partition->end_offset = Max(partition->end_offset,
									kafka_partition_end(partition->reading));
	partition->dirty = true;
}

static int64
backoff_ms(const InboxSubscription *subscription, int attempts)
{
	int64		pause = subscription->retry_backoff_ms;
	int64		limit = Max(pause, BACKOFF_MAX_MS);

	for (int i = 1; i < attempts && pause < limit; i++)
		pause *= 2;
	return Min(pause, limit);
}

bool
inbox_failed(Inbox *inbox, InboxPartition *partition, const KafkaItem *item,
			 const InboxError *error, bool attempted, TimestampTz now)
{
	const InboxSubscription *subscription = inbox->subscription;

	if (partition->failing_offset != item->offset)
		partition->attempts = 0;
	partition->failing_offset = item->offset;
	partition->position = item->offset;
	if (error->counts && !attempted)
		partition->attempts++;
	strlcpy(partition->error, error->text, sizeof(partition->error));
	partition->error_at = now;
	partition->next_try_at = 0;
	partition->dirty = true;
	pg_atomic_fetch_add_u64(&inbox->slot->failed, 1);

	ereport(partition->attempts <= 1 ? WARNING : DEBUG1,
			(errmsg("subscription \"%s\": the handler failed for topic \"%s\" partition %d offset " INT64_FORMAT ", attempt %d of %d: %s (%s)",
					subscription->name, partition->topic, partition->number, item->offset,
					partition->attempts, subscription->max_attempts, error->text, error->sqlstate)));

	if (partition->attempts < subscription->max_attempts)
	{
		partition->state = INBOX_RETRYING;
		partition->next_try_at =
			TimestampTzPlusMilliseconds(now, backoff_ms(subscription, Max(partition->attempts, 1)));
		return false;
	}
	if (subscription->stop_on_failure)
	{
		partition->state = INBOX_STOPPED;
		ereport(WARNING,
				(errmsg("subscription \"%s\": topic \"%s\" partition %d stops at offset " INT64_FORMAT,
						subscription->name, partition->topic, partition->number, item->offset),
				 errhint("Call inbox.retry() or inbox.skip().")));
		return false;
	}
	return true;
}
