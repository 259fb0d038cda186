/*
 * topic_stats.c
 *	  Counters per database and topic, in a hash table that grows.
 *
 * Fixed slots in the main shared memory would have to be sized for the worst
 * case of names nobody knows in advance; so the table is in dynamic shared
 * memory, made by the launcher when it starts and kept until the server stops.
 * Every process attaches to it when it first needs it and stays attached.
 *
 * The number of entries is bounded: topics come from what applications
 * publish, and statistics may not eat the server's memory.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/dsm.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "shmem.h"
#include "topic_stats.h"

/* About 600 bytes each. */
#define TOPIC_STATS_MAX_ENTRIES 20000

static dsa_area *area = NULL;
static dshash_table *table = NULL;

static dshash_parameters
table_parameters(void)
{
	return compat_dshash_parameters(sizeof(TopicStatsKey), sizeof(TopicStats),
									shared_state->topics_tranche);
}

/* Attach if there is something to attach to. False: no table. */
static bool
attach_table(void)
{
	dsa_handle	area_handle;
	dshash_table_handle table_handle;
	dshash_parameters parameters;
	MemoryContext oldcontext;

	if (table != NULL)
		return true;
	if (shared_state == NULL)
		return false;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	area_handle = shared_state->topics_area;
	table_handle = shared_state->topics_table;
	LWLockRelease(shared_state->lock);
	if (area_handle == DSM_HANDLE_INVALID)
		return false;

	LWLockRegisterTranche(shared_state->topics_tranche, "outbox_kafka_topics");
	parameters = table_parameters();
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	if (area == NULL)
	{
		area = dsa_attach(area_handle);
		dsa_pin_mapping(area);
	}
	table = dshash_attach(area, &parameters, table_handle, NULL);
	MemoryContextSwitchTo(oldcontext);
	return true;
}

void
topic_stats_create(void)
{
	dshash_parameters parameters;
	MemoryContext oldcontext;

	if (attach_table())
		return;

	LWLockRegisterTranche(shared_state->topics_tranche, "outbox_kafka_topics");
	parameters = table_parameters();
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	area = dsa_create(shared_state->topics_tranche);
	dsa_pin_mapping(area);
	table = dshash_create(area, &parameters, NULL);
	MemoryContextSwitchTo(oldcontext);
	dsa_pin(area);

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->topics_area = dsa_get_handle(area);
	shared_state->topics_table = dshash_get_hash_table_handle(table);
	LWLockRelease(shared_state->lock);
}

static void
set_error(TopicStats *stats, const char *error)
{
	int			length = pg_mbcliplen(error, strlen(error), sizeof(stats->last_error) - 1);

	memcpy(stats->last_error, error, length);
	stats->last_error[length] = '\0';
	stats->last_error_at = GetCurrentTimestamp();
}

void
topic_stats_report(const char *topic, int32 partitions, uint64 published,
				   uint64 bytes, int64 in_flight, const char *error)
{
	TopicStatsKey key;
	TopicStats *stats;

	if (!attach_table())
		return;

	memset(&key, 0, sizeof(key));
	key.dboid = MyDatabaseId;
	strlcpy(key.topic, topic, sizeof(key.topic));

	stats = dshash_find(table, &key, true);
	if (stats == NULL)
	{
		bool		found;

		if (pg_atomic_read_u32(&shared_state->topics_count) >= TOPIC_STATS_MAX_ENTRIES)
			return;
		stats = dshash_find_or_insert(table, &key, &found);
		if (!found)
		{
			memset((char *) stats + sizeof(TopicStatsKey), 0,
				   sizeof(TopicStats) - sizeof(TopicStatsKey));
			pg_atomic_fetch_add_u32(&shared_state->topics_count, 1);
		}
	}

	if (partitions >= 0)
		stats->partitions = partitions;
	stats->published += published;
	stats->published_bytes += bytes;
	if (in_flight >= 0)
		stats->in_flight = in_flight;
	if (published > 0)
		stats->last_published_at = GetCurrentTimestamp();
	if (error != NULL)
		set_error(stats, error);
	dshash_release_lock(table, stats);
}

void
topic_stats_forget(Oid dboid)
{
	dshash_seq_status status;
	TopicStats *stats;

	if (!attach_table())
		return;

	dshash_seq_init(&status, table, true);
	while ((stats = dshash_seq_next(&status)) != NULL)
	{
		if (stats->key.dboid == dboid)
		{
			dshash_delete_current(&status);
			pg_atomic_fetch_sub_u32(&shared_state->topics_count, 1);
		}
	}
	dshash_seq_term(&status);
}

/*
 * One pass over the table: copy at most room entries of a database to list,
 * return how many there are. Allocates nothing, as a lock of the table is held.
 */
static int
copy_entries(Oid dboid, TopicStats *list, int room)
{
	dshash_seq_status status;
	TopicStats *stats;
	int			seen = 0;

	dshash_seq_init(&status, table, false);
	while ((stats = dshash_seq_next(&status)) != NULL)
	{
		if (stats->key.dboid != dboid)
			continue;
		if (seen < room)
			memcpy(&list[seen], stats, sizeof(TopicStats));
		seen++;
	}
	dshash_seq_term(&status);
	return seen;
}

TopicStats *
topic_stats_list(Oid dboid, int *count)
{
	TopicStats *list = NULL;
	int			room = 0;
	int			seen;

	*count = 0;
	if (!attach_table())
		return NULL;

	/* Topics may be added between two passes, so there may be a third. */
	while ((seen = copy_entries(dboid, list, room)) > room)
	{
		room = seen;
		if (list != NULL)
			pfree(list);
		list = palloc(room * sizeof(TopicStats));
	}
	*count = seen;
	return list;
}
