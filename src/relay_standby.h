/*
 * relay_standby.h
 *	  Waiting for the synchronous standby (outbox_kafka.wait_for_standby).
 */
#ifndef OUTBOX_RELAY_STANDBY_H
#define OUTBOX_RELAY_STANDBY_H

#include "relay_internal.h"

/*
 * Whether what is before position may be sent: the standby has flushed it, or
 * need not. It must be flushed locally.
 */
extern bool relay_standby_has(Relay *relay, XLogRecPtr position);

/*
 * It has not: milliseconds to let pass before asking again. When it takes
 * long, that is said in the log and in the status.
 */
extern int	relay_standby_pause(Relay *relay, XLogRecPtr position,
								TimestampTz now);

/* Whether it takes so long that it is the relay's state. */
extern bool relay_standby_is_late(const Relay *relay);

#endif							/* OUTBOX_RELAY_STANDBY_H */
