/*
 * launcher.c
 *	  The worker that starts the relays, one for each database that has the
 *	  extension.
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
 * A restarted launcher finds all this in shared memory and goes on: running
 * relays stay. What it does not know any more is which databases had no
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
#include "outbox_kafka.h"
#include "shmem.h"
#include "topic_stats.h"

PGDLLEXPORT void outbox_kafka_launcher_main(Datum main_arg);

#define LAUNCHER_RESTART_S 5

/* How often pg_database is looked at without a reason. */
#define RESCAN_MS 60000

/* After pg_database was locked by somebody else. */
#define RESCAN_BLOCKED_MS 1000

/* A start that takes longer than this does not hold up the next one. */
#define START_PATIENCE_MS 5000

/* A registered worker without handle that has not attached by then is gone. */
#define ADOPTED_START_MS 30000

/* Without a free background worker slot: doubled each time between these. */
#define NO_WORKER_MIN_MS 1000
#define NO_WORKER_MAX_MS 5000

/* One per slot, same index. */
typedef struct SlotHandle
{
	BackgroundWorkerHandle *handle; /* of the worker, until it is reaped */
	TimestampTz deadline;		/* without handle: it must have attached */
	TimestampTz patience_until; /* the next start waits for it until then */
} SlotHandle;

static SlotHandle *handles = NULL;
static int	unreaped = 0;		/* workers that have left their slots */
static bool scanned = false;	/* Database.listed means something */
static bool scan_wanted = true;
static TimestampTz next_scan = 0;

/* No background worker slot is free: the message is out, try again later. */
static bool out_of_workers = false;
static TimestampTz workers_retry_at = 0;
static int	workers_retry_ms = NO_WORKER_MIN_MS;

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
	if (!shmem_release_slot(slot))
		return;
	topic_stats_forget(db->dboid);
	db->knowledge = knowledge;
	db->look_again = false;
}

/*
 * Forget what pg_database lists no longer. A relay that still runs there
 * (the database has become a template) is asked to leave.
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
			pg_atomic_write_u32(&slot->stop_requested, 1);
			pg_memory_barrier();
			shmem_set_latch(pg_atomic_read_u32(&slot->procno));
			free_slot(slot, db, DB_UNKNOWN);
		}
		if (shmem_find_slot(db->dboid) == NULL)
			(void) hash_search(launcher_databases, &db->dboid, HASH_REMOVE, NULL);
	}
}

/*
 * Register the worker for a slot in phase SLOT_WANTED. False when there is no
 * background worker slot; then the slot is as it was.
 */
static bool
register_relay(RelaySlot *slot, Database *db)
{
	int			index = slot - shared_state->slots;
	BackgroundWorker worker;
	uint32		generation;
	bool		suspended;
	bool		registered;
	MemoryContext oldcontext;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	suspended = slot->suspensions > 0;
	if (!suspended)
	{
		slot->phase = SLOT_STARTING;
		slot->generation++;
	}
	generation = slot->generation;
	LWLockRelease(shared_state->lock);
	if (suspended)
		return true;

	db->look_again = false;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_name, BGW_MAXLEN, "outbox_kafka relay %s", NameStr(db->name));
	snprintf(worker.bgw_type, BGW_MAXLEN, "outbox_kafka relay");
	snprintf(worker.bgw_library_name, BGW_MAXLEN, OUTBOX_LIBRARY);
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "outbox_kafka_relay_main");
	worker.bgw_main_arg = Int32GetDatum(index);
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	/* The handle outlives this look around. */
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &handles[index].handle);
	MemoryContextSwitchTo(oldcontext);

	if (registered)
		handles[index].patience_until =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), START_PATIENCE_MS);
	else
		handles[index].handle = NULL;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (!registered)
		slot->phase = SLOT_WANTED;
	slot->no_worker_slot = !registered;
	LWLockRelease(shared_state->lock);
	return registered;
}

/* One line when it begins, however long it lasts; then with growing pauses. */
static void
note_out_of_workers(Database *db, TimestampTz now)
{
	if (!out_of_workers)
	{
		workers_retry_ms = NO_WORKER_MIN_MS;
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots: cannot start a relay in database \"%s\"",
						NameStr(db->name)),
				 errdetail("Messages are stored and wait. It is tried again until a slot is free."),
				 errhint("You might need to increase max_worker_processes.")));
	}
	else
		ereport(DEBUG1, (errmsg_internal("still out of background worker slots")));
	out_of_workers = true;
	workers_retry_at = TimestampTzPlusMilliseconds(now, workers_retry_ms);
	workers_retry_ms = Min(workers_retry_ms * 2, NO_WORKER_MAX_MS);

	/* All that have to wait say why. */
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_state->nslots; i++)
		if (shared_state->slots[i].phase == SLOT_WANTED)
			shared_state->slots[i].no_worker_slot = true;
	LWLockRelease(shared_state->lock);
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
 * A worker is registered and has not attached. Find out whether it still can.
 * Returns when to look again if nothing wakes us, 0: never.
 */
static TimestampTz
check_starting(RelaySlot *slot, SlotHandle *handle, TimestampTz now)
{
	bool		gone;
	pid_t		pid;

	if (handle->handle != NULL)
		gone = GetBackgroundWorkerPid(handle->handle, &pid) == BGWH_STOPPED;
	else
	{
		if (handle->deadline == 0)
			handle->deadline = TimestampTzPlusMilliseconds(now, ADOPTED_START_MS);
		gone = now >= handle->deadline;
	}
	if (!gone)
		return due_sooner(handle->deadline,
						  now < handle->patience_until ? handle->patience_until : 0);

	/*
	 * It may have attached and left since we looked at the phase; then the
	 * slot is none of our business. It never had an effect otherwise, and
	 * cannot have one later: the generation changes with the next start.
	 */
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->phase == SLOT_STARTING)
	{
		slot->phase = SLOT_WANTED;
		slot->generation++;
		slot->start_after = TimestampTzPlusMilliseconds(now, NO_WORKER_MIN_MS);
	}
	LWLockRelease(shared_state->lock);
	SetLatch(MyLatch);
	return 0;
}

/*
 * The worker of a slot has left it. Its handle is kept until the postmaster
 * has reaped it, of which we are signalled: before that its background worker
 * slot is taken, and starting the next one might fail for that alone.
 */
static void
check_reaped(SlotHandle *handle)
{
	pid_t		pid;

	handle->deadline = 0;
	if (handle->handle == NULL)
		return;
	if (GetBackgroundWorkerPid(handle->handle, &pid) == BGWH_STOPPED)
	{
		pfree(handle->handle);
		handle->handle = NULL;
	}
	else
		unreaped++;
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
	unreaped = 0;
	for (int i = 0; i < shared_state->nslots; i++)
	{
		RelaySlot  *slot = &shared_state->slots[i];
		SlotHandle *handle = &handles[i];
		Oid			dboid = pg_atomic_read_u32(&slot->dboid);
		Database   *db;
		SlotPhase	phase;
		bool		settled;

		LWLockAcquire(shared_state->lock, LW_SHARED);
		phase = slot->phase;
		settled = slot->settled;
		LWLockRelease(shared_state->lock);

		if (phase != SLOT_STARTING && phase != SLOT_RUNNING)
			check_reaped(handle);
		if (phase == SLOT_FREE)
			continue;
		db = launcher_database(dboid);

		switch (phase)
		{
			case SLOT_STARTING:
				wake = due_sooner(wake, check_starting(slot, handle, now));
				if (now < handle->patience_until)
					*start_under_way = true;
				break;
			case SLOT_RUNNING:
				if (settled)
				{
					handle->patience_until = 0;
					db->refusal_logged = false;
				}
				else if (now < handle->patience_until)
				{
					*start_under_way = true;
					wake = due_sooner(wake, handle->patience_until);
				}
				break;
			case SLOT_IDLE:
				free_slot(slot, db, db->look_again ? DB_UNKNOWN : DB_ABSENT);
				break;
			case SLOT_REFUSED:
				free_slot(slot, db, db->look_again ? DB_UNKNOWN : DB_REFUSED);
				note_refused(db);
				break;
			case SLOT_WANTED:
			case SLOT_FREE:
				break;
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
 * Start the relay of one database: first of those known to have the extension,
 * then of one not looked at yet. Returns when to look again if nothing wakes
 * us before, 0: never.
 */
static TimestampTz
start_one(TimestampTz now)
{
	TimestampTz wake = 0;
	RelaySlot  *slot = NULL;
	Database   *db = NULL;

	if (now < workers_retry_at)
		return workers_retry_at;

	for (int i = 0; i < shared_state->nslots && slot == NULL; i++)
	{
		RelaySlot  *candidate = &shared_state->slots[i];
		Oid			dboid = pg_atomic_read_u32(&candidate->dboid);
		TimestampTz start_after;
		bool		startable;

		if (!OidIsValid(dboid))
			continue;
		db = launcher_database(dboid);
		LWLockAcquire(shared_state->lock, LW_SHARED);
		startable = candidate->phase == SLOT_WANTED && candidate->suspensions == 0;
		start_after = candidate->start_after;
		LWLockRelease(shared_state->lock);

		if (!startable || !db->listed || handles[i].handle != NULL)
			continue;
		if (start_after <= now)
			slot = candidate;
		else
			wake = due_sooner(wake, start_after);
	}

	if (slot == NULL)
	{
		slot = claim_for_unknown(&db);
		if (slot == NULL)
			return wake;
	}

	/* The slot's last worker may not be reaped; that will wake us. */
	if (handles[slot - shared_state->slots].handle != NULL)
		return wake;

	if (register_relay(slot, db))
	{
		out_of_workers = false;
		workers_retry_at = 0;
		return wake;
	}
	if (unreaped > 0)
		return wake;
	note_out_of_workers(db, now);
	return due_sooner(wake, workers_retry_at);
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
	handles = MemoryContextAllocZero(TopMemoryContext,
									 shared_state->nslots * sizeof(SlotHandle));
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
