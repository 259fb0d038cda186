/*
 * uuid7.h
 *	  UUIDs of version 7 (RFC 9562): sortable by time, else random.
 */
#ifndef OUTBOX_UUID7_H
#define OUTBOX_UUID7_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* Fill uuid for that moment. An error only when there is no randomness. */
extern void uuid7_generate(TimestampTz at, pg_uuid_t *uuid);

#endif							/* OUTBOX_UUID7_H */
