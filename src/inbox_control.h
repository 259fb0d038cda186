/*
 * inbox_control.h
 *	  What the SQL functions about subscriptions share.
 */
#ifndef OUTBOX_INBOX_CONTROL_H
#define OUTBOX_INBOX_CONTROL_H

#include "utils/array.h"
#include "utils/timestamp.h"

#include "owner_session.h"

/*
 * Begin to decide about a subscription: be the extension's owner, keep its
 * workers from handling messages until the transaction ends, and have them look
 * what was decided then. An error if there is none of that name, or it is not
 * the current role's to decide. Returns its id. End with owner_end().
 */
extern int	inbox_control_begin(OwnerSession *session, const char *name);

/* The same for a statement of its own, whose values begin with the id. */
extern int64 inbox_control(const char *name, OwnerStatement *statement,
						   Datum *values, const char *nulls);

/*
 * A time that is given as text where "earliest" and "latest" can stand as well;
 * what names the argument in errors.
 */
extern TimestampTz inbox_control_time(const char *text, const char *what);

#endif							/* OUTBOX_INBOX_CONTROL_H */
