/*
 * handled_message.h
 *	  Which message this process is handling, so that what a handler publishes
 *	  says by itself what it answers: outbox.publish() and INSERT take the
 *	  correlation id from here where none is given, and add the header
 *	  causation-id.
 */
#ifndef OUTBOX_HANDLED_MESSAGE_H
#define OUTBOX_HANDLED_MESSAGE_H

#include "utils/jsonb.h"
#include "utils/uuid.h"

/*
 * subscription is its name; who answers an expectation is told by it. The
 * others may be NULL: not known. All are copied; memory of the session is
 * reused from one to the next. Without a correlation id the event id, as text,
 * stands for it. correlation_id is in the server's encoding. Around
 * handler_call(), and handled_message_clear() after it, also in PG_CATCH.
 */
extern void handled_message_set(const char *subscription, const pg_uuid_t *event_id,
								const char *correlation_id);
extern void handled_message_clear(void);

/* Of which subscription a message is being handled; NULL: none is. */
extern const char *handled_message_subscription(void);

/* ---- for who stores a message ---- */

/* Its default, or NULL. Not the caller's memory. */
extern const char *handled_message_correlation_id(void);

/*
 * headers (or NULL) with causation-id, unless they have one or no message is
 * being handled: then headers. A new object is in the current context.
 */
extern Jsonb *handled_message_headers(Jsonb *headers);

#endif							/* OUTBOX_HANDLED_MESSAGE_H */
