/*
 * worker.c
 *	  The beginning and the end of a relay's life.
 *
 * The slot is attached before connecting, for two reasons: settings are read
 * while connecting, so a change that commits after the attach finds
 * stop_requested and one before is seen by the connection; and a connection
 * that fails is then accounted like any other failure.
 *
 * The callback that gives the slot back is registered before connecting as
 * well. Callbacks run in reverse order, so it runs after the session's own
 * clean-up: the lock that makes a relay the only one is free by the time the
 * launcher may start the next.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "outbox_kafka.h"
#include "worker.h"

/*
 * Advisory locks of users have 1 or 2 in the last field of their tag, so
 * nobody can take this one by SQL.
 */
#define RELAY_LOCK_FIELD4 0x6f6b

/*
 * A lock that somebody else holds may not keep a relay from its messages; and
 * who waits for one of the relay's must not be told of a deadlock, after
 * deadlock_timeout.
 */
#define RELAY_LOCK_TIMEOUT "100ms"

/* Waiting time after a failure: doubled each time between these, in ms. */
#define BACKOFF_MIN_MS 1000
#define BACKOFF_MAX_MS 60000

/* Failures are forgiven after running well for so long, in ms. */
#define HEALTHY_MS 60000

/* A clean end soon after the start: no faster than this, in ms. */
#define RESTART_PAUSE_MS 200
#define RESTART_PAUSE_WITHIN_MS 1000

static RelaySlot *my_slot = NULL;

/* What the slot becomes when this process ends without an error. */
static SlotPhase phase_at_exit = SLOT_WANTED;

static emit_log_hook_type prev_emit_log_hook = NULL;
static char final_error[SLOT_ERROR_LENGTH];

/*
 * Keep the text of what ends this process; detach_slot() stores it. It must
 * not raise, and runs while an error is being processed, so it only copies.
 */
static void
keep_final_error(ErrorData *edata)
{
	if (edata->elevel >= ERROR && edata->message != NULL)
		strlcpy(final_error, edata->message, sizeof(final_error));

	if (prev_emit_log_hook != NULL)
		prev_emit_log_hook(edata);
}

/* Lines in the log say which database's relay they come from. */
static void
name_worker(void *arg)
{
	errcontext("%s", MyBgworkerEntry->bgw_name);
}

static TimestampTz
after_failure(TimestampTz now, int failures)
{
	int64		pause = BACKOFF_MIN_MS;

	for (int i = 1; i < failures && pause < BACKOFF_MAX_MS; i++)
		pause *= 2;
	return TimestampTzPlusMilliseconds(now, Min(pause, BACKOFF_MAX_MS));
}

/*
 * before_shmem_exit callback: give the slot back and tell whoever waits for
 * it. A failure delays the next start, a clean end does not.
 */
static void
detach_slot(int code, Datum arg)
{
	RelaySlot  *slot = my_slot;
	TimestampTz now = GetCurrentTimestamp();

	if (slot == NULL)
		return;
	my_slot = NULL;

	/* An ERROR outside of a transaction may have left some behind. */
	LWLockReleaseAll();

	if (code != 0)
	{
		if (final_error[0] == '\0')
			snprintf(final_error, sizeof(final_error),
					 "the relay ended with exit code %d", code);
		shmem_set_error(slot, final_error);
	}

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->pid = 0;
	slot->settled = false;
	if (code != 0)
	{
		if (TimestampDifferenceExceeds(slot->started_at, now, HEALTHY_MS))
			slot->failures = 0;
		slot->failures++;
		slot->start_after = after_failure(now, slot->failures);
		slot->phase = SLOT_WANTED;
	}
	else
	{
		slot->failures = 0;
		slot->start_after = now;
		if (!TimestampDifferenceExceeds(slot->started_at, now, RESTART_PAUSE_WITHIN_MS))
			slot->start_after = TimestampTzPlusMilliseconds(now, RESTART_PAUSE_MS);
		slot->phase = phase_at_exit;
	}
	pg_atomic_write_u32(&slot->procno, SLOT_NO_PROC);
	pg_atomic_write_u32(&slot->sleeping, 0);
	pg_atomic_write_u64(&slot->in_flight, 0);
	pg_atomic_write_u64(&slot->in_flight_bytes, 0);
	LWLockRelease(shared_state->lock);

	ConditionVariableBroadcast(&slot->progress_cv);
	shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
}

/* Make the slot ours, or end: it may have gone to a later registration. */
static RelaySlot *
attach_slot(int index, uint32 generation)
{
	RelaySlot  *slot;
	TimestampTz now = GetCurrentTimestamp();
	bool		attached = false;

	if (shared_state == NULL || index < 0 || index >= shared_state->nslots)
		proc_exit(0);
	slot = &shared_state->slots[index];

	before_shmem_exit(detach_slot, (Datum) 0);

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->phase == SLOT_STARTING && slot->generation == generation)
	{
		if (slot->suspensions > 0)
			slot->phase = SLOT_WANTED;
		else
		{
			slot->phase = SLOT_RUNNING;
			slot->pid = MyProcPid;
			slot->settled = false;
			slot->started_at = now;
			pg_atomic_write_u32(&slot->stop_requested, 0);
			pg_atomic_write_u32(&slot->sleeping, 0);
			pg_atomic_write_u32(&slot->state, RELAY_STARTING);
			pg_atomic_write_u32(&slot->procno, compat_my_proc_number());
			my_slot = slot;
			attached = true;
		}
	}
	LWLockRelease(shared_state->lock);

	if (!attached)
	{
		shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
		proc_exit(0);
	}

	prev_emit_log_hook = emit_log_hook;
	emit_log_hook = keep_final_error;
	return slot;
}

/*
 * lock_timeout interrupts a process by SIGINT, as pg_cancel_backend() does. The
 * relay minds the first only: it runs no statement that could be cancelled.
 */
static void
handle_sigint(SIGNAL_ARGS)
{
	if (get_timeout_indicator(LOCK_TIMEOUT, false))
		StatementCancelHandler(postgres_signal_arg);
}

/* What ALTER DATABASE SET or the configuration file may not decide for us. */
static void
override_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			settings[] =
	{
		{"search_path", ""},
		{"statement_timeout", "0"},
		{"lock_timeout", RELAY_LOCK_TIMEOUT},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
		{"transaction_timeout", "0"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
	};

	for (size_t i = 0; i < lengthof(settings); i++)
	{
		/* transaction_timeout came with PostgreSQL 17 */
		if (GetConfigOption(settings[i].name, true, false) != NULL)
			SetConfigOption(settings[i].name, settings[i].value,
							PGC_SUSET, PGC_S_OVERRIDE);
	}
}

/*
 * Held by the session until the process ends, and released by its clean-up
 * before detach_slot() runs. Whatever went wrong with the slots, two relays of
 * one database never run.
 */
static void
take_relay_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, 0, RELAY_LOCK_FIELD4);
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another relay of this database is still running")));
}

static bool
has_extension(void)
{
	bool		found;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	found = OidIsValid(get_extension_oid(OUTBOX_EXTENSION, true));
	CommitTransactionCommand();
	return found;
}

RelaySlot *
worker_attach(Datum main_arg)
{
	static ErrorContextCallback context;
	RelaySlot  *slot;
	uint32		generation;
	Oid			dboid;
	bool		probe_only;

	context.callback = name_worker;
	context.previous = error_context_stack;
	error_context_stack = &context;

	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));

	/*
	 * Until it is connected the worker may have to wait for a lock on its
	 * database for as long as a prepared transaction exists, so SIGTERM has
	 * to end it there and then.
	 */
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, handle_sigint);
	BackgroundWorkerUnblockSignals();

	slot = attach_slot(DatumGetInt32(main_arg), generation);
	dboid = pg_atomic_read_u32(&slot->dboid);

	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	CHECK_FOR_INTERRUPTS();

	override_settings();
	take_relay_lock();
	if (!has_extension())
		worker_leave_idle();

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->settled = true;
	probe_only = slot->probe_only;
	LWLockRelease(shared_state->lock);
	if (probe_only)
	{
		phase_at_exit = SLOT_REFUSED;
		proc_exit(0);
	}

	/* From now on it is a relay, for pg_stat_activity as well. */
	pgstat_report_activity(STATE_IDLE, NULL);

	/* The launcher starts one at a time: the next one may come now. */
	shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
	return slot;
}

void
worker_leave_idle(void)
{
	phase_at_exit = SLOT_IDLE;
	proc_exit(0);
}

bool
worker_should_stop(void)
{
	return ShutdownRequestPending ||
		(my_slot != NULL && pg_atomic_read_u32(&my_slot->stop_requested) != 0);
}
