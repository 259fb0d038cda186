/*
 * worker.c
 *	  The beginning and the end of a worker's life.
 *
 * The slot is attached before connecting, for two reasons: settings are read
 * while connecting, so a change that commits after the attach finds
 * stop_requested and one before is seen by the connection; and a connection
 * that fails is then accounted like any other failure.
 *
 * The callback that gives the slot back is registered before connecting as
 * well. Callbacks run in reverse order, so it runs after the session's own
 * clean-up: the lock that makes a worker the only one is free by the time the
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
#include "utils/timestamp.h"

#include "outbox_kafka.h"
#include "worker.h"

/*
 * Advisory locks of users have 1 or 2 in the last field of their tag, so
 * nobody can take this one by SQL. The kind of worker is added.
 */
#define WORKER_LOCK_FIELD4 0x6f6b

/* Waiting time after a failure: doubled each time between these, in ms. */
#define BACKOFF_MIN_MS 1000
#define BACKOFF_MAX_MS 60000

/* Failures are forgiven after running well for so long, in ms. */
#define HEALTHY_MS 60000

/* A clean end soon after the start: no faster than this, in ms. */
#define RESTART_PAUSE_MS 200
#define RESTART_PAUSE_WITHIN_MS 1000

static WorkerSlot *my_slot = NULL;
static const WorkerRole *my_role = NULL;

/* What the slot becomes when this process ends without an error. */
static SlotPhase phase_at_exit = SLOT_WANTED;

static emit_log_hook_type prev_emit_log_hook = NULL;
static char final_error[SLOT_ERROR_LENGTH];
static int	final_error_code = 0;

/*
 * Keep the text of what ends this process; detach_slot() stores it. It must
 * not raise, and runs while an error is being processed, so it only copies.
 */
static void
keep_final_error(ErrorData *edata)
{
	if (edata->elevel >= ERROR && edata->message != NULL)
	{
		strlcpy(final_error, edata->message, sizeof(final_error));
		final_error_code = edata->sqlerrcode;
	}

	if (prev_emit_log_hook != NULL)
		prev_emit_log_hook(edata);
}

/* Lines in the log say which database's worker they come from. */
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
 * Whether the process ends because it was asked to: in the middle of things,
 * where only a FATAL gets out.
 */
static bool
ends_as_asked(WorkerSlot *slot)
{
	return final_error_code == ERRCODE_ADMIN_SHUTDOWN &&
		(ShutdownRequestPending || pg_atomic_read_u32(&slot->stop_requested) != 0);
}

/*
 * before_shmem_exit callback: give the slot back and tell whoever waits for
 * it. A failure delays the next start, a clean end does not.
 */
static void
detach_slot(int code, Datum arg)
{
	WorkerSlot *slot = my_slot;
	TimestampTz now = GetCurrentTimestamp();
	bool		failed;

	if (slot == NULL)
		return;
	my_slot = NULL;

	/* An ERROR outside of a transaction may have left some behind. */
	LWLockReleaseAll();

	failed = code != 0 && !ends_as_asked(slot);
	if (failed)
	{
		if (final_error[0] == '\0')
			snprintf(final_error, sizeof(final_error),
					 "the %s ended with exit code %d", my_role->name, code);
		shmem_set_error(slot, final_error);
	}

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	slot->pid = 0;
	slot->settled = false;
	if (failed)
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
	if (my_role->detached != NULL)
		my_role->detached(slot);
	LWLockRelease(shared_state->lock);

	if (my_role->left != NULL)
		my_role->left(slot);
	shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
}

/* Make the slot ours, or end: it may have gone to a later registration. */
static void
attach_slot(int number, uint32 generation)
{
	WorkerSlot *slot;
	TimestampTz now = GetCurrentTimestamp();
	bool		attached = false;

	if (shared_state == NULL || number < 0 || number >= shmem_worker_count())
		proc_exit(0);
	slot = shmem_worker(number);

	before_shmem_exit(detach_slot, (Datum) 0);

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (slot->phase == SLOT_STARTING && slot->generation == generation)
	{
		if (shmem_is_suspended(pg_atomic_read_u32(&slot->dboid)) ||
			(my_role->may_attach != NULL && !my_role->may_attach(slot)))
			slot->phase = SLOT_WANTED;
		else
		{
			slot->phase = SLOT_RUNNING;
			slot->pid = MyProcPid;
			slot->settled = false;
			slot->started_at = now;
			pg_atomic_write_u32(&slot->stop_requested, 0);
			pg_atomic_write_u32(&slot->sleeping, 0);
			pg_atomic_write_u32(&slot->procno, compat_my_proc_number());
			if (my_role->attached != NULL)
				my_role->attached(slot);
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
}

/* What ALTER DATABASE SET or the configuration file may not decide for us. */
static void
override_settings(void)
{
	const struct
	{
		const char *name;
		const char *value;
	}			settings[] =
	{
		{"search_path", ""},
		{"statement_timeout", "0"},
		{"lock_timeout", my_role->lock_timeout},
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
 * before detach_slot() runs. Whatever went wrong with the slots, two workers
 * that do the same never run.
 */
void
worker_take_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) my_slot->subscription,
						 (uint32) my_slot->number,
						 WORKER_LOCK_FIELD4 + my_slot->kind);
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another %s of this database is still running", my_role->name)));
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

WorkerSlot *
worker_begin(Datum main_arg, const WorkerRole *role)
{
	static ErrorContextCallback context;
	uint32		generation;

	my_role = role;
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
	pqsignal(SIGINT, role->handle_sigint);
	BackgroundWorkerUnblockSignals();

	attach_slot(DatumGetInt32(main_arg), generation);

	BackgroundWorkerInitializeConnectionByOid(pg_atomic_read_u32(&my_slot->dboid),
											  InvalidOid, 0);
	pqsignal(SIGTERM, role->handle_sigterm);
	CHECK_FOR_INTERRUPTS();

	override_settings();
	worker_take_lock();
	if (!has_extension())
		worker_leave_idle();
	return my_slot;
}

void
worker_settle(void)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->settled = true;
	LWLockRelease(shared_state->lock);

	/* From now on it is one of us, for pg_stat_activity as well. */
	pgstat_report_activity(STATE_IDLE, NULL);

	/* The launcher starts one at a time: the next one may come now. */
	shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
}

void
worker_leave(SlotPhase phase)
{
	phase_at_exit = phase;
	proc_exit(0);
}

void
worker_leave_idle(void)
{
	worker_leave(SLOT_IDLE);
}

bool
worker_should_stop(void)
{
	return ShutdownRequestPending ||
		(my_slot != NULL && pg_atomic_read_u32(&my_slot->stop_requested) != 0);
}
