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
#include "relay_discard.h"
#include "relay_held.h"
#include "relay_internal.h"
#include "relay_limits.h"
#include "relay_parked.h"
#include "relay_transaction.h"
#include "worker.h"

static void
locked_copy_error(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("could not take over a copied outbox, a table is locked")));
}

/*
 * Park what one cursor has not delivered up to now: that of a held lane, or
 * (lane NULL) the main one. Returns how many there were.
 */
static uint64
park_pending(Relay *relay, const CursorTables *tables, const Progress *progress,
			 const CursorBound *now, List *lanes, const HeldLane *lane)
{
	const CursorBound *lower = progress->done;
	int64		position = progress->position;
	uint64		count = 0;

	/* first the rest of the batch that was under way, then all after it */
	for (int step = progress->batch ? 0 : 1; step < 2; step++)
	{
		const CursorBound *upper = step == 0 ? progress->batch : now;
		CursorScan *scan;
		CursorRow	row;

		scan = cursor_scan_begin(tables, lower, upper, position, GetActiveSnapshot());
		while (cursor_scan_next(scan, &row))
		{
			CHECK_FOR_INTERRUPTS();
			if (held_find(lanes, row.slot) != lane)
				continue;
			parked_add_restored(relay->parked, &row);
			count++;
		}
		cursor_scan_end(scan);
		lower = upper;
		position = 0;
	}
	return count;
}

/* In a copy nothing expires, and no function is called, before adopt(). */
static void
hold_expectations(void)
{
	catalog_lock_now("confirmation", RowExclusiveLock);
	SPI_connect();
	if (SPI_execute("UPDATE outbox.confirmation SET restored = true WHERE NOT restored",
					false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write outbox.confirmation");
	SPI_finish();
}

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
	ProgressPlace place = {0};
	CursorTables tables;
	CursorBound *now;
	List	   *lanes = NIL;
	ListCell   *lc;
	uint64		count;

	relay_begin(relay);
	catalog = relay_catalog(relay);
	now = catalog ? cursor_bound_take(catalog, CURSOR_NO_WAIT, relay->context) : NULL;
	if (now == NULL || !cursor_tables_open(&tables, catalog, CURSOR_NO_WAIT, -1))
		locked_copy_error();
	PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());

	if (!held_read(relay_catalog(relay), CURSOR_NO_WAIT, &lanes, CurrentMemoryContext))
		locked_copy_error();
	count = park_pending(relay, &tables, foreign, now, lanes, NULL);
	foreach(lc, lanes)
	{
		HeldLane   *lane = (HeldLane *) lfirst(lc);
		Progress	held = {0};

		/* written in the other database, too */
		if (progress_read(relay_catalog(relay), lane->cursor_id, CURSOR_NO_WAIT,
						  &held, relay->context) != PROGRESS_FOREIGN)
			locked_copy_error();
		count += park_pending(relay, &tables, &held, now, lanes, lane);
		if (!held_delete(relay_catalog(relay), lane))
			locked_copy_error();
	}
	cursor_tables_close(&tables);

	progress.done = now;
	if (progress_write(relay_catalog(relay), MAIN_CURSOR, &place, &progress,
					   true) != PROGRESS_OK ||
		!relay_transactions_reset(relay_catalog(relay)))
		locked_copy_error();
	hold_expectations();
	ForceSyncCommit();
	relay_commit(relay);

	ereport(LOG,
			(errmsg("outbox_kafka found a copy of another database's outbox: parked " UINT64_FORMAT " pending messages",
					count),
			 errdetail("What is published from now on is sent."),
			 errhint("outbox.adopt() releases the parked messages, if this database is the one to send them.")));
	return progress;
}

static void
check_sequence(Relay *relay)
{
	const OutboxCatalog *catalog;

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog != NULL)
		relay_check_sequence(catalog);
	relay_commit(relay);
	if (catalog == NULL)
		worker_leave_idle();
}

void
relay_start(Relay *relay)
{
	const OutboxCatalog *catalog;
	Progress	progress = {0};
	ProgressResult result;

	if (kafka_library_risk() != NULL)
		ereport(WARNING,
				(errmsg("%s", kafka_library_risk()),
				 errhint("Use librdkafka 2.0, or 2.10 and newer.")));

	relay_begin(relay);
	catalog = catalog_get(true);
	if (catalog == NULL)
	{
		relay_commit(relay);
		worker_leave_idle();
	}
	relay->extension = catalog->extension;
	catalog_lock_now("database_identity", RowExclusiveLock);
	catalog_lock_now("segment", AccessShareLock);
	relay->database = MemoryContextStrdup(relay->context,
										  get_database_name(MyDatabaseId));
	identity_read(relay->identity);
	catalog = catalog_get(false);
	relay->ring = segment_ring_load(catalog, relay->context);
	result = progress_read(catalog, MAIN_CURSOR, CURSOR_NO_WAIT, &progress,
						   relay->context);
	relay_commit(relay);

	/*
	 * What follows can fail, again and again, for reasons that concern what
	 * is sent. In a copy nothing may be decided before it is made one below.
	 */
	if (result == PROGRESS_OK)
		relay_side_declare(relay, GetCurrentTimestamp());
	check_sequence(relay);

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

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog != NULL)
	{
		relay_held_load(relay, catalog);
		catalog = relay_catalog(relay);
	}
	if (catalog != NULL)
	{
		relay_transactions_load(relay, catalog);
		catalog = relay_catalog(relay);
	}
	if (catalog != NULL)
		limits_load(relay, catalog);
	relay_commit(relay);
	if (catalog == NULL)
		worker_leave_idle();
	relay_transactions_configure(relay);
}

/* Names of topics that are paused, in loop_context; all: * is one of them. */
static List *
read_paused_topics(Relay *relay, bool *all)
{
	List	   *topics = NIL;

	*all = false;
	SPI_connect();
	if (SPI_execute("SELECT topic FROM outbox.relay_control", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.relay_control");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(relay->loop_context);
		char	   *topic = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

		if (strcmp(topic, "*") == 0)
			*all = true;
		else
			topics = lappend(topics, topic);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return topics;
}

void
relay_read_control(Relay *relay)
{
	const OutboxCatalog *catalog;
	List	   *topics;
	uint32		generation = pg_atomic_read_u32(&relay->slot->worker.control_generation);

	if (relay->control_known && generation == relay->control_seen)
		return;
	pg_memory_barrier();

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog == NULL ||
		!ConditionalLockRelationOid(catalog->relay_control, AccessShareLock) ||
		!ConditionalLockRelationOid(catalog->parked, AccessShareLock) ||
		!ConditionalLockRelationOid(catalog->discard_request, AccessShareLock) ||
		!ConditionalLockRelationOid(catalog->discarded, AccessShareLock) ||
		!ConditionalLockRelationOid(catalog->relay_conflict, AccessShareLock))
	{
		/* whether to send is not known: do not, until it is */
		relay_commit(relay);
		relay->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 100);
		return;
	}
	topics = read_paused_topics(relay, &relay->paused);
	relay_transactions_read_conflict(relay);
	parked_load(relay->parked);
	discard_load(relay);
	relay_commit(relay);

	relay->control_seen = generation;
	relay->control_known = true;
	relay_held_pause(relay, topics, GetCurrentTimestamp());
	discard_begin(relay);
	relay_held_try_now(relay);
	relay->look_at = 0;
}
