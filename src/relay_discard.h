/*
 * relay_discard.h
 *	  Messages that somebody gives up: see relay_discard.c.
 */
#ifndef OUTBOX_RELAY_DISCARD_H
#define OUTBOX_RELAY_DISCARD_H

#include "cursor.h"
#include "relay_held.h"

typedef struct RelayDiscard RelayDiscard;
typedef struct DiscardRequest DiscardRequest;

extern RelayDiscard *discard_create(MemoryContext context);

/*
 * Read again what was asked for. In a transaction; the table is locked. After
 * it, discard_begin() tells the held lanes.
 */
extern void discard_load(Relay *relay);
extern void discard_begin(Relay *relay);

/* The same for one that is held from now on. */
extern void discard_begin_lane(Relay *relay, RelayHeld *held);

/*
 * For a chunk of a lane with held->discards: take the locks that it needs,
 * without waiting. False: not to be had.
 */
extern bool discard_lock(const OutboxCatalog *catalog);

/* Who asked for a message to be given up, or NULL; note that it is. */
extern DiscardRequest *discard_request_for(const Relay *relay, const RelayHeld *held,
										   const CursorRow *row);
extern void discard_add(Relay *relay, DiscardRequest *request, const CursorRow *row);

/* The same for the main cursor; whether there can be any. */
extern bool discard_is_asked(const Relay *relay);
extern DiscardRequest *discard_request_for_main(const Relay *relay,
												const RelayTopic *topic,
												const CursorRow *row);

/*
 * The main cursor opens a batch. With the first one: what is visible in it may
 * have been sent by the relay before. Before it, all may.
 */
extern void discard_first_bound(Relay *relay, CursorBound *bound);

/*
 * From now on it is not known any more what became of messages that were handed
 * to a producer.
 */
extern void discard_doubt(Relay *relay);

/* Store those, in the transaction that read them. False: there were none. */
extern bool discard_store(Relay *relay);

/* The lane has read up to the main cursor's newest bound. */
extern void discard_came_to(Relay *relay, RelayHeld *held);

/* Remove requests that are done, and records of messages that are gone. */
extern void discard_work(Relay *relay, TimestampTz now);

/* When that has to be called again; 0: never. */
extern TimestampTz discard_due(const Relay *relay);

#endif							/* OUTBOX_RELAY_DISCARD_H */
