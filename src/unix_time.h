/*
 * unix_time.h
 *	  Milliseconds since 1970, which is how Kafka tells times.
 */
#ifndef OUTBOX_UNIX_TIME_H
#define OUTBOX_UNIX_TIME_H

#include "datatype/timestamp.h"

#define UNIX_EPOCH_OFFSET_MS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000)

static inline int64
unix_ms(TimestampTz time)
{
	return time / 1000 + UNIX_EPOCH_OFFSET_MS;
}

/* Not each 64-bit number: Kafka holds any time that a producer makes up. */
static inline bool
unix_ms_is_timestamp(int64 ms)
{
	return ms >= 0 && ms < END_TIMESTAMP / 1000 + UNIX_EPOCH_OFFSET_MS;
}

static inline TimestampTz
timestamp_from_unix_ms(int64 ms)
{
	return (ms - UNIX_EPOCH_OFFSET_MS) * 1000;
}

#endif							/* OUTBOX_UNIX_TIME_H */
