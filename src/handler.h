/*
 * handler.h
 *	  Running a user's function in a worker: never as the worker's own role,
 *	  and leaving nothing behind in the session. See handler.c.
 *
 * The order, for any number of calls in one transaction:
 *
 *		StartTransactionCommand();
 *		... what the worker itself writes: offset, state ...
 *		PG_TRY();
 *		{
 *			handler_begin(owner);
 *			function = handler_lookup(name, argument_type);
 *			handler_call(function, argument);			(once or more)
 *			handler_finish();
 *			CommitTransactionCommand();
 *		}
 *		PG_CATCH();
 *		{
 *			error = handler_caught(context);
 *			AbortCurrentTransaction();
 *		}
 *		PG_END_TRY();
 *		handler_end();
 *
 * Savepoints (BeginInternalSubTransaction) go around handler_call(), inside of
 * handler_begin() and handler_finish(); in their PG_CATCH, handler_caught()
 * comes first, too, and calling goes on afterwards.
 *
 * For side workers (side_worker.h) alone: they can be cancelled and ended while
 * the user's function runs, and not otherwise.
 */
#ifndef OUTBOX_HANDLER_H
#define OUTBOX_HANDLER_H

#include "fmgr.h"

/* A function that was looked up; lives in the context of that call. */
typedef struct HandlerFunction HandlerFunction;

/*
 * The role of that name runs what follows, until handler_end(). In a
 * transaction, outside of any subtransaction. An error if there is no such
 * role.
 */
extern void handler_begin(const char *owner);

/*
 * The function name(argument_type), as the owner sees it: an error if there is
 * none, or the owner may not execute it or use its schema. name is a qualified
 * name, quoted where SQL needs it. Allocates in the current context.
 */
extern HandlerFunction *handler_lookup(const char *name, Oid argument_type);

/*
 * Call it. The result is thrown away, settings that it changed are as before.
 * Raises its errors; one of them is outbox_kafka.handler_timeout running out.
 * The function's garbage is in the current context: the caller resets it.
 */
extern void handler_call(HandlerFunction *function, Datum argument);

/*
 * The last call was made: fire what is deferred and close what is open, as the
 * owner. From here on constraints of this transaction are immediate. What may
 * run at commit runs as the owner as well: there is nothing to call between
 * this and the commit.
 */
extern void handler_finish(void);

/*
 * First in PG_CATCH: no timeout or cancel request may hit what comes next. The
 * error, copied to context; the error state is flushed.
 */
extern ErrorData *handler_caught(MemoryContext context);

/*
 * After the transaction has ended, either way: be the worker's role again, and
 * let go of what a session would keep.
 */
extern void handler_end(void);

/*
 * The name under which to store a function, qualified and quoted, palloc'd: what
 * handler_lookup() takes. Errors, whose text names the argument what: function
 * does not take just an argument_type, or the current role may not execute it.
 */
extern char *handler_stored_name(Oid function, Oid argument_type, const char *what);

#endif							/* OUTBOX_HANDLER_H */
