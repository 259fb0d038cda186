/*
 * inbox_partitions.c
 *	  Reading partitions: where from, and what it means when one of them cannot be
 *	  read.
 *
 * Whether a topic is still the one that the position belongs to cannot be asked
 * everywhere (topic ids came with Kafka 2.8 and librdkafka 2.3, for descriptions
 * only). So reading begins not at the position but at the last message that was
 * handled, whose fingerprint is known: another one there, or a log that ends
 * before the position, is a topic that was made anew. A last message that is not
 * there any more says nothing: retention or compaction took it.
 *
 * All questions to Kafka are asked between transactions and wait for a second
 * at most.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "due.h"
#include "inbox_internal.h"

/* A change of state is stored soon. */
#define STORE_SOON_MS 50

bool
inbox_owns(const InboxSubscription *subscription, int worker, const char *topic, int number)
{
	uint32		hash = hash_bytes((const unsigned char *) topic, (int) strlen(topic));

	return (hash + (uint32) number) % (uint32) subscription->workers == (uint32) worker;
}

InboxPartition *
inbox_partition(Inbox *inbox, const char *topic, int number)
{
	for (int i = 0; i < inbox->npartitions; i++)
	{
		InboxPartition *partition = inbox->partitions[i];

		if (partition->number == number && strcmp(partition->topic, topic) == 0)
			return partition;
	}
	return NULL;
}

InboxPartition *
inbox_add_partition(Inbox *inbox, const char *topic, int number)
{
	MemoryContext old = MemoryContextSwitchTo(inbox->load_context);
	InboxPartition *partition = palloc0(sizeof(InboxPartition));

	partition->topic = pstrdup(topic);
	partition->number = number;
	partition->end_offset = -1;
	partition->leader_epoch = -1;
	partition->last_offset = -1;
	partition->failing_offset = -1;
	partition->end_seen = -1;
	if (inbox->npartitions == inbox->partitions_room)
	{
		inbox->partitions_room = Max(16, inbox->partitions_room * 2);
		if (inbox->partitions == NULL)
			inbox->partitions = palloc(sizeof(InboxPartition *) * inbox->partitions_room);
		else
			inbox->partitions = repalloc(inbox->partitions,
										 sizeof(InboxPartition *) * inbox->partitions_room);
	}
	inbox->partitions[inbox->npartitions++] = partition;
	MemoryContextSwitchTo(old);
	return partition;
}

void
inbox_set_state(Inbox *inbox, InboxPartition *partition, InboxPartitionState state,
				const char *reason)
{
	TimestampTz now = GetCurrentTimestamp();

	if (partition->state != state && reason != NULL)
		ereport(LOG,
				(errmsg("subscription \"%s\": topic \"%s\" partition %d is %s: %s",
						inbox->subscription->name, partition->topic, partition->number,
						inbox_state_names[state], reason)));
	partition->state = state;
	if (reason != NULL)
	{
		strlcpy(partition->error, reason, sizeof(partition->error));
		partition->error_at = now;
	}
	partition->dirty = true;
	inbox->tidy_at = due_sooner(inbox->tidy_at, TimestampTzPlusMilliseconds(now, STORE_SOON_MS));
}

/* ---- reading ---- */

int64
inbox_fingerprint(const KafkaItem *item)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) &item->timestamp_ms,
										   sizeof(item->timestamp_ms), 0);

	hash = hash_bytes_extended(item->key, (int) item->key_length, hash);
	return (int64) hash_bytes_extended(item->value, (int) item->value_length, hash);
}

void
inbox_drop_first(InboxPartition *partition)
{
	kafka_item_free(&partition->items[partition->first]);
	partition->first++;
	partition->count--;
	if (partition->count == 0)
		partition->first = 0;
}

void
inbox_reach_end(InboxPartition *partition)
{
	if (partition->count == 0 && partition->end_seen > partition->position)
	{
		partition->position = partition->end_seen;
		partition->end_offset = Max(partition->end_offset, partition->position);
		partition->dirty = true;
	}
}

void
inbox_stop_reading(InboxPartition *partition)
{
	while (partition->count > 0)
		inbox_drop_first(partition);
	if (partition->reading != NULL)
		kafka_partition_stop(partition->reading);
	partition->reading = NULL;
	partition->end_seen = -1;
}

static void
keep_item(InboxPartition *partition, const KafkaItem *item, MemoryContext context)
{
	if (partition->first + partition->count == partition->room)
	{
		if (partition->first > 0)
		{
			memmove(partition->items, partition->items + partition->first,
					sizeof(KafkaItem) * partition->count);
			partition->first = 0;
		}
		else
		{
			partition->room = Max(256, partition->room * 2);
			if (partition->items == NULL)
				partition->items = MemoryContextAllocHuge(context, sizeof(KafkaItem) * partition->room);
			else
				partition->items = repalloc_huge(partition->items, sizeof(KafkaItem) * partition->room);
		}
	}
	partition->items[partition->first + partition->count++] = *item;
	partition->next_offset = item->offset + 1;
}

static void
found_recreated(Inbox *inbox, InboxPartition *partition, const char *how)
{
	char		line[KAFKA_ERROR_LENGTH];

	snprintf(line, sizeof(line),
			 "%s; it was read up to offset " INT64_FORMAT ", inbox.seek() decides where to read on",
			 how, partition->position);
	inbox_stop_reading(partition);
	inbox_set_state(inbox, partition, INBOX_RECREATED, line);
}

/* A message came. False: it is not to be kept. */
static bool
accept_message(Inbox *inbox, InboxPartition *partition, const KafkaItem *item)
{
	bool		first = partition->check_last;

	partition->check_last = false;
	if (first && item->offset == partition->last_offset &&
		inbox_fingerprint(item) != partition->last_fingerprint)
		found_recreated(inbox, partition,
						"there is another message at the offset of the last one that was handled");
	else if (item->leader_epoch >= 0 && item->leader_epoch < partition->leader_epoch)
		found_recreated(inbox, partition, "its leader epochs have begun anew");
	else if (first && item->offset > partition->last_offset &&
			 item->offset < partition->position)
		found_recreated(inbox, partition, "there is a message where there was none");
	else
		return item->offset >= partition->position && item->offset >= partition->next_offset;
	return false;
}

static void
note_error(Inbox *inbox, InboxPartition *partition, const KafkaItem *item)
{
	char		line[KAFKA_ERROR_LENGTH];

	switch (item->problem)
	{
		case KAFKA_PARTITION_LATER:
			break;
		case KAFKA_PARTITION_RANGE:
			inbox_stop_reading(partition);
			partition->range_error = true;
			break;
		case KAFKA_PARTITION_MISSING:
		case KAFKA_PARTITION_DENIED:
			inbox_stop_reading(partition);
			kafka_item_text(item, line, sizeof(line));
			inbox_set_state(inbox, partition, INBOX_MISSING, line);
			partition->found = false;
			inbox->discover_at = due_sooner(inbox->discover_at,
											TimestampTzPlusMilliseconds(GetCurrentTimestamp(), INBOX_MISSING_MS));
			break;
	}
}

void
inbox_take(Inbox *inbox, InboxPartition *partition, int max)
{
	KafkaItem	items[256];

	while (partition->reading != NULL && partition->count < max)
	{
		int			room = Min(max - partition->count, (int) lengthof(items));
		int			count = kafka_partition_take(partition->reading, items, room);

		for (int i = 0; i < count; i++)
		{
			bool		kept = false;

			/* it was stopped because of an item before */
			if (partition->reading == NULL)
			{
				kafka_item_free(&items[i]);
				continue;
			}
			switch (items[i].kind)
			{
				case KAFKA_ITEM_MESSAGE:
					kept = accept_message(inbox, partition, &items[i]);
					if (kept)
						keep_item(partition, &items[i], inbox->load_context);
					break;
				case KAFKA_ITEM_END:
					partition->check_last = false;
					if (items[i].offset < partition->position)
						found_recreated(inbox, partition, "it ends before that");
					else
						partition->end_seen = items[i].offset;
					break;
				case KAFKA_ITEM_ERROR:
					note_error(inbox, partition, &items[i]);
					break;
			}
			if (!kept)
				kafka_item_free(&items[i]);
		}
		if (count < room)
			break;
	}
}

bool
inbox_partition_is_ready(const InboxPartition *partition, TimestampTz now)
{
	return partition->reading != NULL && partition->look_at <= now &&
		(partition->state == INBOX_RUNNING || partition->state == INBOX_SKIPPING ||
		 (partition->state == INBOX_RETRYING && partition->next_try_at <= now));
}

/*
 * Kafka does not have the position. What retention took is gone: it is counted,
 * told, and passed. False: it is not read, now at least.
 */
static bool
explain_range(Inbox *inbox, InboxPartition *partition, TimestampTz now)
{
	KafkaError	error;
	int64_t		low;
	int64_t		high;
	int64		go_on;
	char		line[KAFKA_ERROR_LENGTH];

	if (!kafka_consumer_watermarks(inbox->consumer, partition->topic, partition->number,
								   &low, &high, INBOX_ASK_MS, &error))
	{
		partition->look_at = TimestampTzPlusMilliseconds(now, INBOX_AGAIN_MS);
		return false;
	}
	partition->range_error = false;
	if (partition->position > high)
	{
		snprintf(line, sizeof(line), "it ends at offset " INT64_FORMAT, (int64) high);
		found_recreated(inbox, partition, line);
		return false;
	}
	if (partition->position >= low)
		return true;

	go_on = inbox->subscription->start_latest ? high : low;
	snprintf(line, sizeof(line),
			 "offset out of range: offsets " INT64_FORMAT " to " INT64_FORMAT
			 " were removed by Kafka before they were read; reading goes on at offset " INT64_FORMAT,
			 partition->position, (int64) low - 1, go_on);
	ereport(WARNING,
			(errmsg("subscription \"%s\": topic \"%s\" partition %d: %s",
					inbox->subscription->name, partition->topic, partition->number, line)));
	partition->lost += go_on - partition->position;
	partition->position = go_on;
	partition->failing_offset = -1;
	partition->attempts = 0;
	partition->next_try_at = 0;
	inbox_set_state(inbox, partition, INBOX_RUNNING, line);
	return true;
}

static void
start_partition(Inbox *inbox, InboxPartition *partition, TimestampTz now)
{
	KafkaError	error;
	int64		from = partition->position;

	if (partition->cluster != NULL && strcmp(partition->cluster, inbox->cluster) != 0)
	{
		char		line[KAFKA_ERROR_LENGTH];

		snprintf(line, sizeof(line),
				 "its position is one of Kafka cluster %s, and this is %s; inbox.seek() decides where to read on",
				 partition->cluster, inbox->cluster);
		inbox_set_state(inbox, partition, INBOX_OTHER_CLUSTER, line);
		return;
	}
	partition->check_last = false;
	if (partition->range_error)
	{
		if (!explain_range(inbox, partition, now))
			return;
		from = partition->position;
	}
	else if (partition->last_offset >= 0 && partition->last_offset < from)
	{
		from = partition->last_offset;
		partition->check_last = true;
	}
	if (partition->state == INBOX_MISSING || partition->state == INBOX_OTHER_CLUSTER)
		inbox_set_state(inbox, partition,
						partition->failing_offset >= 0 ? INBOX_RETRYING : INBOX_RUNNING, NULL);
	partition->next_offset = partition->position;
	partition->cluster = inbox->cluster;
	partition->reading = kafka_partition_start(inbox->consumer, partition->topic,
											   partition->number, from, &error);
	if (partition->reading == NULL)
	{
		inbox_set_state(inbox, partition, INBOX_MISSING, error.message);
		partition->look_at = TimestampTzPlusMilliseconds(now, INBOX_AGAIN_MS);
	}
}

void
inbox_start_reading(Inbox *inbox, TimestampTz now)
{
	if (inbox->cluster == NULL)
		return;
	for (int i = 0; i < inbox->npartitions; i++)
	{
		InboxPartition *partition = inbox->partitions[i];

		if (partition->reading == NULL && partition->found && partition->look_at <= now &&
			(partition->state == INBOX_RUNNING || partition->state == INBOX_RETRYING ||
			 partition->state == INBOX_SKIPPING || partition->state == INBOX_MISSING ||
			 (partition->state == INBOX_OTHER_CLUSTER && partition->cluster != NULL &&
			  strcmp(partition->cluster, inbox->cluster) == 0)))
			start_partition(inbox, partition, now);
	}
}
