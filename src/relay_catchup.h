/*
 * relay_catchup.h
 *	  When lanes are held, when they are tried, how they come back.
 */
#ifndef OUTBOX_RELAY_CATCHUP_H
#define OUTBOX_RELAY_CATCHUP_H

#include "relay_held.h"

/* Hold what has not answered for long while others have. Between transactions. */
extern void catchup_check_lanes(Relay *relay, TimestampTz now);

/*
 * Try what is waiting, send what catches up, end what has caught up. Returns
 * true when there is more to do at once.
 */
extern bool catchup_work(Relay *relay, TimestampTz now);

/* When that has to be called again, other than after reports; 0: never. */
extern TimestampTz catchup_due(const Relay *relay, TimestampTz now);

/*
 * Whether the main cursor should not open a new batch just now, because a lane
 * has all but caught up with it.
 */
extern bool catchup_merges(const Relay *relay, TimestampTz now);

#endif							/* OUTBOX_RELAY_CATCHUP_H */
