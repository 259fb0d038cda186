/*
 * topic_limit.c
 *	  How large a message of a topic may be: outbox.topic_limit.
 *
 * The relay alone writes the table, when it hears something new from the broker
 * (relay_limits.c). Publishing compares with it what a record takes at least,
 * so that a message that can never be sent is refused in the transaction of who
 * made it.
 *
 * A session remembers the smallest limit there is, and what it has looked up
 * for messages that are larger than that. Both are forgotten when the table
 * changes: its trigger sends a relcache invalidation, as that of
 * outbox.publish_grant does. The table is read directly, under the latest
 * snapshot, so neither search_path nor the privileges of the caller have a part
 * in it.
 *
 * A limit may have been raised since the relay asked. So a refusal makes the
 * relay ask again at once, and whoever tries again a few seconds later is
 * judged by the new one.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "shmem.h"
#include "topic_limit.h"

/* Columns of outbox.topic_limit, in the order of the install script */
#define Anum_outbox_topic_limit_topic 1
#define Anum_outbox_topic_limit_max_message_bytes 2
#define Anum_outbox_topic_limit_compressed 3

/* Answers remembered before all are forgotten */
#define MAX_ANSWERS 4096

#define NO_LIMIT INT_MAX

typedef struct LimitAnswer
{
	char		topic[OUTBOX_TOPIC_MAX_LENGTH + 3]; /* key */
	int			bytes;			/* or NO_LIMIT */
} LimitAnswer;

static HTAB *answers = NULL;

/* The smallest of the table, or NO_LIMIT. */
static int	smallest;

/* The table that the answers were read from */
static Oid	answers_relid = InvalidOid;

/* An invalidation came, or reading was interrupted: start anew. */
static bool answers_stale = true;
static bool answers_complete = false;

PG_FUNCTION_INFO_V1(outbox_kafka_topic_limit_changed);

static void
limits_invalidated(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == answers_relid)
		answers_stale = true;
}

/* Called for each row; false ends it. */
typedef bool (*LimitVisitor) (void *arg, HeapTuple tuple, TupleDesc desc);

static void
visit(Relation rel, LimitVisitor visitor, void *arg)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	HeapTuple	tuple;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL &&
		   visitor(arg, tuple, RelationGetDescr(rel)))
		;
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
}

/* The limit that a row sets for publishing, or NO_LIMIT. */
static int
limit_of(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;

	if (DatumGetBool(heap_getattr(tuple, Anum_outbox_topic_limit_compressed, desc, &isnull)))
		return NO_LIMIT;
	return DatumGetInt32(heap_getattr(tuple, Anum_outbox_topic_limit_max_message_bytes,
									  desc, &isnull));
}

static bool
find_smallest(void *arg, HeapTuple tuple, TupleDesc desc)
{
	int		   *result = (int *) arg;

	*result = Min(*result, limit_of(tuple, desc));
	return true;
}

static bool
find_topic(void *arg, HeapTuple tuple, TupleDesc desc)
{
	LimitAnswer *wanted = (LimitAnswer *) arg;
	bool		isnull;
	text	   *topic = DatumGetTextPP(heap_getattr(tuple, Anum_outbox_topic_limit_topic,
													desc, &isnull));

	if (strlen(wanted->topic) != VARSIZE_ANY_EXHDR(topic) ||
		memcmp(wanted->topic, VARDATA_ANY(topic), VARSIZE_ANY_EXHDR(topic)) != 0)
		return true;
	wanted->bytes = limit_of(tuple, desc);
	return false;
}

static void
forget_answers(Oid relid)
{
	static bool registered = false;
	HASHCTL		control = {0};
	Relation	rel;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(limits_invalidated, (Datum) 0);
		registered = true;
	}
	if (answers != NULL)
		hash_destroy(answers);
	answers = NULL;
	control.keysize = sizeof(((LimitAnswer *) NULL)->topic);
	control.entrysize = sizeof(LimitAnswer);
	control.hcxt = TopMemoryContext;
	answers = hash_create("outbox_kafka topic limits", 16, &control,
						  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);

	/* what comes in while reading makes it out of date again */
	answers_relid = relid;
	answers_complete = false;
	rel = table_open(relid, AccessShareLock);
	answers_stale = false;
	smallest = NO_LIMIT;
	visit(rel, find_smallest, &smallest);
	table_close(rel, AccessShareLock);
	answers_complete = true;
}

static int
look_up(const char *topic, int length)
{
	LimitAnswer wanted = {.bytes = NO_LIMIT};
	LimitAnswer *answer;
	bool		found;
	Relation	rel;

	memcpy(wanted.topic, topic, length);
	answer = hash_search(answers, wanted.topic, HASH_FIND, NULL);
	if (answer != NULL)
		return answer->bytes;

	rel = table_open(answers_relid, AccessShareLock);
	visit(rel, find_topic, &wanted);
	table_close(rel, AccessShareLock);
	if (!answers_stale && hash_get_num_entries(answers) < MAX_ANSWERS)
	{
		answer = hash_search(answers, wanted.topic, HASH_ENTER, &found);
		answer->bytes = wanted.bytes;
	}
	return wanted.bytes;
}

/* Somebody is refused: is the limit still what it was? */
static void
make_relay_ask(void)
{
	RelaySlot  *slot = shared_state ? shmem_find_slot(MyDatabaseId) : NULL;

	if (slot == NULL)
		return;
	pg_atomic_fetch_add_u32(&slot->limits_doubted, 1);
	shmem_set_latch(pg_atomic_read_u32(&slot->worker.procno));
}

void
topic_limit_check(const char *topic, int length, Size least_bytes)
{
	Oid			relid = catalog_get(false)->topic_limit;
	int			limit;

	if (unlikely(answers_stale || !answers_complete || relid != answers_relid))
		forget_answers(relid);
	if (likely(least_bytes <= (Size) smallest))
		return;
	limit = look_up(topic, length);
	if (least_bytes <= (Size) limit)
		return;

	make_relay_ask();
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("message is too large for topic \"%.*s\"", length, topic),
			 errdetail("The record takes at least %zu bytes, the topic's max.message.bytes is %d.",
					   least_bytes, limit),
			 errhint("If the topic's limit was raised, try again in a few seconds: the relay asks for it again.")));
}

/*
 * Trigger of outbox.topic_limit: every session forgets what it knows when this
 * transaction commits.
 */
Datum
outbox_kafka_topic_limit_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.topic_limit_changed() is a trigger function")));

	CacheInvalidateRelcache(trigger->tg_relation);

	PG_RETURN_POINTER(NULL);
}

/* ---- for the relay ---- */

static bool
add_row(void *arg, HeapTuple tuple, TupleDesc desc)
{
	List	  **limits = (List **) arg;
	TopicLimit *limit = palloc0(sizeof(TopicLimit));
	bool		isnull;

	strlcpy(limit->topic,
			TextDatumGetCString(heap_getattr(tuple, Anum_outbox_topic_limit_topic, desc, &isnull)),
			sizeof(limit->topic));
	limit->bytes = DatumGetInt32(heap_getattr(tuple, Anum_outbox_topic_limit_max_message_bytes,
											  desc, &isnull));
	limit->compressed = DatumGetBool(heap_getattr(tuple, Anum_outbox_topic_limit_compressed,
												  desc, &isnull));
	*limits = lappend(*limits, limit);
	return true;
}

bool
topic_limit_read(const OutboxCatalog *catalog, CursorLocking locking, List **limits)
{
	Relation	rel;

	*limits = NIL;
	if (!cursor_lock(catalog->topic_limit, AccessShareLock, locking))
		return false;
	rel = table_open(catalog->topic_limit, NoLock);
	visit(rel, add_row, limits);
	table_close(rel, NoLock);
	return true;
}

bool
topic_limit_write(const OutboxCatalog *catalog, const TopicLimit *limit)
{
	Oid			types[] = {TEXTOID, INT4OID, BOOLOID};
	Datum		values[] = {
		CStringGetTextDatum(limit->topic), Int32GetDatum(limit->bytes),
		BoolGetDatum(limit->compressed)
	};
	int			result;

	if (!ConditionalLockRelationOid(catalog->topic_limit, RowExclusiveLock))
		return false;
	SPI_connect();
	if (limit->bytes == 0)
		result = SPI_execute_with_args("DELETE FROM outbox.topic_limit WHERE topic = $1",
									   1, types, values, NULL, false, 0);
	else
		result = SPI_execute_with_args("INSERT INTO outbox.topic_limit"
									   " (topic, max_message_bytes, compressed, changed_at)"
									   " VALUES ($1, $2, $3, clock_timestamp())"
									   " ON CONFLICT (topic) DO UPDATE SET"
									   " max_message_bytes = excluded.max_message_bytes,"
									   " compressed = excluded.compressed,"
									   " changed_at = excluded.changed_at",
									   lengthof(types), types, values, NULL, false, 0);
	if (result != SPI_OK_DELETE && result != SPI_OK_INSERT)
		elog(ERROR, "unexpected result of a statement on outbox.topic_limit");
	SPI_finish();
	return true;
}
