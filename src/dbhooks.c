/*
 * dbhooks.c
 *	  Commands that concern relays without knowing it.
 *
 * Commands on extensions and settings only leave marks for the end of the
 * transaction (wakeup.h). They are seen through object_access_hook, so it does
 * not matter how a command is spelled or what it is nested in.
 *
 * DROP DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, and CREATE DATABASE
 * with this database as template need the database to be without connections.
 * For those its workers are kept away from the moment the command may go on until
 * the transaction ends:
 *
 *	- DROP DATABASE calls object_access_hook at the right moment: after the
 *	  ownership check, under the lock that keeps new connections out, before
 *	  it counts connections.
 *	- The others have no such place. The utility hook looks the database up,
 *	  makes the ownership check itself (nobody who would be refused may stop a
 *	  worker), takes the lock that the command is about to take, and looks
 *	  again whether the name still means the same database.
 *
 * COMMIT PREPARED makes visible what another session marked, so everything the
 * prepared transaction may have done to this database's relay is looked at.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/value.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "dbhooks.h"
#include "outbox_kafka.h"
#include "shmem.h"
#include "wakeup.h"

/* As long as the server itself waits for other connections to end. */
#define SUSPEND_TIMEOUT_MS 5000

static object_access_hook_type prev_object_access_hook = NULL;
static ProcessUtility_hook_type prev_ProcessUtility_hook = NULL;

/*
 * Whether that is our extension. Asked in the middle of commands, when the
 * row may be too new for any other snapshot.
 */
static bool
is_our_extension(Oid extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		ours = false;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_extension form = (Form_pg_extension) GETSTRUCT(tuple);

		ours = strcmp(NameStr(form->extname), OUTBOX_EXTENSION) == 0;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return ours;
}

static void
extension_accessed(ObjectAccessType access, Oid extension)
{
	if (access != OAT_POST_CREATE && access != OAT_POST_ALTER && access != OAT_DROP)
		return;
	if (!is_our_extension(extension))
		return;

	if (access == OAT_POST_CREATE)
		wakeup_mark_start(MyDatabaseId);
	else
	{
		/* After ALTER EXTENSION UPDATE, too, the relay has to look again. */
		wakeup_mark_stop(MyDatabaseId);
	}
}

static void
database_accessed(ObjectAccessType access, Oid dboid)
{
	switch (access)
	{
		case OAT_POST_CREATE:
		case OAT_POST_ALTER:
			wakeup_mark_start(dboid);
			break;
		case OAT_DROP:

			/*
			 * If the relay does not leave in time, the command itself says
			 * that the database is in use.
			 */
			(void) wakeup_suspend(dboid, SUSPEND_TIMEOUT_MS);
			break;
		default:
			break;
	}
}

/*
 * ALTER DATABASE SET and ALTER ROLE SET. A running session does not see them;
 * only those count that a relay, which runs as the bootstrap superuser, would
 * see at its start.
 */
static void
setting_altered(Oid dboid, Oid roleid)
{
	if (!OidIsValid(roleid) || roleid == BOOTSTRAP_SUPERUSERID)
		wakeup_mark_restart(dboid);
}

static void
object_accessed(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_object_access_hook != NULL)
		prev_object_access_hook(access, classId, objectId, subId, arg);

	if (classId == ExtensionRelationId)
		extension_accessed(access, objectId);
	else if (classId == DatabaseRelationId)
		database_accessed(access, objectId);
	else if (classId == DbRoleSettingRelationId && access == OAT_POST_ALTER)
		setting_altered(objectId, ((ObjectAccessPostAlter *) arg)->auxiliary_id);
}

static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * Whether the current user may do to that database what the command wants.
 * Copying a database that is marked as a template is allowed to everybody who
 * may create databases; but a template has no relay, so owners are enough.
 */
static bool
may_take_database(Oid dboid, NodeTag command)
{
	return compat_database_ownercheck(dboid, GetUserId()) &&
		(command == T_AlterDatabaseStmt || may_create_databases());
}

/*
 * Keep the relay of the named database away until this transaction ends, if
 * it has one and the current user could go on with the command.
 */
static void
suspend_by_name(const char *name, NodeTag command, LOCKMODE lockmode)
{
	Oid			dboid = get_database_oid(name, true);

	if (!OidIsValid(dboid) || shmem_find_slot(dboid) == NULL ||
		!may_take_database(dboid, command))
		return;

	LockSharedObject(DatabaseRelationId, dboid, 0, lockmode);
	if (get_database_oid(name, true) != dboid)
	{
		UnlockSharedObject(DatabaseRelationId, dboid, 0, lockmode);
		return;
	}
	(void) wakeup_suspend(dboid, SUSPEND_TIMEOUT_MS);
}

/* An option of CREATE or ALTER DATABASE as a string; NULL when it is absent. */
static const char *
string_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL &&
			IsA(option->arg, String))
			return strVal(option->arg);
	}
	return NULL;
}

static void
before_utility(Node *parsetree)
{
	if (IsA(parsetree, CreatedbStmt))
	{
		CreatedbStmt *stmt = (CreatedbStmt *) parsetree;
		const char *template = string_option(stmt->options, "template");

		suspend_by_name(template != NULL ? template : "template1",
						T_CreatedbStmt, ShareLock);
	}
	else if (IsA(parsetree, RenameStmt))
	{
		RenameStmt *stmt = (RenameStmt *) parsetree;

		if (stmt->renameType == OBJECT_DATABASE)
			suspend_by_name(stmt->subname, T_RenameStmt, AccessExclusiveLock);
	}
	else if (IsA(parsetree, AlterDatabaseStmt))
	{
		AlterDatabaseStmt *stmt = (AlterDatabaseStmt *) parsetree;

		if (string_option(stmt->options, "tablespace") != NULL)
			suspend_by_name(stmt->dbname, T_AlterDatabaseStmt, AccessExclusiveLock);
	}
}

/*
 * What was prepared may have published, paused, or made or dropped the
 * extension. All that is known is what is true now.
 */
static void
after_commit_prepared(void)
{
	bool		has_relay = shmem_find_slot(MyDatabaseId) != NULL;
	bool		has_extension;

	AcceptInvalidationMessages();
	has_extension = OidIsValid(get_extension_oid(OUTBOX_EXTENSION, true));

	if (has_relay && has_extension)
	{
		wakeup_mark_published();
		wakeup_mark_control();
		wakeup_mark_side_workers();
	}
	else if (has_relay)
		wakeup_mark_stop(MyDatabaseId);
	else if (has_extension)
		wakeup_mark_start(MyDatabaseId);
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *parsetree = pstmt->utilityStmt;
	bool		commits_prepared;

	commits_prepared = IsA(parsetree, TransactionStmt) &&
		((TransactionStmt *) parsetree)->kind == TRANS_STMT_COMMIT_PREPARED;

	if (shared_state != NULL)
		before_utility(parsetree);

	if (prev_ProcessUtility_hook != NULL)
		prev_ProcessUtility_hook(pstmt, queryString, readOnlyTree, context,
								 params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	if (shared_state != NULL && commits_prepared)
		after_commit_prepared();
}

void
dbhooks_install(void)
{
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_accessed;
	prev_ProcessUtility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
