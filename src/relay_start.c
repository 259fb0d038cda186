/*
 * relay_start.c
 *	  What the relay reads before it sends: what the last one left, and what
 *	  somebody decided.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "durability.h"
#include "guc.h"
#include "identity.h"
#include "relay_internal.h"
#include "relay_parked.h"
#include "worker.h"

/*
 * The progress was written in another database: this is a copy, a logical one
 * or one of the files (CREATE DATABASE ... TEMPLATE), and what was pending
 * there is for the original to send. It is parked as restored, outbox.adopt()
 * releases it; what is published here from now on is sent. Returns the
 * progress to start with, which is on disk.
 */
static Progress
adopt_copy(Relay *relay, const Progress *foreign)
{
	const OutboxCatalog *catalog;
	Progress	progress = {0};
	CursorTables tables;
	CursorScan *scan;
	CursorRow	row;
	const CursorBound *lower = foreign->done;
	int64		position = foreign->position;
	CursorBound *now;
	uint64		count = 0;

	relay_begin(relay);
	catalog = relay_catalog(relay);
	now = catalog ? cursor_bound_take(catalog, CURSOR_NO_WAIT, relay->context) : NULL;
	if (now == NULL || !cursor_tables_open(&tables, catalog, CURSOR_NO_WAIT, -1))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not take over a copied outbox, a table is locked")));
	PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());

	/* first the rest of the batch that was under way, then all after it */
	for (int step = foreign->batch ? 0 : 1; step < 2; step++)
	{
		const CursorBound *upper = step == 0 ? foreign->batch : now;

		scan = cursor_scan_begin(&tables, lower, upper, position, GetActiveSnapshot());
		while (cursor_scan_next(scan, &row))
		{
			parked_add_restored(relay->parked, &row);
			count++;
			CHECK_FOR_INTERRUPTS();
		}
		cursor_scan_end(scan);
		lower = upper;
		position = 0;
	}
	cursor_tables_close(&tables);

	progress.done = now;
	if (progress_write(catalog, MAIN_CURSOR, &progress, true) != PROGRESS_OK)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not take over a copied outbox, a table is locked")));
	ForceSyncCommit();
	relay_commit(relay);

	ereport(LOG,
			(errmsg("outbox_kafka found a copy of another database's outbox: parked " UINT64_FORMAT " pending messages",
					count),
			 errdetail("What is published from now on is sent."),
			 errhint("outbox.adopt() releases the parked messages, if this database is the one to send them.")));
	return progress;
}

void
relay_start(Relay *relay)
{
	const OutboxCatalog *catalog;
	Progress	progress = {0};
	ProgressResult result;

	relay_begin(relay);
	catalog = catalog_get(true);
	if (catalog == NULL)
	{
		relay_commit(relay);
		worker_leave_idle();
	}
	relay->extension = catalog->extension;
	relay_check_sequence(catalog);
	relay->database = MemoryContextStrdup(relay->context,
										  get_database_name(MyDatabaseId));
	identity_read(relay->identity);
	relay->ring = segment_ring_load(catalog, relay->context);
	result = progress_read(catalog, MAIN_CURSOR, CURSOR_NO_WAIT, &progress,
						   relay->context);
	relay_commit(relay);

	switch (result)
	{
		case PROGRESS_OK:
			break;
		case PROGRESS_BUSY:
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("could not read the relay's progress, its table is locked")));
			break;
		case PROGRESS_MISSING:
			progress_raise_missing();
			break;
		case PROGRESS_FOREIGN:
			progress = adopt_copy(relay, &progress);
			break;
	}
	relay->window = window_create(guc_max_in_flight, &progress, relay->context);

	/* taken after all that a batch under way can contain became visible */
	relay->batch_end = durability_position();
	relay_progress_start(relay);
}

void
relay_read_control(Relay *relay)
{
	const OutboxCatalog *catalog;
	uint32		generation = pg_atomic_read_u32(&relay->slot->control_generation);

	if (relay->control_known && generation == relay->control_seen)
		return;
	pg_memory_barrier();

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog == NULL ||
		!ConditionalLockRelationOid(catalog->relay_control, AccessShareLock) ||
		!ConditionalLockRelationOid(catalog->parked, AccessShareLock))
	{
		/* whether to send is not known: do not, until it is */
		relay_commit(relay);
		relay->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 100);
		return;
	}
	SPI_connect();
	if (SPI_execute("SELECT 1 FROM outbox.relay_control"
					" WHERE topic OPERATOR(pg_catalog.=) '*'", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.relay_control");
	relay->paused = SPI_processed > 0;
	SPI_finish();
	parked_load(relay->parked);
	relay_commit(relay);

	relay->control_seen = generation;
	relay->control_known = true;
	relay->look_at = 0;
}
