/* Stands in for the inbox and the decider until they exist. */
#include "postgres.h"

#include "catalog/namespace.h"
#include "executor/spi.h"
#include "utils/lsyscache.h"
#include "miscadmin.h"
#include "access/xact.h"
#include "utils/snapmgr.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/guc.h"

#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "wakeup.h"
#include "side_wanted.h"
#include "side_worker.h"

PGDLLEXPORT void outbox_kafka_inbox_main(Datum main_arg);

static Oid
table(const char *schema, const char *name)
{
	Oid			nsp = get_namespace_oid(schema, true);

	return OidIsValid(nsp) ? get_relname_relid(name, nsp) : InvalidOid;
}

int
inbox_wanted(SideWanted **wanted)
{
	int			n = 0;
	MemoryContext old = CurrentMemoryContext;

	if (!OidIsValid(table("inbox", "subscription")))
		return 0;
	SPI_connect();
	SPI_execute("SELECT id, g FROM inbox.subscription, pg_catalog.generate_series(0, workers - 1) g WHERE NOT paused", true, 0);
	*wanted = MemoryContextAlloc(old, sizeof(SideWanted) * (SPI_processed + 1));
	for (n = 0; n < (int) SPI_processed; n++)
	{
		bool		isnull;

		(*wanted)[n].kind = WORKER_INBOX;
		(*wanted)[n].subscription = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[n], SPI_tuptable->tupdesc, 1, &isnull));
		(*wanted)[n].number = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[n], SPI_tuptable->tupdesc, 2, &isnull));
	}
	SPI_finish();
	return n;
}

static void
run(SideSlot *slot)
{
	WaitEventSet *set = compat_create_wait_event_set(2);

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (;;)
	{
		uint32		seen;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (worker_should_stop())
			proc_exit(0);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		seen = pg_atomic_read_u32(&slot->worker.control_generation);
		pg_memory_barrier();
		elog(LOG, "side worker looked, generation %u", seen);
		side_worker_sleep(slot, seen, set, -1, PG_WAIT_EXTENSION);
	}
}

void
outbox_kafka_inbox_main(Datum main_arg)
{
	run(side_worker_attach(main_arg));
}

#define MISSING(f) PG_FUNCTION_INFO_V1(f); Datum f(PG_FUNCTION_ARGS) { elog(ERROR, "not yet"); }
MISSING(outbox_kafka_inbox_pause)
MISSING(outbox_kafka_inbox_resume)
MISSING(outbox_kafka_inbox_seek_text)
MISSING(outbox_kafka_inbox_seek_time)
MISSING(outbox_kafka_inbox_seek_offset)
MISSING(outbox_kafka_inbox_retry_partition)
MISSING(outbox_kafka_inbox_retry_all)
MISSING(outbox_kafka_inbox_retry_one)
MISSING(outbox_kafka_inbox_skip_partition)
MISSING(outbox_kafka_inbox_skip_one)

static void
doit(const char *sql)
{
	SPI_connect();
	SPI_execute(sql, false, 0);
	SPI_finish();
	wakeup_mark_control();
}

PG_FUNCTION_INFO_V1(outbox_kafka_inbox_subscribe);
Datum
outbox_kafka_inbox_subscribe(PG_FUNCTION_ARGS)
{
	doit(psprintf("INSERT INTO inbox.subscription (name, owner, topics, handler, start_from, max_attempts, retry_backoff, on_failure, workers, batch_size)"
				  " VALUES ('%s', current_user, '{t}', 'handle', 'earliest', 5, '1s', 'skip', %d, 1000)",
				  text_to_cstring(PG_GETARG_TEXT_PP(0)), PG_GETARG_INT32(8)));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_kafka_inbox_unsubscribe);
Datum
outbox_kafka_inbox_unsubscribe(PG_FUNCTION_ARGS)
{
	doit(psprintf("DELETE FROM inbox.subscription WHERE name = '%s'", text_to_cstring(PG_GETARG_TEXT_PP(0))));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_kafka_inbox_alter);
Datum
outbox_kafka_inbox_alter(PG_FUNCTION_ARGS)
{
	doit(psprintf("UPDATE inbox.subscription SET workers = %d WHERE name = '%s'", PG_GETARG_INT32(7), text_to_cstring(PG_GETARG_TEXT_PP(0))));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_kafka_inbox_workers);
Datum
outbox_kafka_inbox_workers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < shared_state->nsides; i++)
	{
		WorkerSlot *slot = &side_slots[i].worker;
		Datum		values[10] = {0};
		bool		nulls[10] = {false, false, false, false, true, true, true, true, true, true};

		if (pg_atomic_read_u32(&slot->dboid) != MyDatabaseId || slot->kind != WORKER_INBOX)
			continue;
		values[0] = Int32GetDatum(slot->subscription);
		values[1] = Int32GetDatum(slot->number);
		values[2] = CStringGetTextDatum(slot->no_worker_slot ? "no worker slot" : "x");
		values[3] = Int32GetDatum(slot->pid);
		nulls[3] = slot->pid == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	PG_RETURN_VOID();
}
