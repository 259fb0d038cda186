/*
 * launcher_databases.c
 *	  What the launcher knows of the server's databases.
 *
 * A hash table in the launcher's own memory. pg_database is a shared catalog:
 * it can be read without being connected to a database.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "launcher_databases.h"
#include "shmem.h"

HTAB	   *launcher_databases = NULL;

void
launcher_databases_init(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Database);
	launcher_databases = hash_create("outbox_kafka databases", 64, &ctl,
									 HASH_ELEM | HASH_BLOBS);
}

Database *
launcher_database(Oid dboid)
{
	bool		found;
	Database   *db = hash_search(launcher_databases, &dboid, HASH_ENTER, &found);

	if (!found)
	{
		db->knowledge = shmem_find_slot(dboid) != NULL ? DB_HAS_SLOT : DB_UNKNOWN;
		db->listed = false;
		db->look_again = false;
		db->refusal_logged = false;
		memset(&db->name, 0, sizeof(db->name));
	}
	return db;
}

bool
launcher_scan_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	HASH_SEQ_STATUS seq;
	Database   *db;
	MemoryContext oldcontext = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!ConditionalLockRelationOid(DatabaseRelationId, AccessShareLock))
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(oldcontext);
		return false;
	}
	PushActiveSnapshot(GetTransactionSnapshot());

	hash_seq_init(&seq, launcher_databases);
	while ((db = hash_seq_search(&seq)) != NULL)
		db->listed = false;

	rel = table_open(DatabaseRelationId, NoLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (!form->datallowconn || form->datistemplate ||
			form->datconnlimit == DATCONNLIMIT_INVALID_DB)
			continue;
		db = launcher_database(form->oid);
		db->listed = true;
		namestrcpy(&db->name, NameStr(form->datname));
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);

	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcontext);
	pgstat_report_stat(false);
	return true;
}
