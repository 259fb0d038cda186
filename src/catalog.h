/*
 * catalog.h
 *	  The OIDs of the extension's own objects in the current database, cached
 *	  for the session.
 *
 * A schema named outbox that belongs to somebody else is never looked into:
 * names count only inside the schema that our extension owns.
 */
#ifndef OUTBOX_CATALOG_H
#define OUTBOX_CATALOG_H

#include "storage/lockdefs.h"

#include "outbox_kafka.h"

typedef enum CatalogExtensionState
{
	CATALOG_ABSENT = 0,			/* CREATE EXTENSION has not run here */
	CATALOG_UNKNOWN_VERSION,	/* its SQL is not OUTBOX_SQL_VERSION */
	CATALOG_READY
} CatalogExtensionState;

typedef struct OutboxCatalog
{
	Oid			extension;
	Oid			owner;			/* role that owns the extension */
	Oid			schema;
	Oid			message;		/* the partitioned table */
	Oid			leaf[OUTBOX_SEGMENTS];	/* message_N */
	Oid			leaf_id_index[OUTBOX_SEGMENTS]; /* (id) */
	Oid			leaf_xid_index[OUTBOX_SEGMENTS];	/* (xid, id) */
	Oid			leaf_event_index[OUTBOX_SEGMENTS];	/* (event_id) */
	Oid			sequence;		/* message_id */
	Oid			segment;
	Oid			relay_state;
	Oid			relay_position;
	Oid			relay_control;
	Oid			publish_grant;
	Oid			parked;			/* parked_message */
	Oid			held_lane;
	Oid			discarded;		/* discarded_message */
	Oid			discard_request;
	Oid			relay_transaction;
	Oid			relay_conflict;
	Oid			topic_limit;
} OutboxCatalog;

/*
 * The OIDs, all of them valid. Needs a transaction. When the extension is
 * absent or of another version: NULL if missing_ok, else an error that says
 * which. The result is good until the next time invalidations are accepted
 * (a lock on a table, a new command): copy what must outlive that, or ask
 * again, which costs nothing while nothing has changed.
 */
extern const OutboxCatalog *catalog_get(bool missing_ok);

/* A type in one of the extension's schemas; an error if it is gone. */
extern Oid	catalog_type(Oid schema, const char *name);

/*
 * Lock one of the tables, or raise an error if somebody else has it locked. A
 * relay must not wait for one while it holds another: who drops the extension
 * holds the one and wants the other, and would be told of a deadlock.
 */
extern void catalog_lock_now(const char *table, LOCKMODE mode);

#endif							/* OUTBOX_CATALOG_H */
