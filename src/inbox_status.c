/*
 * inbox_status.c
 *	  What inbox.workers shows: the workers' own report in shared memory.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "inbox_internal.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(outbox_kafka_inbox_workers);

#define COLUMNS 10

/* A copy of what the lock guards, taken while it is held. */
typedef struct Report
{
	bool		ours;
	const char *state;
	pid_t		pid;
	TimestampTz started_at;
	TimestampTz last_error_at;
	char		last_error[SLOT_ERROR_LENGTH];
} Report;

static void
copy_report(SideSlot *slot, Report *report)
{
	LWLockAcquire(shared_state->lock, LW_SHARED);
	report->ours = pg_atomic_read_u32(&slot->worker.dboid) == MyDatabaseId &&
		slot->worker.kind == WORKER_INBOX;
	report->pid = slot->worker.pid;
	report->started_at = slot->worker.started_at;
	report->last_error_at = slot->worker.last_error_at;
	strlcpy(report->last_error, slot->worker.last_error, sizeof(report->last_error));
	if (slot->worker.phase == SLOT_RUNNING)
		report->state = inbox_worker_states[Min(pg_atomic_read_u32(&slot->state),
												INBOX_WORKER_DECIDING)];
	else if (slot->worker.no_worker_slot)
		report->state = "no worker slot";
	else
		report->state = "starting";
	LWLockRelease(shared_state->lock);
}

Datum
outbox_kafka_inbox_workers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; shared_state != NULL && i < shared_state->nsides; i++)
	{
		SideSlot   *slot = &side_slots[i];
		Report		report;
		Datum		values[COLUMNS];
		bool		nulls[COLUMNS] = {false};
		TimestampTz active = (TimestampTz) pg_atomic_read_u64(&slot->last_activity_at);

		copy_report(slot, &report);
		if (!report.ours)
			continue;
		values[0] = Int32GetDatum(slot->worker.subscription);
		values[1] = Int32GetDatum(slot->worker.number);
		values[2] = CStringGetTextDatum(report.state);
		values[3] = Int32GetDatum((int32) report.pid);
		nulls[3] = report.pid == 0;
		values[4] = TimestampTzGetDatum(report.started_at);
		nulls[4] = report.pid == 0;
		values[5] = Int64GetDatum((int64) pg_atomic_read_u64(&slot->handled));
		values[6] = Int64GetDatum((int64) pg_atomic_read_u64(&slot->failed));
		values[7] = TimestampTzGetDatum(active);
		nulls[7] = active == 0;
		values[8] = CStringGetTextDatum(report.last_error);
		nulls[8] = report.last_error[0] == '\0';
		values[9] = TimestampTzGetDatum(report.last_error_at);
		nulls[9] = report.last_error_at == 0;
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
