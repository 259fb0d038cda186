/*
 * launcher.c
 *	  The worker that starts the relays, one for each database that has the
 *	  extension, and the side workers that those declare to be needed.
 *
 * The launcher is connected to no database, so it cannot see which ones have
 * the extension. It starts a relay in every database where it does not know;
 * the relay looks and, if there is nothing for it, leaves the slot idle. What
 * it found is remembered here and the slot is freed. One start at a time, so
 * that a server with many databases is not stormed.
 *
 * What makes the launcher look again at a database: a notice in shared memory
 * (CREATE, ALTER or DROP EXTENSION, CREATE or ALTER DATABASE, the end of a
 * transaction that kept a relay away; see dbhooks.c), and for new and dropped
 * databases a look at pg_database once a minute, in case a notice was missed.
 * Otherwise it sleeps on its latch: workers set it when they attach and when
 * they leave, and the postmaster when one starts or ends.
 *
 * The life of a slot:
 *
 *	FREE -> WANTED		claimed for a database not looked at yet
 *	WANTED -> STARTING	a worker is registered
 *	STARTING -> RUNNING	it has attached (worker.c)
 *	STARTING -> WANTED	it ended before that, or was told to stay away
 *	RUNNING -> WANTED	it ended (worker.c): start_after says when to go on
 *	RUNNING -> IDLE		it found no extension (worker.c)
 *	RUNNING -> REFUSED	it found it, but max_databases are taken (worker.c)
 *	WANTED, IDLE, REFUSED -> FREE
 *
 * With side workers it is the same, except that nobody has to look for them
 * and that they come last: see side_slot.h. A relay's slot is freed only after
 * those of its side workers.
 *
 * A restarted launcher finds all this in shared memory and goes on: running
 * workers stay. What it does not know any more is which databases had no
 * extension, so it looks at them again, and the handles of workers that were
 * being started, which get a deadline instead.
 */
#include "postgres.h"

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "due.h"
#include "guc.h"
#include "launcher.h"
#include "launcher_databases.h"
#include "launcher_start.h"
#include "outbox_kafka.h"
#include "shmem.h"
#include "side_slot.h"
#include "topic_stats.h"

PGDLLEXPORT void outbox_kafka_launcher_main(Datum main_arg);

#define LAUNCHER_RESTART_S 5

/* How often pg_database is looked at without a reason. */
#define RESCAN_MS 60000

/* After pg_database was locked by somebody else. */
#define RESCAN_BLOCKED_MS 1000

static bool scanned = false;	/* Database.listed means something */
static bool scan_wanted = true;
static TimestampTz next_scan = 0;

static void
detach_launcher(int code, Datum arg)
{
	pg_atomic_write_u32(&shared_state->launcher_procno, SLOT_NO_PROC);
}

/* Notices come before the scan, which then sees what they are about. */
static void
take_notices(void)
{
	Oid			dboids[LAUNCHER_NOTICES];
	bool		all;
	int			count = shmem_take_notices(dboids, &all);
	HASH_SEQ_STATUS seq;
	Database   *db;

	if (count == 0 && !all)
		return;

	hash_seq_init(&seq, launcher_databases);
	while ((db = hash_seq_search(&seq)) != NULL)
	{
		bool		named = all;

		for (int i = 0; i < count && !named; i++)
			named = dboids[i] == db->dboid;
		if (!named)
			continue;
		if (db->knowledge == DB_HAS_SLOT)
			db->look_again = true;
		else
			db->knowledge = DB_UNKNOWN;
	}
	scan_wanted = true;
}

static void
free_slot(RelaySlot *slot, Database *db, DatabaseKnowledge knowledge)
{
	if (!side_slots_release_database(db->dboid) || !shmem_release_slot(slot))
		return;
	topic_stats_forget(db->dboid);
	db->knowledge = knowledge;
	db->look_again = false;
}

/*
 * Forget what pg_database lists no longer. Workers that still run there (the
 * database has become a template) are asked to leave.
 */
static void
drop_unlisted_databases(void)
{
	HASH_SEQ_STATUS seq;
	Database   *db;

	hash_seq_init(&seq, launcher_databases);
	while ((db = hash_seq_search(&seq)) != NULL)
	{
		RelaySlot  *slot;

		if (db->listed)
			continue;
		slot = shmem_find_slot(db->dboid);
		if (slot != NULL)
		{
			shmem_request_stop(&slot->worker, db->dboid);
			free_slot(slot, db, DB_UNKNOWN);
		}
		if (shmem_find_slot(db->dboid) == NULL)
			(void) hash_search(launcher_databases, &db->dboid, HASH_REMOVE, NULL);
	}
}

static void
note_refused(Database *db)
{
	if (db->refusal_logged)
		return;
	db->refusal_logged = true;
	ereport(LOG,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("no relay can be started for database \"%s\"", NameStr(db->name)),
			 errdetail("There are relays for %d databases already. Messages are stored and wait.",
					   guc_max_databases),
			 errhint("You might need to increase outbox_kafka.max_databases.")));
}

/*
 * Let all slots advance as far as they can. Returns when to look again if
 * nothing wakes us before, 0: never.
 */
static TimestampTz
advance_slots(TimestampTz now, bool *start_under_way)
{
	TimestampTz wake = 0;

	*start_under_way = false;
	launcher_start_follow_begin();
	for (int i = 0; i < shmem_worker_count(); i++)
		wake = due_sooner(wake, launcher_start_follow(i, now, start_under_way));

	for (int i = 0; i < shared_state->nsides; i++)
		if (OidIsValid(pg_atomic_read_u32(&side_slots[i].worker.dboid)))
			side_slot_try_release(&side_slots[i]);

	for (int i = 0; i < shared_state->nslots; i++)
	{
		RelaySlot  *slot = &shared_state->slots[i];
		Database   *db;
		SlotPhase	phase;
		bool		settled;

		LWLockAcquire(shared_state->lock, LW_SHARED);
		phase = slot->worker.phase;
		settled = slot->worker.settled;
		LWLockRelease(shared_state->lock);

		if (phase == SLOT_FREE)
			continue;
		db = launcher_database(pg_atomic_read_u32(&slot->worker.dboid));

		if (phase == SLOT_RUNNING && settled)
			db->refusal_logged = false;
		else if (phase == SLOT_IDLE)
			free_slot(slot, db, db->look_again ? DB_UNKNOWN : DB_ABSENT);
		else if (phase == SLOT_REFUSED)
		{
			free_slot(slot, db, db->look_again ? DB_UNKNOWN : DB_REFUSED);
			note_refused(db);
		}
	}
	return wake;
}

/*
 * Claim a slot for a database that has to be looked at. NULL when there is
 * none, or no slot to look with.
 */
static RelaySlot *
claim_for_unknown(Database **result)
{
	int			used = shmem_slots_in_use();
	HASH_SEQ_STATUS seq;
	Database   *db;
	RelaySlot  *slot;

	hash_seq_init(&seq, launcher_databases);
	while ((db = hash_seq_search(&seq)) != NULL)
	{
		if (db->listed &&
			(db->knowledge == DB_UNKNOWN ||
			 (db->knowledge == DB_REFUSED && used < guc_max_databases)))
		{
			hash_seq_term(&seq);
			break;
		}
	}
	if (db == NULL)
		return NULL;

	slot = shmem_claim_slot(db->dboid);
	if (slot == NULL)
		return NULL;
	db->knowledge = DB_HAS_SLOT;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->probe_only = used >= guc_max_databases;
	LWLockRelease(shared_state->lock);

	*result = db;
	return slot;
}

/*
 * The first worker of those numbered from .. to - 1 that can be started now, or
 * -1; *wake: when one can be, if that is sooner.
 */
static int
find_startable(int from, int to, TimestampTz now, TimestampTz *wake)
{
	for (int i = from; i < to; i++)
	{
		WorkerSlot *slot = shmem_worker(i);
		Oid			dboid = pg_atomic_read_u32(&slot->dboid);
		TimestampTz start_after;
		bool		startable;

		if (!OidIsValid(dboid))
			continue;
		LWLockAcquire(shared_state->lock, LW_SHARED);
		startable = slot->phase == SLOT_WANTED && !shmem_is_suspended(dboid);
		start_after = slot->start_after;
		LWLockRelease(shared_state->lock);

		if (!startable || !launcher_database(dboid)->listed ||
			!launcher_start_is_reaped(i))
			continue;
		if (start_after <= now)
			return i;
		*wake = due_sooner(*wake, start_after);
	}
	return -1;
}

/*
 * Start one worker: first relays of databases known to have the extension, then
 * of one not looked at yet, then side workers. Returns when to look again if
 * nothing wakes us before, 0: never.
 */
static TimestampTz
start_one(TimestampTz now)
{
	TimestampTz wake = 0;
	int			number;
	Database   *db;

	if (now < launcher_start_retry_at())
		return launcher_start_retry_at();

	number = find_startable(0, shared_state->nslots, now, &wake);
	if (number < 0)
	{
		RelaySlot  *slot = claim_for_unknown(&db);

		if (slot != NULL)
			number = slot - shared_state->slots;
	}
	if (number < 0)
		number = find_startable(shared_state->nslots, shmem_worker_count(), now, &wake);
	if (number < 0)
		return wake;

	db = launcher_database(pg_atomic_read_u32(&shmem_worker(number)->dboid));
	if (number < shared_state->nslots)
		db->look_again = false;
	if (launcher_start_worker(number, NameStr(db->name), now) == START_NO_WORKER)
		wake = due_sooner(wake, launcher_start_retry_at());
	return wake;
}

/*
 * One look around. Returns when to look again if nothing wakes us before.
 */
static TimestampTz
look_around(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz wake;
	bool		start_under_way;

	take_notices();
	if (scan_wanted || now >= next_scan)
	{
		bool		complete = launcher_scan_databases();

		scanned |= complete;
		scan_wanted = false;
		next_scan = TimestampTzPlusMilliseconds(now, complete ? RESCAN_MS : RESCAN_BLOCKED_MS);
	}
	if (scanned)
		drop_unlisted_databases();

	wake = advance_slots(now, &start_under_way);
	if (!start_under_way)
		wake = due_sooner(wake, start_one(now));
	return due_sooner(wake, next_scan);
}

void
outbox_kafka_launcher_main(Datum main_arg)
{
	MemoryContext cycle_context;
	uint32		wait_event;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGINT, SIG_IGN);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("outbox_kafka launcher");

	launcher_databases_init();
	launcher_start_init();
	topic_stats_create();

	before_shmem_exit(detach_launcher, (Datum) 0);
	pg_atomic_write_u32(&shared_state->launcher_procno, compat_my_proc_number());
	pg_memory_barrier();

	ereport(DEBUG1, (errmsg_internal("outbox_kafka launcher started")));

	wait_event = compat_wait_event("OutboxLauncherMain");
	cycle_context = AllocSetContextCreate(TopMemoryContext, "outbox_kafka launcher cycle",
										  ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		TimestampTz wake;

		CHECK_FOR_INTERRUPTS();

		/* Exit code 0 would mean: do not start again. */
		if (ShutdownRequestPending)
			proc_exit(1);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		MemoryContextSwitchTo(cycle_context);
		wake = look_around();
		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextReset(cycle_context);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake) + 1,
						 wait_event);
		ResetLatch(MyLatch);
	}
}

void
launcher_register(void)
{
	BackgroundWorker worker;

	if (IsBinaryUpgrade)
		return;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_RESTART_S;
	snprintf(worker.bgw_name, BGW_MAXLEN, "outbox_kafka launcher");
	snprintf(worker.bgw_type, BGW_MAXLEN, "outbox_kafka launcher");
	snprintf(worker.bgw_library_name, BGW_MAXLEN, OUTBOX_LIBRARY);
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "outbox_kafka_launcher_main");
	RegisterBackgroundWorker(&worker);
}
