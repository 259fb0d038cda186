/*
 * inbox.c
 *	  The inbox worker: the main loop.
 *
 * A process for a subscription, or several that share its partitions. It reads
 * messages from Kafka, has the subscription's function handle them, and stores
 * how far it came in the same transactions. Positions are the database's: of
 * Kafka's consumer groups only the name is used, under which they are mirrored
 * for those who watch lags.
 *
 * What is decided in SQL is read again under the lock that those who decide
 * take, see inbox_store.c; whatever changes, reading starts anew from what is
 * stored (load()).
 *
 * Asleep it holds no snapshot and writes nothing; it wakes for a message, for a
 * decision, and to look for new topics.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "due.h"
#include "guc.h"
#include "inbox.h"
#include "inbox_internal.h"

/* A worker that sleeps looks around this often. */
#define SAFETY_MS 60000

/* While somebody decides. */
#define DECIDING_MS 20

/* Before trying again to follow a decision. */
#define REQUEST_MS 100

/* Between tries to make a consumer: doubled each time, up to the maximum. */
#define RETRY_MIN_MS 500
#define RETRY_MAX_MS 30000

/* What is read ahead, in kilobytes: in all, and of one partition. */
#define QUEUES_KB 65536
#define QUEUE_MAX_KB 32768
#define QUEUE_MIN_KB 2048

/* Positions and ends that no batch has written are, after so long. */
#define TIDY_MS 500

/* Mirrored positions are written again so often, or Kafka forgets them. */
#define MIRROR_AGAIN_MS (24 * 3600 * 1000L)

/* librdkafka repeats itself while it reconnects. */
#define LOG_INTERVAL_MS 10000

const char *const inbox_worker_states[] = {
	"starting", "unconfigured", "connecting", "running", "idle", "deciding"
};

/* Kept here for the exit callback. */
static KafkaConsumer *running_consumer = NULL;

/* ---- the consumer ---- */

static void
event(void *arg, const KafkaError *error)
{
	Inbox	   *inbox = arg;

	strlcpy(inbox->event_text, error->message, sizeof(inbox->event_text));
}

static void
log_line(void *arg, int syslog_level, const char *text)
{
	Inbox	   *inbox = arg;

	if (syslog_level <= 4)
	{
		strlcpy(inbox->log_text, text, sizeof(inbox->log_text));
		inbox->log_pending = true;
	}
}

static const KafkaEventHandlers handlers = {
	.error = event,
	.log = log_line,
};

static void
serve(Inbox *inbox, TimestampTz now)
{
	if (inbox->consumer == NULL)
		return;
	kafka_consumer_serve(inbox->consumer, &handlers, inbox);
	if (inbox->log_pending &&
		TimestampDifferenceExceeds(inbox->logged_at, now, LOG_INTERVAL_MS))
	{
		inbox->log_pending = false;
		inbox->logged_at = now;
		ereport(LOG,
				(errmsg("outbox_kafka client: %s", inbox->log_text)));
	}
}

static void
stop_all(Inbox *inbox)
{
	for (int i = 0; i < inbox->npartitions; i++)
		inbox_stop_reading(inbox->partitions[i]);
}

/*
 * librdkafka's threads must have ended before the process does, and they wait
 * for each message that was taken to be given back: one that ends in the middle
 * of a batch has some.
 */
static void
end_at_exit(int code, Datum arg)
{
	Inbox	   *inbox = (Inbox *) DatumGetPointer(arg);
	KafkaConsumer *consumer = running_consumer;

	running_consumer = NULL;
	if (consumer != NULL)
		stop_all(inbox);
	kafka_consumer_destroy(consumer);
}

static void
close_consumer(Inbox *inbox)
{
	stop_all(inbox);
	if (inbox->consumer != NULL)
		kafka_consumer_destroy(inbox->consumer);
	inbox->consumer = NULL;
	running_consumer = NULL;
	inbox->cluster = NULL;
	inbox->discover_at = 0;
}

/* Everything that the connection depends on, as one text to compare. */
static char *
present_settings(void)
{
	return psprintf("%s\n%s\n%s", guc_bootstrap_servers, guc_consumer_config,
					guc_config_file);
}

/* With the descriptor of a consumer, if there is one. */
static void
set_wait_events(Inbox *inbox)
{
	if (inbox->wait_set != NULL)
		FreeWaitEventSet(inbox->wait_set);
	inbox->wait_set = compat_create_wait_event_set(3);
	AddWaitEventToSet(inbox->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(inbox->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	if (inbox->consumer != NULL)
		AddWaitEventToSet(inbox->wait_set, WL_SOCKET_READABLE,
						  kafka_consumer_fd(inbox->consumer), NULL, NULL);
}

static void
open_consumer(Inbox *inbox, TimestampTz now)
{
	KafkaConsumerConfig config;
	KafkaError	error;

	if (inbox->consumer != NULL || guc_bootstrap_servers[0] == '\0' || inbox->retry_at > now)
		return;
	config.bootstrap_servers = guc_bootstrap_servers;
	config.client_id = "outbox_kafka inbox";
	config.group_id = inbox->group;
	config.properties = guc_consumer_config;
	config.config_file = guc_config_file;
	config.queue_kb = Max(QUEUE_MIN_KB, Min(QUEUE_MAX_KB, QUEUES_KB / Max(inbox->npartitions, 1)));
	inbox->consumer = kafka_consumer_create(&config, &error);
	if (inbox->consumer == NULL)
	{
		int64		pause = RETRY_MIN_MS;

		for (int i = 0; i < inbox->failures && pause < RETRY_MAX_MS; i++)
			pause *= 2;
		inbox->failures++;
		inbox->retry_at = TimestampTzPlusMilliseconds(now, Min(pause, RETRY_MAX_MS));
		resetStringInfo(&inbox->problem);
		appendStringInfoString(&inbox->problem, error.message);
		return;
	}
	running_consumer = inbox->consumer;
	inbox->failures = 0;
	inbox->event_text[0] = '\0';
	if (inbox->settings != NULL)
		pfree(inbox->settings);
	inbox->settings = MemoryContextStrdup(inbox->context, present_settings());
	inbox->discover_at = now;
	set_wait_events(inbox);
}

static void
reload_settings(Inbox *inbox)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);

	/* what the file says now is not known: credentials may have changed */
	if (inbox->consumer != NULL &&
		(guc_config_file[0] != '\0' || strcmp(inbox->settings, present_settings()) != 0))
	{
		close_consumer(inbox);
		set_wait_events(inbox);
	}
	inbox->retry_at = 0;
	inbox->failures = 0;
	inbox->discover_at = Min(inbox->discover_at, GetCurrentTimestamp());
}

/* ---- loading ---- */

/* The name under which positions are mirrored: no other database has it. */
static char *
group_name(Inbox *inbox)
{
	char	   *identity = NULL;

	SPI_connect();
	if (SPI_execute("SELECT outbox.identity()", true, 1) == SPI_OK_SELECT && SPI_processed == 1)
		identity = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	identity = MemoryContextStrdup(inbox->loop_context, identity ? identity : "unknown");
	SPI_finish();
	return MemoryContextStrdup(inbox->load_context,
							   psprintf("%s.%s", inbox->subscription->name, identity));
}

/*
 * Begin anew from what is stored. False: somebody decides just now.
 */
static bool
load(Inbox *inbox, TimestampTz now)
{
	InboxSubscription *subscription;
	char	   *group;
	bool		first = inbox->subscription == NULL;

	stop_all(inbox);
	inbox->npartitions = 0;
	inbox->partitions_room = 0;
	inbox->partitions = NULL;
	inbox->subscription = NULL;
	MemoryContextReset(inbox->load_context);

	inbox_begin();
	if (!inbox_store_lock(inbox))
	{
		inbox_commit(inbox);
		return false;
	}
	MemoryContextSwitchTo(inbox->load_context);
	subscription = inbox_store_subscription(inbox->slot->worker.subscription);
	if (subscription == NULL || subscription->paused || inbox->number >= subscription->workers)
	{
		inbox_commit(inbox);
		side_worker_leave(inbox->seen);
	}
	inbox->subscription = subscription;
	MemoryContextSwitchTo(inbox->loop_context);
	group = group_name(inbox);
	inbox_store_load_partitions(inbox);
	inbox_commit(inbox);

	/* connections belong to a group's name */
	if (inbox->group == NULL || strcmp(inbox->group, group) != 0)
	{
		if (inbox->consumer != NULL)
			close_consumer(inbox);
		inbox->group = MemoryContextStrdup(inbox->context, group);
	}
	for (int i = 0; first && inbox->careful_start && i < inbox->npartitions; i++)
	{
		inbox->partitions[i]->alone_until =
			inbox->partitions[i]->position + subscription->batch_size;
		inbox->partitions[i]->record_attempts = true;
	}
	inbox->reload = false;
	inbox->requests = true;
	inbox->wait_until = 0;
	inbox->discover_at = now;
	inbox->dead_at = now;
	inbox_dedupe_load();
	return true;
}

/* ---- housekeeping ---- */

/* Store what no batch has: ends that were reached, states. */
static void
tidy(Inbox *inbox, TimestampTz now)
{
	bool		entered;

	for (int i = 0; i < inbox->npartitions; i++)
	{
		InboxPartition *partition = inbox->partitions[i];
		int64		end = partition->reading ? kafka_partition_end(partition->reading) : -1;

		if (partition->state == INBOX_RUNNING && partition->reading != NULL)
			inbox_reach_end(partition);
		if (end > partition->end_offset)
		{
			partition->end_offset = end;
			partition->dirty = true;
		}
		if (partition->dirty && inbox->tidy_at == 0)
			inbox->tidy_at = TimestampTzPlusMilliseconds(now, TIDY_MS);
	}
	if (inbox->tidy_at == 0 || inbox->tidy_at > now)
		return;

	inbox->tidy_at = 0;
	inbox_begin();
	entered = inbox_store_enter(inbox);
	for (int i = 0; entered && i < inbox->npartitions; i++)
	{
		if (inbox->partitions[i]->dirty)
		{
			inbox_store_partition(inbox, inbox->partitions[i]);
			inbox->mirror_at = due_sooner(inbox->mirror_at, now);
		}
	}
	inbox_commit(inbox);
}

static void
mirror(Inbox *inbox, TimestampTz now)
{
	KafkaPosition *positions;
	int			count = 0;

	if (inbox->mirror_at == 0 || inbox->mirror_at > now || inbox->cluster == NULL ||
		inbox->npartitions == 0)
		return;
	positions = palloc(sizeof(KafkaPosition) * inbox->npartitions);
	for (int i = 0; i < inbox->npartitions; i++)
	{
		const InboxPartition *partition = inbox->partitions[i];

		if (partition->reading == NULL)
			continue;
		positions[count].topic = partition->topic;
		positions[count].partition = partition->number;
		positions[count].offset = partition->position;
		count++;
	}
	if (count > 0)
		kafka_consumer_mirror(inbox->consumer, positions, count);
	pfree(positions);
	inbox->mirror_at = TimestampTzPlusMilliseconds(now, MIRROR_AGAIN_MS);
}

static void
report(Inbox *inbox, bool more)
{
	InboxWorkerState state = more ? INBOX_WORKER_RUNNING : INBOX_WORKER_IDLE;

	if (guc_bootstrap_servers[0] == '\0')
		state = INBOX_WORKER_UNCONFIGURED;
	else if (inbox->deciding)
		state = INBOX_WORKER_DECIDING;
	else if (inbox->cluster == NULL)
		state = INBOX_WORKER_CONNECTING;
	pg_atomic_write_u32(&inbox->slot->state, state);
}

static void
sleep_until_needed(Inbox *inbox, TimestampTz now)
{
	static uint32 wait_event = 0;
	long		stats_due = pgstat_report_stat(false);
	long		timeout = stats_due > 0 ? stats_due : SAFETY_MS;

	/* what is due and cannot be done is no reason to wake */
	bool		handling = !inbox->deciding && inbox->wait_until <= now;

	if (wait_event == 0)
		wait_event = compat_wait_event("OutboxInboxMain");
	if (inbox->deciding)
		timeout = Min(timeout, DECIDING_MS);
	timeout = due_within(now, inbox->wait_until, timeout);
	if (handling)
		timeout = due_within(now, inbox_dedupe_due(inbox), timeout);
	if (inbox->consumer == NULL)
		timeout = due_within(now, inbox->retry_at, timeout);
	else
	{
		timeout = due_within(now, inbox->discover_at, timeout);
		if (handling)
		{
			timeout = due_within(now, inbox->tidy_at, timeout);
			timeout = due_within(now, inbox->dead_at, timeout);
		}
		if (handling && inbox->cluster != NULL)
			timeout = due_within(now, inbox->mirror_at, timeout);
		for (int i = 0; i < inbox->npartitions; i++)
		{
			const InboxPartition *partition = inbox->partitions[i];

			if (handling && partition->state == INBOX_RETRYING && partition->next_try_at > now)
				timeout = due_within(now, partition->next_try_at, timeout);
			if (partition->reading == NULL && partition->found && partition->look_at > now)
				timeout = due_within(now, partition->look_at, timeout);
			if (handling && partition->range_error && partition->reading == NULL && partition->look_at <= now &&
				partition->state == INBOX_RUNNING)
				timeout = 0;
		}
	}
	pgstat_report_activity(STATE_IDLE, NULL);
	side_worker_sleep(inbox->slot, inbox->seen, inbox->wait_set, timeout, wait_event);
	pgstat_report_activity(STATE_RUNNING, NULL);
}

/* What can be done now. True: there is more. */
static bool
work(Inbox *inbox, TimestampTz now)
{
	bool		more = false;

	if ((inbox->reload || inbox->subscription == NULL) && !load(inbox, now))
		return false;
	open_consumer(inbox, now);
	serve(inbox, now);
	if (inbox->consumer == NULL)
	{
		inbox_store_problem(inbox);
		return false;
	}
	if (inbox->discover_at <= now)
		inbox_discover(inbox, now);
	if (inbox->reload)
		return true;
	if (inbox->requests && !inbox_apply_requests(inbox))
	{
		inbox_store_problem(inbox);
		inbox->wait_until = TimestampTzPlusMilliseconds(now, REQUEST_MS);
		return false;
	}
	inbox->requests = false;
	inbox_start_reading(inbox, now);
	if (inbox->wait_until <= now)
	{
		inbox->wait_until = 0;
		inbox_dedupe_rotate(inbox, now);
		more = inbox_retry_dead_letters(inbox, now);
		pg_atomic_write_u32(&inbox->slot->busy, 1);
		more |= inbox_handle(inbox, now);
		pg_atomic_write_u32(&inbox->slot->busy, 0);
	}
	if (inbox->reload)
		return true;
	inbox_store_problem(inbox);
	tidy(inbox, now);
	mirror(inbox, now);
	return more || inbox->reload;
}

static void
run(Inbox *inbox)
{
	for (;;)
	{
		TimestampTz now;
		uint32		seen;
		bool		more;

		MemoryContextReset(inbox->loop_context);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (worker_should_stop())
			return;
		if (ConfigReloadPending)
			reload_settings(inbox);
		seen = pg_atomic_read_u32(&inbox->slot->worker.control_generation);
		pg_memory_barrier();
		if (seen != inbox->seen)
		{
			/* it may be about anything */
			inbox->reload = true;
			inbox->seen = seen;
		}
		now = GetCurrentTimestamp();
		more = work(inbox, now);
		report(inbox, more);
		if (!more)
			sleep_until_needed(inbox, now);
		else
			(void) pgstat_report_stat(false);
	}
}

/*
 * Main function of the worker. An ERROR ends the process; the launcher starts
 * it again after a while, and it goes on from what is stored.
 */
void
outbox_kafka_inbox_main(Datum main_arg)
{
	SideSlot   *slot = side_worker_attach(main_arg);
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "inbox", ALLOCSET_DEFAULT_SIZES);
	Inbox	   *inbox = MemoryContextAllocZero(context, sizeof(Inbox));

	inbox->slot = slot;
	inbox->number = slot->worker.number;
	inbox->context = context;
	inbox->load_context = AllocSetContextCreate(context, "inbox load", ALLOCSET_DEFAULT_SIZES);
	inbox->loop_context = AllocSetContextCreate(context, "inbox loop", ALLOCSET_DEFAULT_SIZES);
	inbox->message_context = AllocSetContextCreate(context, "inbox message", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	initStringInfo(&inbox->problem);
	inbox->seen = pg_atomic_read_u32(&slot->worker.control_generation);

	/* a worker that ended in a handler leaves this behind; a crash, nothing */
	inbox->careful_start = pg_atomic_read_u32(&slot->busy) != 0 ||
		pg_atomic_read_u64(&slot->last_activity_at) == 0;
	pg_atomic_write_u32(&slot->busy, 0);

	before_shmem_exit(end_at_exit, PointerGetDatum(inbox));
	set_wait_events(inbox);
	MemoryContextSwitchTo(inbox->loop_context);
	run(inbox);
	close_consumer(inbox);
	proc_exit(0);
}
