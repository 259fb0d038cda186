/*
 * message_id.h
 *	  The one place where a message gets its xid and its id.
 */
#ifndef OUTBOX_MESSAGE_ID_H
#define OUTBOX_MESSAGE_ID_H

#include "access/transam.h"

/*
 * Draw the id of a message and tell the full top-level transaction id it
 * belongs to, which is assigned first if there is none yet.
 */
extern int64 message_next_id(Oid sequence, FullTransactionId *xid);

#endif							/* OUTBOX_MESSAGE_ID_H */
