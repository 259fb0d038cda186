/*
 * relay_internal.h
 *	  The relay's own state, shared by the files relay*.c and nobody else.
 *
 *	relay.c				the main loop: life, settings, when to sleep
 *	relay_attach.c		its slot, signals, connection
 *	relay_session.c		transactions, waiting
 *	relay_start.c		what is read before anything is sent
 *	relay_read.c		reading messages and handing them to the producer
 *	relay_pace.c		how often to look for messages
 *	relay_held.c		lanes with cursors of their own, as they are
 *	relay_held_leftover.c	what the producer still had of them
 *	relay_held_progress.c	as they stand on disk
 *	relay_catchup.c		when lanes are held, and how they come back
 *	relay_producer.c	making, serving, losing and dropping the producer
 *	relay_limits.c		how large a batch may be
 *	relay_isolation.c	the second producer, for what may be refused
 *	relay_parked.c		messages set aside
 *	relay_parked_send.c	those that are tried again
 *	relay_discard.c		messages that somebody gives up
 *	relay_progress.c	storing progress, reporting to shared memory
 *	relay_standby.c		waiting for the synchronous standby
 *	relay_transaction.c	exactly once: the Kafka transactions
 *	relay_transaction_define.c	what positions in Kafka mean
 *	relay_transaction_open.c	what Kafka knows when a producer starts
 *	relay_transaction_hold.c	lanes to be held when one has ended
 *	relay_backlog.c		measuring what is on disk
 *	relay_side.c		declaring which side workers the database needs
 */
#ifndef OUTBOX_RELAY_INTERNAL_H
#define OUTBOX_RELAY_INTERNAL_H

#include "access/xlogdefs.h"
#include "storage/latch.h"

#include "nodes/pg_list.h"

#include "identity.h"
#include "kafka.h"
#include "progress.h"
#include "relay_topic.h"
#include "segment_ring.h"
#include "shmem.h"
#include "window.h"

/* The main cursor's row in outbox.relay_state. */
#define MAIN_CURSOR 0

/* What reading came to. */
typedef enum ReadResult
{
	READ_MORE,					/* a chunk's worth was sent; there may be more */
	READ_ALL,					/* nothing is left */
	READ_BLOCKED				/* no room, or something has to happen first */
} ReadResult;

/* How fast others commit, and whether processors are scarce. */
typedef struct RelayPace
{
	TimestampTz measured_at;
	uint64		commits;		/* slot->commits then */
	int			commits_per_second;
	uint64		waited_ns;		/* for a processor, in all */
	uint64		times;			/* that it had to; 0: not measured yet */
	int			crowded;		/* so many more measurements; 0: not */
} RelayPace;

typedef struct Relay
{
	RelaySlot  *slot;
	MemoryContext context;		/* lives as long as the relay */
	MemoryContext loop_context; /* reset each time round */
	MemoryContext row_context;	/* reset for each row */
	SegmentRing *ring;
	TimestampTz ring_due;		/* 0: when something was published */

	char	   *database;		/* its name */
	char		identity[IDENTITY_LENGTH];
	Oid			extension;		/* that the relay started with */
	bool		superseded;		/* the extension was dropped, perhaps remade */

	/* the producer, or NULL */
	KafkaProducer *producer;
	TimestampTz producer_since;
	char	   *producer_settings;	/* that it was made with */
	RelayTopics *topics;
	bool		bulk;			/* it makes full batches, see relay_producer.c */
	bool		bulk_wanted;
	int			full_chunks;	/* in a row, since the last end was found */

	/* noted by the producer's event handlers, which cannot report */
	KafkaErrorClass refusal;	/* of the first message refused */
	int			refusal_code;
	RelayTopic *refused_topic;
	int			refused_partition;
	char		refusal_text[SLOT_ERROR_LENGTH];
	char		lost_text[KAFKA_ERROR_LENGTH];	/* why a transaction failed */
	bool		event_pending;
	char		event_text[KAFKA_ERROR_LENGTH];
	bool		log_pending;
	char		log_text[KAFKA_ERROR_LENGTH];
	TimestampTz logged_at;

	/* the second producer, for what may be refused; see relay_isolation.c */
	struct RelayIsolation *isolation;
	int			isolation_fd;	/* its descriptor, or -1 */

	/* Kafka transactions, see relay_transaction.c */
	bool		exact;			/* there are some: exactly once */
	bool		define;			/* store the main cursor's batch in any case */
	struct RelayTransactions *transactions;
	bool		conflict;		/* nothing is sent before outbox.claim() */
	/* how large batches may be, see relay_limits.c */
	struct RelayLimits *limits;

	/* what the main loop waits for */
	WaitEventSet *wait_all;		/* latch and producers */
	WaitEventSet *wait_latch;	/* latch only */

	/* messages in flight */
	Window	   *window;
	XLogRecPtr	batch_end;		/* covers its commits, see durability.h */
	uint64		seen_commits;	/* slot->commits before the last bound */
	TimestampTz look_at;		/* look for messages then, told or not */
	uint64		quiet_next_xid; /* the next xid while nobody but us wrote
								 * since the last bound; 0: somebody may have */

	/* a topic that has to be resolved before reading goes on */
	RelayTopic *unresolved;
	TimestampTz unresolved_since;
	bool		was_connected;

	/*
	 * a partition whose first message, or fill of its limit, has to be
	 * acknowledged before others are sent
	 */
	RelayTopic *unproven;
	int			unproven_partition;

	/* waiting for the synchronous standby, see relay_standby.h */
	XLogRecPtr	standby_awaited;	/* what reading waits for, or invalid */
	TimestampTz standby_since;	/* 0: nothing is waited for */
	bool		standby_late;	/* long enough to be the relay's state */
	TimestampTz standby_told_at;
	char		standby_text[256];

	/* failures: sending is tried again at retry_at */
	bool		failed;
	bool		reset_needed;	/* the producer failed; drop it when drained */
	TimestampTz reset_by;		/* at the latest then */
	int			failures;		/* in a row */
	uint64		failed_tag;		/* delivering this one ends the row */
	TimestampTz retry_at;		/* 0: nothing is waited for */
	char		last_failure[SLOT_ERROR_LENGTH];

	/* lanes with cursors of their own, see relay_held.h */
	List	   *held;			/* of RelayHeld */
	TimestampTz lanes_due;		/* look for silent ones then */
	int			speculative;	/* held without evidence, in a row */
	TimestampTz speculated_at;
	uint64		held_delivered; /* acknowledged to their cursors */

	/* messages set aside, see relay_parked.h */
	struct ParkedMessages *parked;
	RelayTopic *parked_unresolved;	/* topic of one, to be resolved */
	bool		parked_some;	/* in the transaction under way */
	uint64		passed_count;	/* delivered to the main window, but not to
								 * Kafka: parked, or left to a held lane */

	/* messages to give up, see relay_discard.h */
	struct RelayDiscard *discard;

	/* side workers, see relay_side.c */
	uint32		side_seen;		/* control_generation when declared last */
	bool		side_known;
	TimestampTz side_due;		/* try again then; 0: not needed */
	int			side_refused;	/* that found no slot */

	/* pause() */
	bool		paused;
	uint32		control_seen;
	bool		control_known;

	/* progress on disk */
	ProgressPlace place;
	uint64		stored_delivered;	/* window_delivered() when stored last */
	CursorBound *stored_done;
	CursorBound *stored_batch;	/* or NULL */
	TimestampTz stored_at;
	uint64		flushed_delivered;	/* of what is certainly on disk */
	uint64		flushing_delivered; /* of the last asynchronous write */
	XLogRecPtr	flushing_lsn;	/* where that one ends */

	/* reports */
	uint64		reported_published;
	uint64		repeated;
	TimestampTz last_ack_at;	/* this round of serving reports began then */
	TimestampTz acknowledged_at;	/* any lane, last */
	TimestampTz topics_reported_at;
	bool		caught_up;		/* the last reading found the end */

	/* size of the messages on disk, see relay_backlog.c */
	TimestampTz backlog_at;		/* when it was measured; 0: not yet */
	TimestampTz backlog_due;	/* of the next look, 0: none is needed */
	bool		backlog_tight;	/* half of the limit is taken */

	RelayPace	pace;
	TimestampTz read_at;		/* when reading began last */
} Relay;

/* relay_attach.c */

/*
 * The prologue, see worker_begin(). Does not return where the relay has
 * nothing to do or no place.
 */
extern RelaySlot *relay_attach(Datum main_arg);

/* relay_session.c */

/*
 * A transaction of its own, with a snapshot. Between transactions the current
 * memory context is loop_context.
 */
extern void relay_begin(Relay *relay);
extern void relay_commit(Relay *relay);

/*
 * The extension's objects; NULL if they are gone or others than the relay
 * started with, which then ends without writing anything. In a transaction.
 */
extern const OutboxCatalog *relay_catalog(Relay *relay);

/*
 * The cursor takes the sequence's last value for the highest id drawn, and
 * higher ids for later ones: an error if ALTER SEQUENCE made that untrue.
 */
extern void relay_check_sequence(const OutboxCatalog *catalog);

/* The producer was made or dropped: wait for its descriptor, or no more. */
extern void relay_set_wait_events(Relay *relay);

/* Wait for the latch and, if reports is set, for the producer. */
extern void relay_wait(Relay *relay, bool reports, long timeout_ms);

/* relay_start.c */

/*
 * Read what the last relay left, and make the window from it. Errors end the
 * process: another one tries again later.
 */
extern void relay_start(Relay *relay);

/* Read pauses and parked keys again if somebody changed them. */
extern void relay_read_control(Relay *relay);

/* relay_pace.c */
extern void relay_pace_measure(Relay *relay, TimestampTz now);

/* Milliseconds to let pass between two looks; 0: look at every commit. */
extern int	relay_pace(const Relay *relay);

/* relay_resolve.c */

/* Make the topic known that stopped the reading. False: not yet. */
extern bool relay_resolve(Relay *relay);

/*
 * After that, and in its transaction: see which other topics the next rows of
 * the scan are for, at most so many. Nothing counts as read.
 */
extern void relay_look_ahead(Relay *relay, CursorScan *scan, int rows);

/* relay_read.c */
extern ReadResult relay_read(Relay *relay);
extern bool relay_has_room(const Relay *relay);

/*
 * The same for the cursor of a held lane, up to the main cursor's newest
 * bound; READ_ALL: it stands there.
 */
extern ReadResult relay_read_held(Relay *relay, struct RelayHeld *held);

/* Messages in flight by all cursors whose lanes answer, and what is parked. */
extern int	relay_in_flight(const Relay *relay);
extern bool relay_has_room_for_bytes(const Relay *relay);

/* relay_producer.c */

/* Make a producer if there is none and the settings allow one. */
extern void relay_producer_open(Relay *relay);

/*
 * Whether reading has to wait until what is in flight is acknowledged and the
 * other kind of producer takes over.
 */
extern bool relay_producer_is_changing(const Relay *relay);

/*
 * Whether a batch of which nothing was sent, read up to position, is a backlog
 * that another kind of producer should send; then that one is on its way, and
 * reading has to wait for it.
 */
extern bool relay_producer_expects_bulk(Relay *relay, const CursorBound *batch,
										int64 position);

/* Take what the producer has to say: acknowledgements, errors, log lines. */
extern void relay_producer_serve(Relay *relay);

/*
 * Its transaction has failed: drop it when it has reported what it still has to,
 * with this reason if no better one is among that.
 */
extern void relay_producer_lose(Relay *relay, const char *text, TimestampTz now);

/* Drop it; what is not acknowledged will be read again. */
extern void relay_producer_close(Relay *relay);

/*
 * Start a producer with the present settings, if this database may send at
 * all; NULL: reason, palloc'd, says why not. number: TRANSACTION_MAIN or
 * TRANSACTION_SECOND. It is ended by relay_producer_end(), or with the process.
 */
extern KafkaProducer *relay_producer_start(Relay *relay, int number, bool bulk,
										   char **reason);
extern void relay_producer_end(KafkaProducer *producer);

/* Its log lines and events that are no report, for any producer. */
extern void relay_producer_log(void *arg, int syslog_level, const char *text);
extern void relay_producer_event(void *arg, const KafkaError *error);

/* The settings changed: whether the producer has to be made anew. */
extern bool relay_producer_is_outdated(const Relay *relay);

/*
 * Sending cannot go on: record why, and try again later. topic: whose fault it
 * is, or NULL. text names topic and message, never a payload.
 */
extern void relay_fail(Relay *relay, RelayTopic *topic, const char *text);

/* relay_backlog.c */

/* Measure what is on disk, if that is due. */
extern void relay_backlog(Relay *relay, TimestampTz now);

/* relay_side.c */

/*
 * Declare the side workers the database needs, if somebody changed what that
 * depends on.
 */
extern void relay_side_declare(Relay *relay, TimestampTz now);

/* relay_progress.c */
extern void relay_progress_start(Relay *relay);

/* Whether no more may be sent before progress is on disk. */
extern bool relay_progress_must_flush(Relay *relay);

/* Whether progress is to be stored now; else when (0: nothing to store). */
extern bool relay_progress_is_due(Relay *relay, TimestampTz now, TimestampTz *due);

/* Store it. False: a lock was not to be had, try again soon. */
extern bool relay_progress_store(Relay *relay, TimestampTz now);

/*
 * The same in two parts: in the caller's transaction, flushed to disk at its
 * commit; and after it. False from the first: a lock was not to be had.
 */
extern bool relay_progress_write(Relay *relay, const OutboxCatalog *catalog,
								 bool flush);
extern void relay_progress_written(Relay *relay, TimestampTz now, bool flushed);
extern void relay_report(Relay *relay, RelayState state, TimestampTz now);

#endif							/* OUTBOX_RELAY_INTERNAL_H */
