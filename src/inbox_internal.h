/*
 * inbox_internal.h
 *	  What the files of the inbox worker share. For inbox*.c only.
 *
 *	inbox.c				the main loop
 *	inbox_discover.c	which partitions there are
 *	inbox_partitions.c	where they are read from, and what an error of one of
 *						them means
 *	inbox_request.c		following what was decided in SQL
 *	inbox_batch.c		handling messages: transactions and savepoints
 *	inbox_failure.c		what becomes of a message that fails
 *	inbox_dead.c		dead letters that are to be tried again
 *	inbox_dedupe.c		event ids that were handled
 *	inbox_message.c		from a Kafka message to the handler's argument
 *	inbox_store.c		the tables
 */
#ifndef OUTBOX_INBOX_INTERNAL_H
#define OUTBOX_INBOX_INTERNAL_H

#include "access/genam.h"
#include "access/htup.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/elog.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "kafka_consumer.h"
#include "outbox_kafka.h"
#include "row_place.h"
#include "side_worker.h"

/* How long a question to Kafka may take, between transactions. */
#define INBOX_ASK_MS 1000

/* Before asking again. */
#define INBOX_AGAIN_MS 1000

/* Before looking again for a topic that is missing. */
#define INBOX_MISSING_MS 3000

/* Messages with savepoints that a transaction has at most. */
#define INBOX_SAVEPOINTS 32

/* inbox.offset.state, in the order of inbox_state_names. */
typedef enum InboxPartitionState
{
	INBOX_RUNNING = 0,
	INBOX_RETRYING,
	INBOX_STOPPED,
	INBOX_SKIPPING,
	INBOX_MISSING,
	INBOX_RECREATED,
	INBOX_OTHER_CLUSTER
} InboxPartitionState;

extern const char *const inbox_state_names[];

/* SideSlot.state of an inbox worker, in the order of inbox_worker_states. */
typedef enum InboxWorkerState
{
	INBOX_WORKER_STARTING = 0,
	INBOX_WORKER_UNCONFIGURED,
	INBOX_WORKER_CONNECTING,
	INBOX_WORKER_RUNNING,
	INBOX_WORKER_IDLE,
	INBOX_WORKER_DECIDING		/* somebody decides, and has not committed */
} InboxWorkerState;

extern const char *const inbox_worker_states[];

/* A row of inbox.subscription. */
typedef struct InboxSubscription
{
	int			id;
	char	   *name;
	char	   *owner;
	List	   *topics;			/* of char * */
	char	   *handler;
	TimestampTz start_time;		/* where a new partition begins; 0: earliest */
	bool		start_latest;	/* what is lost is not looked for */
	int			max_attempts;
	int64		retry_backoff_ms;
	bool		stop_on_failure;
	int			workers;
	int			batch_size;
	int64		dedupe_ms;		/* 0: none */
	bool		paused;
	TimestampTz created_at;

	/* the version of the row */
	TransactionId xmin;
	ItemPointerData tid;
} InboxSubscription;

/* A partition of ours: its row in inbox.offset, and the reading of it. */
typedef struct InboxPartition
{
	char	   *topic;
	int			number;

	/* the row, as it is stored or will be next */
	int64		position;
	int64		end_offset;		/* -1: not known */
	char	   *cluster;		/* in the worker's context, or NULL */
	int			leader_epoch;	/* -1: not known */
	int64		last_offset;	/* -1: none */
	int64		last_fingerprint;
	InboxPartitionState state;
	int64		failing_offset; /* -1: none */
	int			attempts;
	TimestampTz next_try_at;	/* 0: none */
	int64		lost;
	char		error[KAFKA_ERROR_LENGTH];	/* or "" */
	TimestampTz error_at;
	RowPlace	place;
	bool		dirty;			/* the row is not that any more, and nothing
								 * else is going to write it */

	/* reading */
	KafkaPartition *reading;	/* NULL: it is not read */
	bool		check_last;		/* the first message has to be the last one */
	int64		next_offset;	/* smaller ones have been taken */
	int64		end_seen;		/* nothing is between what was taken and this;
								 * -1: not known */
	bool		range_error;	/* Kafka has no such offset: find out why */
	bool		found;			/* the topic has such a partition */
	KafkaItem  *items;			/* taken, and not handled */
	int			first;
	int			count;
	int			room;
	TimestampTz look_at;		/* not read before; 0: at once */

	/* how to handle what comes */
	int64		savepoints_until;	/* smaller offsets: with savepoints */
	int64		alone_until;	/* smaller offsets: in transactions of their
								 * own */
	bool		record_attempts;	/* an attempt that ends the process has to
									 * count, below alone_until */
} InboxPartition;

typedef struct Inbox
{
	SideSlot   *slot;
	int			number;			/* of this worker */
	MemoryContext context;		/* lives as long as the worker */
	MemoryContext load_context; /* subscription and partitions: until the next
								 * load */
	MemoryContext loop_context; /* until the loop's next turn */
	MemoryContext message_context;	/* until the next message */
	InboxSubscription *subscription;
	InboxPartition **partitions;
	int			npartitions;
	int			partitions_room;
	int			next_partition; /* where to begin taking */
	char	   *group;

	KafkaConsumer *consumer;
	char	   *settings;		/* that it was made with */
	WaitEventSet *wait_set;
	char	   *cluster;		/* NULL: no broker has answered */

	bool		reload;			/* subscription or requests have changed */
	bool		requests;		/* there may be some to follow */
	bool		deciding;		/* somebody keeps us from handling */
	bool		careful_start;	/* what the last worker was at, it may have
								 * died of */
	TimestampTz discover_at;	/* when to look for topics next */
	TimestampTz tidy_at;		/* when to store what is dirty; 0: nothing is */
	TimestampTz mirror_at;		/* when to mirror positions; 0: nothing new */
	TimestampTz dead_at;		/* when to look for dead letters; 0: never */
	TimestampTz wait_until;		/* nothing is handled before; 0: it is */
	TimestampTz retry_at;		/* when to try to connect again; 0: now */
	int			failures;		/* to connect, in a row */
	uint32		seen;			/* control_generation */

	/* problems of the whole, see inbox_store_problem() */
	StringInfoData problem;		/* as found now */
	char	   *stored_problem; /* as in the table; NULL: none */
	bool		problem_known;	/* that is what is stored */
	char		event_text[KAFKA_ERROR_LENGTH];
	char		log_text[KAFKA_ERROR_LENGTH];
	bool		log_pending;
	TimestampTz logged_at;
} Inbox;

/* A message in a batch. */
typedef struct InboxEntry
{
	InboxPartition *partition;
	KafkaItem  *item;
} InboxEntry;

/* ---- inbox_store.c: all inside a transaction of the caller's ---- */

/* Begin and end a transaction of the worker's own. */
extern void inbox_begin(void);
extern void inbox_commit(Inbox *inbox);

/*
 * Lock out who decides about this subscription until the transaction ends.
 * False: somebody does just now.
 */
extern bool inbox_store_lock(Inbox *inbox);

/*
 * The same, and find out whether somebody has decided. False: not now, or inbox->reload is set: end the transaction. What it
 * took, the end of the transaction gives back.
 */
extern bool inbox_store_enter(Inbox *inbox);

/* The subscription, in the current context; NULL: there is none (any more). */
extern InboxSubscription *inbox_store_subscription(int id);

/* A decision, see inbox.request; kinds as in inbox_request_kinds. */
typedef enum InboxRequestKind
{
	INBOX_SEEK_EARLIEST = 0,
	INBOX_SEEK_LATEST,
	INBOX_SEEK_OFFSET,
	INBOX_SEEK_TIME,
	INBOX_RETRY,
	INBOX_SKIP
} InboxRequestKind;

extern const char *const inbox_request_kinds[];

typedef struct InboxRequest
{
	char	   *topic;
	int			number;
	InboxRequestKind kind;
	int64		offset;
	TimestampTz time;
	ItemPointerData tid;
	TransactionId xmin;
} InboxRequest;

/* Of this worker's partitions, in the current context. */
extern List *inbox_store_requests(Inbox *inbox);

/* False: it was decided otherwise meanwhile. */
extern bool inbox_store_remove_request(Inbox *inbox, const InboxRequest *request);

/* Rows of this worker's partitions, entered into inbox->partitions. */
extern void inbox_store_load_partitions(Inbox *inbox);

/* Insert a partition's row, or find out that there is one: false. */
extern bool inbox_store_insert_partition(Inbox *inbox, InboxPartition *partition);

/* Write a partition's row. */
extern void inbox_store_partition(Inbox *inbox, InboxPartition *partition);

/*
 * Rows that a transaction has written are not where they were noted if it is
 * rolled back.
 */
extern void inbox_store_forget_places(Inbox *inbox);

/* Keep inbox.worker_problem as inbox->problem has it. A transaction of its own. */
extern void inbox_store_problem(Inbox *inbox);

/*
 * Open one of the tables and lock it until the transaction ends. Whoever drops
 * the extension holds one of them and wants the others: a worker does not wait
 * for any, but raises an error.
 */
extern Relation inbox_store_open(const char *name, LOCKMODE mode);

/*
 * A scan by the first column of the primary key, which is an integer, and the
 * second one if that is one as well.
 */
extern SysScanDesc inbox_store_scan(Relation rel, int key, const int *second,
									Snapshot snapshot);

/* The OID of a relation of schema inbox. */
extern Oid	inbox_store_relation(const char *name);

/* ---- inbox_partitions.c ---- */

extern bool inbox_owns(const InboxSubscription *subscription, int worker,
					   const char *topic, int number);
extern InboxPartition *inbox_partition(Inbox *inbox, const char *topic, int number);
extern InboxPartition *inbox_add_partition(Inbox *inbox, const char *topic, int number);

/* Start reading what is to be read. */
extern void inbox_start_reading(Inbox *inbox, TimestampTz now);

/* Whether its messages may be handled now. */
extern bool inbox_partition_is_ready(const InboxPartition *partition, TimestampTz now);

/*
 * Take what Kafka has for a partition, up to so many items in hand. Handles
 * errors and ends of partitions.
 */
extern void inbox_take(Inbox *inbox, InboxPartition *partition, int max);

/* The first item in hand is done with. */
extern void inbox_drop_first(InboxPartition *partition);

/* All that was read is in the position as well. */
extern void inbox_reach_end(InboxPartition *partition);
extern void inbox_stop_reading(InboxPartition *partition);

/* Note why it does not go on; text is copied, or NULL. */
extern void inbox_set_state(Inbox *inbox, InboxPartition *partition,
							InboxPartitionState state, const char *text);

/* What tells a message from another at the same place. */
extern int64 inbox_fingerprint(const KafkaItem *item);

/* ---- inbox_discover.c ---- */

/* Look for topics and partitions. */
extern void inbox_discover(Inbox *inbox, TimestampTz now);

/* What keeps the whole, or a part of it, waiting. */
extern void inbox_add_problem(Inbox *inbox, const char *format,...) pg_attribute_printf(2, 3);

/* ---- inbox_request.c ---- */

/* Apply what was decided. False: Kafka did not answer, later. */
extern bool inbox_apply_requests(Inbox *inbox);

/* ---- inbox_batch.c ---- */

/*
 * Handle what can be handled now. True: there may be more at once.
 */
extern bool inbox_handle(Inbox *inbox, TimestampTz now);

/* Handler's error, for logs and tables. */
typedef struct InboxError
{
	char		sqlstate[6];
	char text[	KAFKA_ERROR_LENGTH];
	bool		counts;			/* as far as one can tell, it is the message's
								 * fault */
} InboxError;

/* ---- inbox_failure.c ---- */

/* After these the partition's row is to be written. */

/* The position moves past a message that was handled, or is not to be. */
extern void inbox_passed(Inbox *inbox, InboxPartition *partition, const KafkaItem *item);

/*
 * Handling a message has failed; attempted: that is counted already. It is
 * tried again later, or the partition is stopped; true: or it is to become a
 * dead letter and be passed.
 */
extern bool inbox_failed(Inbox *inbox, InboxPartition *partition, const KafkaItem *item,
						 const InboxError *error, bool attempted, TimestampTz now);

extern void inbox_describe_error(const ErrorData *data, InboxError *error);

/* ---- inbox_dead.c ---- */

/* Write a dead letter. In a transaction, inbox_message_prepare() was called. */
extern void inbox_bury(Inbox *inbox, InboxPartition *partition, const KafkaItem *item,
					   const InboxError *error, int attempts);

/* Try again those that are asked for. True: there may be more. */
extern bool inbox_retry_dead_letters(Inbox *inbox, TimestampTz now);

/* ---- inbox_dedupe.c: in a transaction ---- */

/* Whether its event id was handled before; else it is noted. */
extern bool inbox_is_duplicate(Inbox *inbox, const InboxPartition *partition,
							   const KafkaItem *item, const pg_uuid_t *event_id);

/* Windows may have changed. */
extern void inbox_dedupe_load(void);

/* When to do that next; 0: never. */
extern TimestampTz inbox_dedupe_due(const Inbox *inbox);

/* Between transactions: empty what is older than the window. */
extern void inbox_dedupe_rotate(Inbox *inbox, TimestampTz now);

/* ---- inbox_message.c ---- */

typedef struct InboxMessage
{
	Datum		datum;			/* inbox.message, an expanded record */
	pg_uuid_t	event_id;
	bool		has_event_id;
	char	   *correlation_id; /* or NULL */
} InboxMessage;

/* Once in a transaction, before the next: find the row type. */
extern void inbox_message_prepare(Oid *type);

/*
 * In the current context. Raises an error where a text has characters that this
 * database cannot have; plain: leaves the headers out.
 */
extern void inbox_message_build(const InboxPartition *partition, const KafkaItem *item,
								bool plain, InboxMessage *message);

/* The type's description, of the transaction. */
extern TupleDesc inbox_message_type(void);

#endif							/* OUTBOX_INBOX_INTERNAL_H */
