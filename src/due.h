/*
 * due.h
 *	  Times at which something is due; 0 is never.
 */
#ifndef OUTBOX_DUE_H
#define OUTBOX_DUE_H

#include "utils/timestamp.h"

static inline TimestampTz
due_sooner(TimestampTz a, TimestampTz b)
{
	if (a == 0 || b == 0)
		return Max(a, b);
	return Min(a, b);
}

/* Milliseconds from now until then, limit at most. */
static inline long
due_within(TimestampTz now, TimestampTz then, long limit)
{
	return then == 0 ? limit : Min(limit, TimestampDifferenceMilliseconds(now, then));
}

#endif							/* OUTBOX_DUE_H */
