/*
 * due.h
 *	  Times at which something is due; 0 is never.
 */
#ifndef OUTBOX_DUE_H
#define OUTBOX_DUE_H

#include "datatype/timestamp.h"

static inline TimestampTz
due_sooner(TimestampTz a, TimestampTz b)
{
	if (a == 0 || b == 0)
		return Max(a, b);
	return Min(a, b);
}

#endif							/* OUTBOX_DUE_H */
