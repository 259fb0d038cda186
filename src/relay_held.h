/*
 * relay_held.h
 *	  Held lanes, as the relay uses them: see relay_held.c.
 */
#ifndef OUTBOX_RELAY_HELD_H
#define OUTBOX_RELAY_HELD_H

#include "held.h"
#include "relay_internal.h"

typedef enum RelayHeldState
{
	RELAY_HELD_WAITING,			/* for reports, for a decision, or for a time */
	RELAY_HELD_SENDING			/* its cursor catches up with the main one */
} RelayHeldState;

/* One of the lane's messages that was in flight when the lane was held. */
typedef struct RelayLeftover
{
	uint64		tag;
	int64		id;
	uint32		bytes;
	int			partition;
	bool		reported;
	bool		acknowledged;
} RelayLeftover;

typedef struct RelayHeld
{
	HeldLane	lane;
	RelayTopic *topic;			/* with the main producer */
	RelayTopic *sends_as;		/* with the one that it sends by */
	RelayHeldState state;
	bool		paused;			/* outbox.pause(topic) */
	bool		isolated;		/* sends by the second producer */
	bool		define;			/* store its batch in any case */
	bool		tentative;		/* see relay_transaction.c */
	int			limit;			/* if so, so many may be in flight */
	int			taken;			/* acknowledged since that was set */
	int			suspects;		/* of so many one was refused */
	TimestampTz refused_at;		/* if so, when something was refused last */
	int64		park_id;		/* refused alone: park it when it is read */
	char		park_error[KAFKA_ERROR_LENGTH];
	int64		dated_now_id;	/* refused for its time: send it with now's */
	bool		announced;		/* the log knows of it */
	bool		changed;		/* lane has news that are not on disk */
	TimestampTz updated_at;		/* when they were stored last */

	/* its cursor */
	Window	   *window;
	XLogRecPtr	batch_end;		/* covers its commits, see durability.h */
	XLogRecPtr	standby_awaited;	/* what it waits for, or invalid */
	ProgressPlace place;
	uint64		stored_delivered;
	CursorBound *stored_done;
	CursorBound *stored_batch;	/* or NULL */
	TimestampTz stored_at;

	/* what the producer still has from before, in the order of tags */
	RelayLeftover *leftovers;
	int			nleftovers;
	int			unreported;		/* of them, that are waited for */
	int64	   *arrived;		/* ids of those acknowledged, when it sends;
								 * sorted */
	int			narrived;

	/* messages to give up, see relay_discard.c */
	bool		discards;		/* there may be some that it has not read */
	bool		discarding;		/* it reads on for them, sendable or not */
	CursorBound *discards_after;	/* they are in some batch after this one */
	TimestampTz discard_at;		/* read for them then; 0: now */

	/* tries */
	int			failures;
	TimestampTz next_try_at;
	bool		proven;			/* this producer has had an acknowledgement */
	TimestampTz merging_since;	/* the main cursor waits for it; or 0 */
	TimestampTz merge_retry_at;
} RelayHeld;

/* Of a cursor; held NULL: the main one. */
static inline Window *
relay_window_of(const Relay *relay, const RelayHeld *held)
{
	return held ? held->window : relay->window;
}

/* What a report refused. */
typedef struct RelayRefusal
{
	RelayTopic *topic;			/* NULL: nothing */
	int			partition;
	int64		id;
} RelayRefusal;

/* Messages of held lanes have this bit in their tags, and the cursor's id. */
#define HELD_TAG UINT64CONST(0x2000000000000000)
#define HELD_TAG_SHIFT 40

extern uint64 relay_held_tag(const RelayHeld *held);

/* Read what is held, at the start. In a transaction. */
extern void relay_held_load(Relay *relay, const OutboxCatalog *catalog);

/* That of a partition, or of the whole topic, itself; or NULL. */
extern RelayHeld *relay_held_find(const RelayTopic *topic, int partition);

/* topic "a", or topic "a" partition 3; palloc'd. */
extern char *relay_held_name(const RelayHeld *held);

/* Forget one that is not on disk any more. */
extern void relay_held_remove(Relay *relay, RelayHeld *held);

/* The one that a message of the topic belongs to, or NULL. */
extern RelayHeld *relay_held_of(const RelayTopic *topic, TupleTableSlot *slot);

/*
 * Hold a lane, or the whole topic, from where the main cursor stands. Runs a
 * transaction. False: not now, a table is locked, or too many are held.
 */
extern bool relay_hold(Relay *relay, RelayTopic *topic, int partition,
					   HeldReason reason, const char *error, TimestampTz now);

/*
 * From now on one sends by the second producer. Nothing of it may be in flight
 * by the first.
 */
extern void relay_held_isolate(RelayHeld *held, HeldReason reason, TimestampTz now);

/* It was refused as a whole: it is tried again after a pause. */
extern void relay_held_failed(RelayHeld *held, TimestampTz now);

/* The topics that outbox.pause(topic) names, a list of char *. */
extern void relay_held_pause(Relay *relay, List *topics, TimestampTz now);

/* Somebody asked for it: try all of them now. */
extern void relay_held_try_now(Relay *relay);

/* A report. False: it is none of a held lane's. Raises no error. */
extern bool relay_held_report(Relay *relay, const KafkaDelivery *delivery,
							  RelayRefusal *refusal);

/* In flight by cursors of lanes that answer, with the main producer. */
extern int	relay_held_in_flight(const Relay *relay);

/*
 * The broker refused a message of an isolated lane; all reports have come.
 */
extern void relay_held_refused(Relay *relay, const RelayRefusal *refusal,
							   KafkaErrorClass class, int code, TimestampTz now);
extern uint64 relay_held_bytes(const Relay *relay);

/* Messages that wait in all of them, and since when one of them is held. */
extern uint64 relay_held_waiting(const Relay *relay);
extern TimestampTz relay_held_since(const Relay *relay);

/* The one producer or the other is gone, and all that it had. */
extern void relay_held_forget_producer(Relay *relay, bool isolation);

/* ---- relay_held_leftover.c ---- */

/*
 * Remember what is in flight of a new lane, or was acknowledged behind the point
 * where its cursor starts; for the main window it is done with.
 */
extern void relay_held_take_leftovers(Relay *relay, RelayHeld *held);

/* The one with this tag, or NULL. */
extern RelayLeftover *relay_held_leftover(const RelayHeld *held, uint64 tag);

/*
 * Its cursor is about to send: what has not been reported by now is taken for
 * not delivered.
 */
extern void relay_held_settle_leftovers(Relay *relay, RelayHeld *held);

/* Whether a message was acknowledged though the cursor comes to it only now. */
extern bool relay_held_was_delivered(const RelayHeld *held, int64 id);

/* ---- relay_held_progress.c ---- */

/* What its window says is on disk. */
extern void relay_held_note_stored(RelayHeld *held);

/*
 * When their progress should be stored, 0: there is none to store; at_once:
 * somebody waits for it. Write it.
 */
extern TimestampTz relay_held_progress_due(const Relay *relay, bool at_once);
extern bool relay_held_progress_write(Relay *relay, const OutboxCatalog *catalog,
									  TimestampTz now);

/* Everything that the bound covers is delivered, by all cursors. */
extern const CursorBound *relay_held_oldest(const Relay *relay,
											const CursorBound *done);

#endif							/* OUTBOX_RELAY_HELD_H */
