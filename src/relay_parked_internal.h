/*
 * relay_parked_internal.h
 *	  Parked messages, shared by relay_parked.c and relay_parked_send.c and
 *	  nobody else.
 */
#ifndef OUTBOX_RELAY_PARKED_INTERNAL_H
#define OUTBOX_RELAY_PARKED_INTERNAL_H

#include "utils/hsearch.h"

#include "relay_parked.h"

/* Sent together, while none of them is known to be refused. */
#define PARKED_BATCH 100

/* Between automatic tries of a refused message: doubled each time. */
#define PARKED_RETRY_MIN_S 60
#define PARKED_RETRY_MAX_S 3600

/* What of a message is kept, in the order of the statements that read it. */
#define PARKED_COLUMNS 9
extern const int parked_columns[PARKED_COLUMNS];

/* One that is in the producer's hands. */
typedef struct ParkedFlight
{
	int64		id;
	RelayTopic *topic;
	int			partition;
	uint32		bytes;
	bool		reported;
	KafkaErrorClass class;
	int			code;
} ParkedFlight;

struct ParkedMessages
{
	MemoryContext context;
	HTAB	   *blocked;		/* hashes of (topic, key) */
	TimestampTz due;			/* of the next try, 0: none */
	ParkedFlight flight[PARKED_BATCH];
	int			nflight;
	int			nreported;
	int			one_by_one;		/* so many more are sent alone */
	int64		chosen[PARKED_BATCH];	/* to send when the standby has them */
	int			nchosen;
	XLogRecPtr	chosen_end;		/* covers their commits */
	uint64		round;			/* in the tags, so that old reports count for
								 * nothing */
};

/* An array of ids, as a parameter of a statement. */
extern Datum parked_ids(const int64 *ids, int count);

/* A statement on outbox.parked_message, inside SPI; an error if it fails. */
extern void parked_execute(const char *sql, int nargs, Oid *types, Datum *values,
						   const char *nulls, bool read_only, int expected);

/* When the next one is due, from the table. Inside SPI. */
extern void parked_load_due(ParkedMessages *parked);

#endif							/* OUTBOX_RELAY_PARKED_INTERNAL_H */
