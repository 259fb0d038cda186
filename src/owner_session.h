/*
 * owner_session.h
 *	  Statements of SQL functions that run as the extension's owner.
 *
 * The tables are the owner's alone. Functions that anybody may call look at who
 * calls first, then run their statement as the owner, with a search_path that
 * nobody can put anything into.
 */
#ifndef OUTBOX_OWNER_SESSION_H
#define OUTBOX_OWNER_SESSION_H

#include "executor/spi.h"

/* A statement that is prepared once a session. */
typedef struct OwnerStatement
{
	const char *text;
	int			nargs;
	const Oid  *types;
	SPIPlanPtr	plan;			/* NULL: not yet */
} OwnerStatement;

/* Who was there before; the rest is undone with the (sub)transaction. */
typedef struct OwnerSession
{
	Oid			role;
	int			security_context;
	int			guc_nest_level;
} OwnerSession;

/* Be the extension's owner, connected to SPI. Errors undo it by themselves. */
extern void owner_begin(OwnerSession *session);
extern void owner_end(const OwnerSession *session);

/* In between; nulls as SPI has it. Results are SPI_tuptable, SPI_processed. */
extern void owner_execute(OwnerStatement *statement, Datum *values, const char *nulls);

#endif							/* OUTBOX_OWNER_SESSION_H */
