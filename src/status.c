/*
 * status.c
 *	  SQL functions behind the views outbox.relay_status and
 *	  outbox.topic_status.
 *
 * Both read shared memory only (and, for the estimate of what is pending, the
 * sequence's last value), so that looking costs the same whatever the backlog.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "cursor.h"
#include "pending.h"
#include "progress.h"
#include "segment_choice.h"
#include "shmem.h"
#include "topic_stats.h"

#define RELAY_STATUS_COLUMNS 15
#define TOPIC_STATUS_COLUMNS 8

PG_FUNCTION_INFO_V1(outbox_kafka_relay_status);
PG_FUNCTION_INFO_V1(outbox_kafka_topic_status);

/* What is known of a database's relay, copied out of its slot. */
typedef struct RelayReport
{
	const char *state;
	pid_t		pid;
	TimestampTz started_at;
	char		broker[SLOT_BROKER_LENGTH];
	char		last_error[SLOT_ERROR_LENGTH];
	TimestampTz last_error_at;
} RelayReport;

static void
copy_report(RelaySlot *slot, RelayReport *report)
{
	memset(report, 0, sizeof(*report));
	if (shared_state == NULL)
	{
		report->state = "not preloaded";
		return;
	}
	report->state = "no relay";
	if (slot == NULL)
		return;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	if (pg_atomic_read_u32(&slot->worker.dboid) == MyDatabaseId)
	{
		report->pid = slot->worker.pid;
		report->started_at = slot->worker.started_at;
		strlcpy(report->broker, slot->broker, sizeof(report->broker));
		strlcpy(report->last_error, slot->worker.last_error, sizeof(report->last_error));
		report->last_error_at = slot->worker.last_error_at;

		if (slot->worker.phase == SLOT_RUNNING)
			report->state = shmem_relay_state_name((RelayState)
												   pg_atomic_read_u32(&slot->state));
		else if (slot->worker.no_worker_slot)
			report->state = "no worker slot";
		else if (slot->suspensions > 0)
			report->state = "suspended";
		else if (slot->worker.phase == SLOT_REFUSED)
			report->state = "too many databases";
		else if (slot->worker.phase == SLOT_WANTED || slot->worker.phase == SLOT_STARTING)
			report->state = "starting";
	}
	LWLockRelease(shared_state->lock);
}

static Datum
timestamp_or_null(TimestampTz value, bool *isnull)
{
	*isnull = (value == 0);
	return TimestampTzGetDatum(value);
}

static Datum
text_or_null(const char *value, bool *isnull)
{
	*isnull = (value[0] == '\0');
	return *isnull ? (Datum) 0 : CStringGetTextDatum(value);
}

/*
 * How many messages may be waiting: ids drawn beyond the highest delivered
 * one, and what held lanes have left out. Transactions that rolled back drew ids as well, so it is an estimate.
 */
static int64
estimate_pending(const OutboxCatalog *catalog, int64 last_id, uint64 in_flight,
				 uint64 held)
{
	int64		beyond = cursor_highest_id(catalog) - last_id;

	return Max(beyond, (int64) in_flight) + (int64) held;
}

Datum
outbox_kafka_relay_status(PG_FUNCTION_ARGS)
{
	const OutboxCatalog *catalog = catalog_get(false);
	RelaySlot  *slot = shared_state ? shmem_find_slot(MyDatabaseId) : NULL;
	RelayReport report;
	TupleDesc	desc;
	Datum		values[RELAY_STATUS_COLUMNS];
	bool		nulls[RELAY_STATUS_COLUMNS] = {false};
	uint64		in_flight = 0;
	uint64		in_flight_bytes = 0;
	uint64		held = 0;
	uint64		published = 0;
	uint64		repeated = 0;
	int64		last_id = 0;
	int64		pending;
	TimestampTz last_ack_at = 0;
	TimestampTz oldest = 0;
	bool		idle;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	copy_report(slot, &report);
	if (report.pid != 0)
	{
		in_flight = pg_atomic_read_u64(&slot->in_flight);
		held = pg_atomic_read_u64(&slot->held_waiting);
		in_flight_bytes = pg_atomic_read_u64(&slot->in_flight_bytes);
		oldest = (TimestampTz) pg_atomic_read_u64(&slot->oldest_pending);
	}
	if (slot != NULL)
	{
		published = pg_atomic_read_u64(&slot->published);
		repeated = pg_atomic_read_u64(&slot->repeated);
		last_id = (int64) pg_atomic_read_u64(&slot->last_id);
		last_ack_at = (TimestampTz) pg_atomic_read_u64(&slot->last_ack_at);
	}

	idle = report.pid != 0 && pg_atomic_read_u32(&slot->state) == RELAY_IDLE;
	pending = estimate_pending(catalog, last_id, in_flight, held);

	/* nothing to estimate from, or nothing to estimate: look */
	if (idle || last_id == 0 || (pending > 0 && oldest == 0))
	{
		PendingMessage first;

		if (!pending_first(catalog, &first))
			pending = (int64) held;
		else
			oldest = first.created_at;
	}

	values[0] = CStringGetTextDatum(report.state);
	nulls[1] = (report.pid == 0);
	values[1] = Int32GetDatum((int32) report.pid);
	values[2] = text_or_null(report.broker, &nulls[2]);
	values[3] = timestamp_or_null(report.started_at, &nulls[3]);
	values[4] = Int64GetDatum((int64) in_flight);
	values[5] = Int64GetDatum((int64) in_flight_bytes);
	values[6] = Int64GetDatum(last_id);
	nulls[6] = (last_id == 0);
	values[7] = Int64GetDatum(pending);
	nulls[8] = (oldest == 0);
	if (oldest != 0)
		values[8] = DirectFunctionCall2(timestamp_mi,
										TimestampTzGetDatum(GetCurrentTimestamp()),
										TimestampTzGetDatum(oldest));
	values[9] = Int64GetDatum((int64) published);
	values[10] = Int64GetDatum((int64) repeated);
	values[11] = timestamp_or_null(last_ack_at, &nulls[11]);
	values[12] = Int16GetDatum((int16) segment_current());
	values[13] = text_or_null(report.last_error, &nulls[13]);
	values[14] = timestamp_or_null(report.last_error_at, &nulls[14]);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

Datum
outbox_kafka_topic_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TopicStats *list;
	int			count = 0;

	InitMaterializedSRF(fcinfo, 0);
	list = topic_stats_list(MyDatabaseId, &count);
	for (int i = 0; i < count; i++)
	{
		const TopicStats *stats = &list[i];
		Datum		values[TOPIC_STATUS_COLUMNS];
		bool		nulls[TOPIC_STATUS_COLUMNS] = {false};

		values[0] = CStringGetTextDatum(stats->key.topic);
		nulls[1] = (stats->partitions == 0);
		values[1] = Int32GetDatum(stats->partitions);
		values[2] = Int64GetDatum((int64) stats->published);
		values[3] = Int64GetDatum((int64) stats->published_bytes);
		values[4] = Int64GetDatum(stats->in_flight);
		values[5] = timestamp_or_null(stats->last_published_at, &nulls[5]);
		values[6] = text_or_null(stats->last_error, &nulls[6]);
		values[7] = timestamp_or_null(stats->last_error_at, &nulls[7]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	PG_RETURN_VOID();
}
