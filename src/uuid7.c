/*
 * uuid7.c
 *	  UUIDs of version 7 (RFC 9562).
 *
 * 48 bits of Unix milliseconds, then, as the RFC's method 3 has it, 12 bits of
 * the fraction of the millisecond, so that ids made by one server sort almost
 * by time and the index on them grows at its right edge; then 62 random bits.
 *
 * Strong random bytes cost more by the call than by the byte: they are drawn
 * for several ids at once. The postmaster never makes an id, so no two
 * processes inherit the same bytes.
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "utils/timestamp.h"

#include "uuid7.h"

#define RANDOM_BYTES 8			/* of each id */
#define RANDOM_IDS 32			/* drawn at a time */

void
uuid7_generate(TimestampTz at, pg_uuid_t *uuid)
{
	static unsigned char pool[RANDOM_BYTES * RANDOM_IDS];
	static int	left = 0;
	int64		unix_us;
	uint64		milliseconds;
	uint64		fraction;
	uint64		high;

	if (left == 0)
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values for an event id")));
		left = RANDOM_IDS;
	}

	unix_us = at + (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	milliseconds = (uint64) (unix_us / 1000);
	fraction = (uint64) (unix_us % 1000) * 4096 / 1000;
	high = pg_hton64((milliseconds << 16) | (UINT64CONST(7) << 12) | fraction);

	left--;
	memcpy(uuid->data, &high, sizeof(high));
	memcpy(uuid->data + sizeof(high), pool + left * RANDOM_BYTES, RANDOM_BYTES);
	uuid->data[8] = (uuid->data[8] & 0x3f) | 0x80;
}
