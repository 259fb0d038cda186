/*
 * inbox_partitions.c
 *	  Which partitions a worker reads, where from, and what it means when one of
 *	  them cannot be read.
 *
 * Topics are looked for when the subscription is loaded and at intervals after
 * that, so new ones that match a pattern and new partitions are found. A
 * partition that has no position yet begins where start_from says; the position
 * is fixed at once, so what comes while no worker runs is not passed over. For
 * that reason "latest" is the time of inbox.subscribe(), whenever the partition
 * is found.
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

#include "catalog/pg_collation.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "due.h"
#include "guc.h"
#include "inbox_internal.h"

/* How long a question to Kafka may take. */
#define ASK_MS 1000

/* Before asking again. */
#define AGAIN_MS 1000

/* Before looking again for a topic that is missing. */
#define MISSING_MS 3000

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
				const char *text)
{
	TimestampTz now = GetCurrentTimestamp();

	if (partition->state != state && text != NULL)
		ereport(LOG,
				(errmsg("subscription \"%s\": topic \"%s\" partition %d is %s: %s",
						inbox->subscription->name, partition->topic, partition->number,
						inbox_state_names[state], text)));
	partition->state = state;
	if (text != NULL)
	{
		strlcpy(partition->error, text, sizeof(partition->error));
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
	char		text[KAFKA_ERROR_LENGTH];

	snprintf(text, sizeof(text),
			 "%s; it was read up to offset " INT64_FORMAT ", inbox.seek() decides where to read on",
			 how, partition->position);
	inbox_stop_reading(partition);
	inbox_set_state(inbox, partition, INBOX_RECREATED, text);
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
			inbox_set_state(inbox, partition, INBOX_MISSING, item->text);
			partition->found = false;
			inbox->discover_at = due_sooner(inbox->discover_at,
											TimestampTzPlusMilliseconds(GetCurrentTimestamp(), MISSING_MS));
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
			/* it was stopped because of an item before */
			if (partition->reading == NULL)
			{
				kafka_item_free(&items[i]);
				continue;
			}
			switch (items[i].kind)
			{
				case KAFKA_ITEM_MESSAGE:
					if (accept_message(inbox, partition, &items[i]))
						keep_item(partition, &items[i], inbox->load_context);
					else
						kafka_item_free(&items[i]);
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
	char		text[KAFKA_ERROR_LENGTH];

	if (!kafka_consumer_watermarks(inbox->consumer, partition->topic, partition->number,
								   &low, &high, ASK_MS, &error))
	{
		partition->look_at = TimestampTzPlusMilliseconds(now, AGAIN_MS);
		return false;
	}
	partition->range_error = false;
	if (partition->position > high)
	{
		snprintf(text, sizeof(text), "it ends at offset " INT64_FORMAT, (int64) high);
		found_recreated(inbox, partition, text);
		return false;
	}
	if (partition->position >= low)
		return true;

	go_on = inbox->subscription->start_latest ? high : low;
	snprintf(text, sizeof(text),
			 "offset out of range: offsets " INT64_FORMAT " to " INT64_FORMAT
			 " were removed by Kafka before they were read; reading goes on at offset " INT64_FORMAT,
			 partition->position, (int64) low - 1, go_on);
	ereport(WARNING,
			(errmsg("subscription \"%s\": topic \"%s\" partition %d: %s",
					inbox->subscription->name, partition->topic, partition->number, text)));
	partition->lost += go_on - partition->position;
	partition->position = go_on;
	partition->failing_offset = -1;
	partition->attempts = 0;
	partition->next_try_at = 0;
	inbox_set_state(inbox, partition, INBOX_RUNNING, text);
	return true;
}

static void
start_partition(Inbox *inbox, InboxPartition *partition, TimestampTz now)
{
	KafkaError	error;
	int64		from = partition->position;

	if (partition->cluster != NULL && strcmp(partition->cluster, inbox->cluster) != 0)
	{
		char		text[KAFKA_ERROR_LENGTH];

		snprintf(text, sizeof(text),
				 "its position is one of Kafka cluster %s, and this is %s; inbox.seek() decides where to read on",
				 partition->cluster, inbox->cluster);
		inbox_set_state(inbox, partition, INBOX_OTHER_CLUSTER, text);
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
	if (partition->state == INBOX_MISSING)
		inbox_set_state(inbox, partition,
						partition->failing_offset >= 0 ? INBOX_RETRYING : INBOX_RUNNING, NULL);
	partition->next_offset = partition->position;
	partition->cluster = inbox->cluster;
	partition->reading = kafka_partition_start(inbox->consumer, partition->topic,
											   partition->number, from, &error);
	if (partition->reading == NULL)
	{
		inbox_set_state(inbox, partition, INBOX_MISSING, error.message);
		partition->look_at = TimestampTzPlusMilliseconds(now, AGAIN_MS);
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
			 partition->state == INBOX_SKIPPING || partition->state == INBOX_MISSING))
			start_partition(inbox, partition, now);
	}
}

/* ---- what there is ---- */

typedef struct FoundTopic
{
	char	   *name;
	int			partitions;
	char	   *error;
} FoundTopic;

static void
found_topic(void *arg, const KafkaTopicInfo *info)
{
	List	  **topics = arg;
	FoundTopic *topic = palloc0(sizeof(FoundTopic));

	topic->name = pstrdup(info->name);
	topic->partitions = info->partitions;
	if (info->partitions == 0)
		topic->error = pstrdup(info->error.message);
	*topics = lappend(*topics, topic);
}

static bool
is_pattern(const char *name)
{
	return name[0] == '^';
}

/* Topics that Kafka keeps for itself match only what asks for them. */
static bool
matches(const char *pattern, const char *topic)
{
	if (strncmp(topic, "__", 2) == 0 && strncmp(pattern, "^__", 3) != 0)
		return false;
	return DatumGetBool(DirectFunctionCall2Coll(textregexeq, C_COLLATION_OID,
												CStringGetTextDatum(topic),
												CStringGetTextDatum(pattern)));
}

static bool
is_subscribed(const InboxSubscription *subscription, const char *topic)
{
	ListCell   *cell;

	foreach(cell, subscription->topics)
	{
		const char *name = lfirst(cell);

		if (is_pattern(name) ? matches(name, topic) : strcmp(name, topic) == 0)
			return true;
	}
	return false;
}

static void
add_problem(Inbox *inbox, const char *format,...) pg_attribute_printf(2, 3);

static void
add_problem(Inbox *inbox, const char *format,...)
{
	va_list		args;
	char		text[KAFKA_ERROR_LENGTH * 2];

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (inbox->problem.len < 4000)
		appendStringInfo(&inbox->problem, "%s%s", inbox->problem.len > 0 ? "; " : "", text);
}

/* All topics that are there of those subscribed. False: no answer. */
static bool
ask_topics(Inbox *inbox, List **topics)
{
	bool		all = false;
	KafkaError	error;
	ListCell   *cell;

	foreach(cell, inbox->subscription->topics)
	{
		const char *name = lfirst(cell);

		CHECK_FOR_INTERRUPTS();
		if (worker_should_stop())
			return false;
		if (is_pattern(name) ? all : false)
			continue;
		all |= is_pattern(name);
		if (!kafka_consumer_topics(inbox->consumer, is_pattern(name) ? NULL : name, ASK_MS,
								   found_topic, topics, &error) &&
			error.class != KAFKA_ERROR_TOPIC)
		{
			add_problem(inbox, "no answer from Kafka: %s",
						inbox->event_text[0] != '\0' ? inbox->event_text : error.message);
			return false;
		}
	}
	foreach(cell, inbox->subscription->topics)
	{
		const char *name = lfirst(cell);
		bool		there = is_pattern(name);
		const char *reason = "no such topic";
		ListCell   *found;

		foreach(found, *topics)
		{
			FoundTopic *topic = lfirst(found);

			if (strcmp(topic->name, name) != 0)
				continue;
			there |= topic->partitions > 0;
			if (topic->error != NULL)
				reason = topic->error;
		}
		if (!there)
			add_problem(inbox, "topic \"%s\" is missing: %s", name, reason);
	}
	return true;
}

/* Where a partition that was not known begins. False: no answer. */
static bool
find_start(Inbox *inbox, InboxPartition *partition)
{
	const InboxSubscription *subscription = inbox->subscription;
	KafkaError	error;
	int64_t		offset;
	int64_t		high;
	bool		ok;

	if (subscription->start_time == 0)
		ok = kafka_consumer_watermarks(inbox->consumer, partition->topic, partition->number,
									   &offset, &high, ASK_MS, &error);
	else
		ok = kafka_consumer_offset_at(inbox->consumer, partition->topic, partition->number,
									  subscription->start_time / 1000 +
									  (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000,
									  &offset, ASK_MS, &error);
	if (!ok)
	{
		add_problem(inbox, "topic \"%s\" partition %d: no answer from Kafka: %s",
					partition->topic, partition->number, error.message);
		return false;
	}
	partition->position = offset;
	partition->cluster = inbox->cluster;
	return true;
}

/* False: not now. */
static bool
insert_partitions(Inbox *inbox, List *partitions)
{
	ListCell   *cell;
	bool		entered;

	inbox_begin();
	entered = inbox_store_enter(inbox);
	foreach(cell, partitions)
	{
		/* if there is a row all the same, it counts */
		if (entered && !inbox_store_insert_partition(inbox, lfirst(cell)))
			inbox->reload = true;
	}
	inbox_commit(inbox);
	return entered && !inbox->reload;
}

/* False: Kafka has not answered all, or somebody decides. */
static bool
note_partitions(Inbox *inbox, List *topics)
{
	List	   *fresh = NIL;
	ListCell   *cell;
	bool		complete = true;
	int			known = inbox->npartitions;

	for (int i = 0; i < known; i++)
		inbox->partitions[i]->found = false;
	foreach(cell, topics)
	{
		FoundTopic *topic = lfirst(cell);

		if (topic->partitions == 0 || !is_subscribed(inbox->subscription, topic->name))
			continue;
		for (int number = 0; number < topic->partitions; number++)
		{
			InboxPartition *partition;

			if (!inbox_owns(inbox->subscription, inbox->number, topic->name, number))
				continue;
			partition = inbox_partition(inbox, topic->name, number);
			if (partition == NULL)
			{
				CHECK_FOR_INTERRUPTS();
				if (worker_should_stop())
					return false;
				partition = inbox_add_partition(inbox, topic->name, number);
				if (!find_start(inbox, partition))
				{
					inbox->npartitions--;
					complete = false;
					continue;
				}
				fresh = lappend(fresh, partition);
			}
			partition->found = true;
		}
	}
	if (fresh != NIL && !insert_partitions(inbox, fresh))
	{
		inbox->npartitions = known;
		return false;
	}
	for (int i = 0; i < inbox->npartitions; i++)
	{
		InboxPartition *partition = inbox->partitions[i];

		if (partition->found)
			continue;
		if (!is_subscribed(inbox->subscription, partition->topic))
			inbox_stop_reading(partition);
		else if (partition->state == INBOX_RUNNING || partition->state == INBOX_RETRYING)
		{
			inbox_stop_reading(partition);
			inbox_set_state(inbox, partition, INBOX_MISSING, "no such topic or partition");
		}
	}
	return complete;
}

void
inbox_discover(Inbox *inbox, TimestampTz now)
{
	List	   *topics = NIL;
	const char *cluster;

	resetStringInfo(&inbox->problem);
	inbox->discover_at = TimestampTzPlusMilliseconds(now, AGAIN_MS);
	/* an answer about topics brings the cluster's id along */
	if (!ask_topics(inbox, &topics))
		return;
	cluster = kafka_consumer_cluster(inbox->consumer, ASK_MS);
	if (cluster == NULL)
	{
		add_problem(inbox, "no answer from Kafka");
		return;
	}
	if (inbox->cluster == NULL || strcmp(inbox->cluster, cluster) != 0)
		inbox->cluster = MemoryContextStrdup(inbox->context, cluster);
	if (!note_partitions(inbox, topics))
		return;
	inbox->discover_at = TimestampTzPlusMilliseconds(now, inbox->problem.len > 0 ?
													 MISSING_MS : guc_metadata_refresh * 1000L);
}

/* ---- decisions ---- */

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
									   &low, &high, ASK_MS, &error);
		offset = request->kind == INBOX_SEEK_EARLIEST ? low : high;
	}
	else if (request->kind == INBOX_SEEK_TIME)
		ok = kafka_consumer_offset_at(inbox->consumer, request->topic, request->number,
									  request->time / 1000 +
									  (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000,
									  &offset, ASK_MS, &error);
	if (!ok)
	{
		resetStringInfo(&inbox->problem);
		add_problem(inbox, "inbox.seek() for topic \"%s\" partition %d: no answer from Kafka: %s",
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
