/*
 * pending.h
 *	  Messages that are committed and not known to be delivered.
 */
#ifndef OUTBOX_PENDING_H
#define OUTBOX_PENDING_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "catalog.h"

typedef struct PendingMessage
{
	int64		id;
	uint64		xid;
	int			segment;
	pg_uuid_t	event_id;
	char	   *topic;			/* palloc'd */
	int			bytes;			/* key and payload */
	TimestampTz created_at;
} PendingMessage;

/*
 * The one that the main cursor sends first, by the progress on disk; false if
 * there is none. Needs a transaction.
 */
extern bool pending_first(const OutboxCatalog *catalog, PendingMessage *message);

#endif							/* OUTBOX_PENDING_H */
