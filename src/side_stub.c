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

#include "side_wanted.h"
#include "side_worker.h"

PGDLLEXPORT void outbox_kafka_inbox_main(Datum main_arg);
PGDLLEXPORT void outbox_kafka_decider_main(Datum main_arg);

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

int
decider_wanted(void)
{
	int			n;

	if (!OidIsValid(table("outbox", "confirmation")))
		return 0;
	SPI_connect();
	SPI_execute("SELECT 1 FROM outbox.confirmation LIMIT 1", true, 0);
	n = (int) SPI_processed;
	SPI_finish();
	return n;
}

static bool
open_confirmations(void)
{
	int			n;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	n = decider_wanted();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return n > 0;
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
		if (slot->worker.kind == WORKER_DECIDER && !open_confirmations())
			side_worker_leave(seen);
		elog(LOG, "side worker looked, generation %u", seen);
		side_worker_sleep(slot, seen, set, -1, PG_WAIT_EXTENSION);
	}
}

void
outbox_kafka_inbox_main(Datum main_arg)
{
	run(side_worker_attach(main_arg));
}

void
outbox_kafka_decider_main(Datum main_arg)
{
	run(side_worker_attach(main_arg));
}
