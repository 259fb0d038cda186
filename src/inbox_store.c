/*
 * inbox_store.c
 *	  The inbox worker's tables.
 *
 * The rows that are written with each batch, those of inbox.offset, are written
 * directly at the place where they were written last (row_place.h): no plan, no
 * search. All tables are read by scans of their primary key.
 *
 * Decisions. A user decides (pause, seek, another handler ...) under an
 * exclusive lock on the subscription, kept until commit; a worker handles
 * messages under a share lock on it, and looks for decisions after it has the
 * lock. So from the moment that inbox.seek() returns until its transaction has
 * ended nothing is handled, and what is handled then starts from there: a table
 * can be emptied and rebuilt from Kafka in one transaction. A worker does not
 * wait for the lock, it would not notice that it has to end.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "inbox_internal.h"
#include "inbox_lock.h"

/* Columns of inbox.subscription */
enum
{
	SUB_ID = 1, SUB_NAME, SUB_OWNER, SUB_TOPICS, SUB_HANDLER, SUB_START_FROM,
	SUB_MAX_ATTEMPTS, SUB_RETRY_BACKOFF, SUB_ON_FAILURE, SUB_WORKERS,
	SUB_BATCH_SIZE, SUB_DEDUPE_WINDOW, SUB_PAUSED, SUB_CREATED_AT
};

/* Columns of inbox.offset */
enum
{
	OFF_SUBSCRIPTION = 1, OFF_TOPIC, OFF_PARTITION, OFF_POSITION, OFF_END,
	OFF_CLUSTER, OFF_LEADER_EPOCH, OFF_LAST_OFFSET, OFF_LAST_FINGERPRINT,
	OFF_STATE, OFF_FAILING_OFFSET, OFF_ATTEMPTS, OFF_NEXT_TRY_AT, OFF_LOST,
	OFF_LAST_ERROR, OFF_LAST_ERROR_AT,
	OFF_COLUMNS = OFF_LAST_ERROR_AT
};

/* Columns of inbox.request */
enum
{
	REQ_SUBSCRIPTION = 1, REQ_TOPIC, REQ_PARTITION, REQ_KIND, REQ_TO_OFFSET,
	REQ_TO_TIME
};

const char *const inbox_state_names[] = {
	"running", "retrying", "stopped", "skipping", "missing", "recreated",
	"another cluster"
};

const char *const inbox_request_kinds[] = {
	"earliest", "latest", "offset", "time", "retry", "skip"
};

void
inbox_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
inbox_commit(Inbox *inbox)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(inbox->loop_context);
}

Oid
inbox_store_relation(const char *name)
{
	Oid			schema = get_namespace_oid(INBOX_SCHEMA, true);
	Oid			relation = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" of extension \"%s\" is missing",
						INBOX_SCHEMA, name, OUTBOX_EXTENSION)));
	return relation;
}

Relation
inbox_store_open(const char *name, LOCKMODE mode)
{
	Oid			relation = inbox_store_relation(name);

	if (!ConditionalLockRelationOid(relation, mode))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("table \"%s.%s\" is locked", INBOX_SCHEMA, name)));
	return table_open(relation, NoLock);
}

SysScanDesc
inbox_store_scan(Relation rel, int key, const int *second, Snapshot snapshot)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(key));
	if (second != NULL)
		ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(*second));
	return systable_beginscan(rel, compat_primary_key_index(rel), true, snapshot,
							  second != NULL ? 2 : 1, keys);
}

static char *
get_text(HeapTuple tuple, int column, TupleDesc desc)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, column, desc, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static int64
get_int64(HeapTuple tuple, int column, TupleDesc desc, int64 if_null)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, column, desc, &isnull);

	return isnull ? if_null : DatumGetInt64(value);
}

static int32
get_int32(HeapTuple tuple, int column, TupleDesc desc, int32 if_null)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, column, desc, &isnull);

	return isnull ? if_null : DatumGetInt32(value);
}

/* ---- the subscription ---- */

static int64
interval_ms(Datum value)
{
	const Interval *interval = DatumGetIntervalP(value);

	return (((int64) interval->month * DAYS_PER_MONTH + interval->day) * SECS_PER_DAY) * 1000 +
		interval->time / 1000;
}

static List *
get_topics(Datum value)
{
	Datum	   *elements;
	int			count;
	List	   *result = NIL;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, NULL, &count);
	for (int i = 0; i < count; i++)
		result = lappend(result, TextDatumGetCString(elements[i]));
	return result;
}

/*
 * A partition may be found at any time after the subscription was made: latest
 * means what was written since then.
 */
static void
set_start(InboxSubscription *subscription, const char *start_from)
{
	if (strcmp(start_from, "earliest") == 0)
		return;
	subscription->start_latest = strcmp(start_from, "latest") == 0;
	subscription->start_time = subscription->start_latest ? subscription->created_at :
		DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(start_from),
												ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

static void
fill_subscription(InboxSubscription *subscription, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		value;

	subscription->id = get_int32(tuple, SUB_ID, desc, 0);
	subscription->name = get_text(tuple, SUB_NAME, desc);
	subscription->owner = get_text(tuple, SUB_OWNER, desc);
	subscription->topics = get_topics(heap_getattr(tuple, SUB_TOPICS, desc, &isnull));
	subscription->handler = get_text(tuple, SUB_HANDLER, desc);
	subscription->max_attempts = get_int32(tuple, SUB_MAX_ATTEMPTS, desc, 1);
	subscription->retry_backoff_ms = interval_ms(heap_getattr(tuple, SUB_RETRY_BACKOFF, desc, &isnull));
	subscription->stop_on_failure = strcmp(get_text(tuple, SUB_ON_FAILURE, desc), "stop_partition") == 0;
	subscription->workers = get_int32(tuple, SUB_WORKERS, desc, 1);
	subscription->batch_size = get_int32(tuple, SUB_BATCH_SIZE, desc, 1);
	value = heap_getattr(tuple, SUB_DEDUPE_WINDOW, desc, &isnull);
	subscription->dedupe_ms = isnull ? 0 : Max(interval_ms(value), 1);
	subscription->paused = DatumGetBool(heap_getattr(tuple, SUB_PAUSED, desc, &isnull));
	subscription->created_at = DatumGetTimestampTz(heap_getattr(tuple, SUB_CREATED_AT, desc, &isnull));
	set_start(subscription, get_text(tuple, SUB_START_FROM, desc));
	subscription->xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);
	subscription->tid = tuple->t_self;
}

InboxSubscription *
inbox_store_subscription(int id)
{
	Relation	rel = inbox_store_open("subscription", AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = inbox_store_scan(rel, id, NULL, snapshot);
	HeapTuple	tuple = systable_getnext(scan);
	InboxSubscription *result = NULL;

	if (HeapTupleIsValid(tuple))
	{
		result = palloc0(sizeof(InboxSubscription));
		fill_subscription(result, tuple, RelationGetDescr(rel));
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return result;
}

/* Whether the row is still the one that was read. */
static bool
subscription_changed(const InboxSubscription *known, Snapshot snapshot)
{
	Relation	rel = inbox_store_open("subscription", AccessShareLock);
	SysScanDesc scan = inbox_store_scan(rel, known->id, NULL, snapshot);
	HeapTuple	tuple = systable_getnext(scan);
	bool		changed;

	changed = !HeapTupleIsValid(tuple) ||
		HeapTupleHeaderGetRawXmin(tuple->t_data) != known->xmin ||
		!ItemPointerEquals(&tuple->t_self, (ItemPointer) &known->tid);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return changed;
}

/* ---- requests ---- */

static void
fill_request(InboxRequest *request, HeapTuple tuple, TupleDesc desc)
{
	char	   *kind = get_text(tuple, REQ_KIND, desc);

	request->topic = get_text(tuple, REQ_TOPIC, desc);
	request->number = get_int32(tuple, REQ_PARTITION, desc, 0);
	for (request->kind = 0; request->kind < INBOX_SKIP; request->kind++)
	{
		if (strcmp(kind, inbox_request_kinds[request->kind]) == 0)
			break;
	}
	request->offset = get_int64(tuple, REQ_TO_OFFSET, desc, 0);
	request->time = get_int64(tuple, REQ_TO_TIME, desc, 0);
	request->tid = tuple->t_self;
	request->xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);
}

/* Those of this worker's partitions; only the first one if first is given. */
static List *
read_requests(Inbox *inbox, Snapshot snapshot, bool first)
{
	Relation	rel = inbox_store_open("request", AccessShareLock);
	SysScanDesc scan = inbox_store_scan(rel, inbox->subscription->id, NULL, snapshot);
	List	   *result = NIL;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		InboxRequest *request = palloc(sizeof(InboxRequest));

		fill_request(request, tuple, RelationGetDescr(rel));
		if (!inbox_owns(inbox->subscription, inbox->number, request->topic, request->number))
			continue;
		result = lappend(result, request);
		if (first)
			break;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

List *
inbox_store_requests(Inbox *inbox)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	List	   *result = read_requests(inbox, snapshot, false);

	UnregisterSnapshot(snapshot);
	return result;
}

bool
inbox_store_remove_request(Inbox *inbox, const InboxRequest *request)
{
	Relation	rel = inbox_store_open("request", RowExclusiveLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = inbox_store_scan(rel, inbox->subscription->id, NULL, snapshot);
	HeapTuple	tuple;
	bool		found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (ItemPointerEquals(&tuple->t_self, (ItemPointer) &request->tid) &&
			HeapTupleHeaderGetRawXmin(tuple->t_data) == request->xmin)
		{
			CatalogTupleDelete(rel, &tuple->t_self);
			found = true;
		}
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, RowExclusiveLock);
	return found;
}

bool
inbox_store_lock(Inbox *inbox)
{
	inbox->deciding = !inbox_lock(inbox->slot->worker.subscription, ShareLock, true);
	return !inbox->deciding;
}

bool
inbox_store_enter(Inbox *inbox)
{
	Snapshot	snapshot;

	if (!inbox_store_lock(inbox))
		return false;

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (subscription_changed(inbox->subscription, snapshot) ||
		read_requests(inbox, snapshot, true) != NIL)
		inbox->reload = true;
	UnregisterSnapshot(snapshot);
	return !inbox->reload;
}

/* ---- positions ---- */

/* What a row says, into a partition that is new. Strings in its context. */
static void
fill_partition(InboxPartition *partition, HeapTuple tuple, TupleDesc desc)
{
	char	   *state = get_text(tuple, OFF_STATE, desc);
	char	   *error = get_text(tuple, OFF_LAST_ERROR, desc);

	partition->position = get_int64(tuple, OFF_POSITION, desc, 0);
	partition->end_offset = get_int64(tuple, OFF_END, desc, -1);
	partition->cluster = get_text(tuple, OFF_CLUSTER, desc);
	partition->leader_epoch = get_int32(tuple, OFF_LEADER_EPOCH, desc, -1);
	partition->last_offset = get_int64(tuple, OFF_LAST_OFFSET, desc, -1);
	partition->last_fingerprint = get_int64(tuple, OFF_LAST_FINGERPRINT, desc, 0);
	for (partition->state = 0; partition->state < INBOX_OTHER_CLUSTER; partition->state++)
	{
		if (strcmp(state, inbox_state_names[partition->state]) == 0)
			break;
	}
	partition->failing_offset = get_int64(tuple, OFF_FAILING_OFFSET, desc, -1);
	partition->attempts = get_int32(tuple, OFF_ATTEMPTS, desc, 0);
	partition->next_try_at = get_int64(tuple, OFF_NEXT_TRY_AT, desc, 0);
	partition->lost = get_int64(tuple, OFF_LOST, desc, 0);
	strlcpy(partition->error, error ? error : "", sizeof(partition->error));
	partition->error_at = get_int64(tuple, OFF_LAST_ERROR_AT, desc, 0);
}

static HeapTuple
form_partition(const Inbox *inbox, const InboxPartition *partition, TupleDesc desc)
{
	Datum		values[OFF_COLUMNS + 1] = {0};
	bool		nulls[OFF_COLUMNS + 1] = {false};

	if (desc->natts != OFF_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("table \"%s.offset\" was altered", INBOX_SCHEMA)));
	values[OFF_SUBSCRIPTION] = Int32GetDatum(inbox->subscription->id);
	values[OFF_TOPIC] = CStringGetTextDatum(partition->topic);
	values[OFF_PARTITION] = Int32GetDatum(partition->number);
	values[OFF_POSITION] = Int64GetDatum(partition->position);
	values[OFF_END] = Int64GetDatum(partition->end_offset);
	nulls[OFF_END] = partition->end_offset < 0;
	nulls[OFF_CLUSTER] = partition->cluster == NULL;
	if (!nulls[OFF_CLUSTER])
		values[OFF_CLUSTER] = CStringGetTextDatum(partition->cluster);
	values[OFF_LEADER_EPOCH] = Int32GetDatum(partition->leader_epoch);
	nulls[OFF_LEADER_EPOCH] = partition->leader_epoch < 0;
	values[OFF_LAST_OFFSET] = Int64GetDatum(partition->last_offset);
	values[OFF_LAST_FINGERPRINT] = Int64GetDatum(partition->last_fingerprint);
	nulls[OFF_LAST_OFFSET] = nulls[OFF_LAST_FINGERPRINT] = partition->last_offset < 0;
	values[OFF_STATE] = CStringGetTextDatum(inbox_state_names[partition->state]);
	values[OFF_FAILING_OFFSET] = Int64GetDatum(partition->failing_offset);
	nulls[OFF_FAILING_OFFSET] = partition->failing_offset < 0;
	values[OFF_ATTEMPTS] = Int32GetDatum(partition->attempts);
	values[OFF_NEXT_TRY_AT] = TimestampTzGetDatum(partition->next_try_at);
	nulls[OFF_NEXT_TRY_AT] = partition->next_try_at == 0;
	values[OFF_LOST] = Int64GetDatum(partition->lost);
	nulls[OFF_LAST_ERROR] = partition->error[0] == '\0';
	if (!nulls[OFF_LAST_ERROR])
		values[OFF_LAST_ERROR] = CStringGetTextDatum(partition->error);
	values[OFF_LAST_ERROR_AT] = TimestampTzGetDatum(partition->error_at);
	nulls[OFF_LAST_ERROR_AT] = partition->error_at == 0;
	return heap_form_tuple(desc, values + 1, nulls + 1);
}

void
inbox_store_load_partitions(Inbox *inbox)
{
	Relation	rel = inbox_store_open("offset", AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = inbox_store_scan(rel, inbox->subscription->id, NULL, snapshot);
	TupleDesc	desc = RelationGetDescr(rel);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		char	   *topic = get_text(tuple, OFF_TOPIC, desc);
		int			number = get_int32(tuple, OFF_PARTITION, desc, 0);
		InboxPartition *partition;
		MemoryContext old;

		if (!inbox_owns(inbox->subscription, inbox->number, topic, number))
			continue;
		partition = inbox_add_partition(inbox, topic, number);
		old = MemoryContextSwitchTo(inbox->load_context);
		fill_partition(partition, tuple, desc);
		MemoryContextSwitchTo(old);
		partition->place.file = rel->rd_rel->relfilenode;
		partition->place.tid = tuple->t_self;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/* Where the partition's row is now. False: there is none. */
static bool
find_partition(Inbox *inbox, InboxPartition *partition, Relation rel)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = inbox_store_scan(rel, inbox->subscription->id, NULL, snapshot);
	TupleDesc	desc = RelationGetDescr(rel);
	HeapTuple	tuple;
	bool		found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (get_int32(tuple, OFF_PARTITION, desc, -1) != partition->number ||
			strcmp(get_text(tuple, OFF_TOPIC, desc), partition->topic) != 0)
			continue;
		partition->place.file = rel->rd_rel->relfilenode;
		partition->place.tid = tuple->t_self;
		found = true;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return found;
}

bool
inbox_store_insert_partition(Inbox *inbox, InboxPartition *partition)
{
	Relation	rel = inbox_store_open("offset", RowExclusiveLock);
	HeapTuple	tuple;
	bool		is_new = !find_partition(inbox, partition, rel);

	if (is_new)
	{
		tuple = form_partition(inbox, partition, RelationGetDescr(rel));
		CatalogTupleInsert(rel, tuple);
		partition->place.file = rel->rd_rel->relfilenode;
		partition->place.tid = tuple->t_self;
	}
	table_close(rel, RowExclusiveLock);
	return is_new;
}

void
inbox_store_partition(Inbox *inbox, InboxPartition *partition)
{
	Relation	rel = inbox_store_open("offset", RowExclusiveLock);

	if (partition->place.file != rel->rd_rel->relfilenode &&
		!find_partition(inbox, partition, rel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the position of subscription \"%s\" in topic \"%s\" partition %d was deleted",
						inbox->subscription->name, partition->topic, partition->number)));
	row_place_replace(rel, &partition->place,
					  form_partition(inbox, partition, RelationGetDescr(rel)));
	partition->dirty = false;
	table_close(rel, NoLock);
}

void
inbox_store_forget_places(Inbox *inbox)
{
	for (int i = 0; i < inbox->npartitions; i++)
		inbox->partitions[i]->place.file = InvalidOid;
}

/* ---- problems ---- */

void
inbox_store_problem(Inbox *inbox)
{
	const char *problem = inbox->problem.len > 0 ? inbox->problem.data : NULL;
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* the first time there may be one of a worker that was killed */
	if (inbox->subscription == NULL ||
		(inbox->problem_known &&
		 (problem == NULL ? inbox->stored_problem == NULL :
		  inbox->stored_problem != NULL && strcmp(problem, inbox->stored_problem) == 0)))
		return;

	inbox_begin();
	rel = inbox_store_open("worker_problem", RowExclusiveLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = inbox_store_scan(rel, inbox->subscription->id, &inbox->number, snapshot);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		CatalogTupleDelete(rel, &tuple->t_self);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	if (problem != NULL)
	{
		Datum		values[4];
		bool		nulls[4] = {false};

		values[0] = Int32GetDatum(inbox->subscription->id);
		values[1] = Int32GetDatum(inbox->number);
		values[2] = CStringGetTextDatum(problem);
		values[3] = TimestampTzGetDatum(GetCurrentTimestamp());
		CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values, nulls));
	}
	table_close(rel, NoLock);
	inbox_commit(inbox);

	inbox->problem_known = true;
	if (inbox->stored_problem != NULL)
		pfree(inbox->stored_problem);
	inbox->stored_problem = problem ? MemoryContextStrdup(inbox->context, problem) : NULL;
	if (problem != NULL)
		ereport(LOG,
				(errmsg("subscription \"%s\": %s", inbox->subscription->name, problem)));
}
