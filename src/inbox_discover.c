/*
 * inbox_discover.c
 *	  Which partitions there are for a worker to read.
 *
 * Topics are looked for when the subscription is loaded and at intervals after
 * that, so new ones that match a pattern and new partitions are found. A
 * partition that has no position yet begins where start_from says; the position
 * is fixed at once, so what comes while no worker runs is not passed over. For
 * that reason "latest" is the time of inbox.subscribe(), whenever the partition
 * is found.
 *
 * All questions to Kafka are asked between transactions and wait for a second
 * at most.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "guc.h"
#include "inbox_internal.h"
#include "unix_time.h"

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

void
inbox_add_problem(Inbox *inbox, const char *format,...)
{
	va_list		args;
	char		line[KAFKA_ERROR_LENGTH * 2];

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (inbox->problem.len < 4000)
		appendStringInfo(&inbox->problem, "%s%s", inbox->problem.len > 0 ? "; " : "", line);
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
		if (!kafka_consumer_topics(inbox->consumer, is_pattern(name) ? NULL : name, INBOX_ASK_MS,
								   found_topic, topics, &error) &&
			error.class != KAFKA_ERROR_TOPIC)
		{
			inbox_add_problem(inbox, "no answer from Kafka: %s",
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
			inbox_add_problem(inbox, "topic \"%s\" is missing: %s", name, reason);
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
									   &offset, &high, INBOX_ASK_MS, &error);
	else
		ok = kafka_consumer_offset_at(inbox->consumer, partition->topic, partition->number,
									  unix_ms(subscription->start_time), &offset, INBOX_ASK_MS, &error);
	if (!ok)
	{
		inbox_add_problem(inbox, "topic \"%s\" partition %d: no answer from Kafka: %s",
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

/*
 * A partition that is not read says nothing of its end, but it is the very one
 * whose lag somebody wants to know. No answer is no problem.
 */
static void
note_ends(Inbox *inbox)
{
	for (int i = 0; i < inbox->npartitions; i++)
	{
		InboxPartition *partition = inbox->partitions[i];
		KafkaError	error;
		int64_t		low;
		int64_t		high;

		CHECK_FOR_INTERRUPTS();
		if (partition->state != INBOX_STOPPED || !partition->found)
			continue;
		if (worker_should_stop() ||
			!kafka_consumer_watermarks(inbox->consumer, partition->topic, partition->number,
									   &low, &high, INBOX_ASK_MS, &error))
			return;
		if (high > partition->end_offset)
		{
			partition->end_offset = high;
			partition->dirty = true;
		}
	}
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
	inbox->discover_at = TimestampTzPlusMilliseconds(now, INBOX_AGAIN_MS);
	/* an answer about topics brings the cluster's id along */
	if (!ask_topics(inbox, &topics))
		return;
	cluster = kafka_consumer_cluster(inbox->consumer, INBOX_ASK_MS);
	if (cluster == NULL)
	{
		inbox_add_problem(inbox, "no answer from Kafka");
		return;
	}
	if (inbox->cluster == NULL || strcmp(inbox->cluster, cluster) != 0)
		inbox->cluster = MemoryContextStrdup(inbox->context, cluster);
	if (!note_partitions(inbox, topics))
		return;
	note_ends(inbox);
	inbox->discover_at = TimestampTzPlusMilliseconds(now, inbox->problem.len > 0 ?
													 INBOX_MISSING_MS : guc_metadata_refresh * 1000L);
}
