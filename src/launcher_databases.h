/*
 * launcher_databases.h
 *	  What the launcher knows of the server's databases. For launcher.c only.
 */
#ifndef OUTBOX_LAUNCHER_DATABASES_H
#define OUTBOX_LAUNCHER_DATABASES_H

#include "utils/hsearch.h"

/* What is known of a database. */
typedef enum DatabaseKnowledge
{
	DB_UNKNOWN,					/* to be looked at */
	DB_HAS_SLOT,				/* a slot stands for it */
	DB_ABSENT,					/* has no extension */
	DB_REFUSED					/* has it, but there is no slot left */
} DatabaseKnowledge;

typedef struct Database
{
	Oid			dboid;			/* hash key */
	DatabaseKnowledge knowledge;
	bool		listed;			/* may have a relay, says pg_database */
	bool		look_again;		/* told to, while a relay was looking */
	bool		refusal_logged;
	NameData	name;
} Database;

/* All of them, keyed by OID. */
extern HTAB *launcher_databases;

extern void launcher_databases_init(void);

/* The entry of a database, made if there is none. */
extern Database *launcher_database(Oid dboid);

/*
 * Read pg_database into the hash table. False if somebody holds a lock on it:
 * a launcher that waits answers nobody.
 */
extern bool launcher_scan_databases(void);

#endif							/* OUTBOX_LAUNCHER_DATABASES_H */
