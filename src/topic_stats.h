/*
 * topic_stats.h
 *	  Counters per database and topic since the server started, behind
 *	  outbox.topic_status.
 *
 * A dshash in a pinned DSA area that the launcher creates. The relay adds to
 * it a few times a second from counters of its own, never per message.
 */
#ifndef OUTBOX_TOPIC_STATS_H
#define OUTBOX_TOPIC_STATS_H

#include "datatype/timestamp.h"
#include "outbox_kafka.h"

typedef struct TopicStatsKey
{
	Oid			dboid;
	char		topic[OUTBOX_TOPIC_MAX_LENGTH + 3]; /* zero padded */
} TopicStatsKey;

typedef struct TopicStats
{
	TopicStatsKey key;
	int32		partitions;		/* as the broker said last, 0 = unknown */
	uint64		published;
	uint64		published_bytes;
	int64		in_flight;		/* as of the last report */
	TimestampTz last_published_at;	/* 0 = never */
	TimestampTz last_error_at;	/* 0 = never */
	char		last_error[256];
} TopicStats;

/*
 * Launcher: make the table and publish its handles in shared memory, unless an
 * earlier launcher has done so.
 */
extern void topic_stats_create(void);

/*
 * Relay: add to a topic's counters. partitions < 0 and error NULL leave those
 * fields alone; in_flight replaces. No-op when the table does not exist yet,
 * or when the topic is new and the table holds as many as it may.
 */
extern void topic_stats_report(const char *topic, int32 partitions,
							   uint64 published, uint64 bytes,
							   int64 in_flight, const char *error);

/* Drop all entries of a database (its extension was dropped). */
extern void topic_stats_forget(Oid dboid);

/*
 * Copies (palloc'd in the current context) of a database's entries, in no
 * order. *count is 0 and the result NULL when there are none.
 */
extern TopicStats *topic_stats_list(Oid dboid, int *count);

#endif							/* OUTBOX_TOPIC_STATS_H */
