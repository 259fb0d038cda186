/*
 * handler.c
 *	  Running a user's function in a worker.
 *
 * A worker is a superuser's session. Two simple ways to run somebody's function
 * in it are wrong. SECURITY_RESTRICTED_OPERATION forbids too much: no trigger
 * can be deferred, which every deferrable foreign key needs, and no temporary
 * table be made. Switching the role for the call alone forbids too little: a
 * deferred trigger and the query of a WITH HOLD cursor run when the transaction
 * commits, by then as superuser.
 *
 * So the role is the owner's from before the first call until the commit has
 * returned, under SECURITY_LOCAL_USERID_CHANGE, which keeps SET ROLE, SET
 * SESSION AUTHORIZATION and their RESET from leading back. Before the commit,
 * under the timeout that each call has, constraints are checked and cursors
 * closed, so that nothing of the user's is left to run at commit, as anybody.
 *
 * What a session keeps from one transaction to the next would be found by the
 * next handler, perhaps of another role, for which a temporary table of the
 * right name is a trap. So settings go back after each call, temporary objects
 * are dropped in the transaction that made them, and session locks and prepared
 * statements end with it.
 *
 * The search path is that of a fresh session, "$user", public; a function with
 * a SET clause has its own. Other settings of the role (ALTER ROLE ... SET) do
 * not count.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/prepare.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parse_func.h"
#include "pgstat.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/portal.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"

#include "compat.h"
#include "guc.h"
#include "handler.h"
#include "side_worker.h"

struct HandlerFunction
{
	Oid			oid;
	FmgrInfo	flinfo;
};

/* Between handler_begin() and handler_end() */
static bool active = false;
static Oid	saved_role;
static int	saved_security_context;

/* User's code starts to run, for as long as handler_timeout at most. */
static void
start_running(void)
{
	side_worker_in_handler();
	if (guc_handler_timeout > 0)
		enable_timeout_after(STATEMENT_TIMEOUT, guc_handler_timeout);
}

static void
stop_running(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	side_worker_outside_handler();
	QueryCancelPending = false;
}

/*
 * Set the search path, for the session, not the transaction; NULL: the worker's
 * own again. As long as a transaction has settings of its own to undo, PostgreSQL
 * 15 goes through all there are after each call, which costs as much as a small
 * handler. With this one the first are those that a handler makes.
 */
static void
set_search_path(const char *path)
{
	bool		in_transaction = IsTransactionState();

	/* outside of the transaction's nest level nothing is kept to be undone */
	if (in_transaction)
		AtEOXact_GUC(true, 1);
	(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SET, true, 0, false);
	if (in_transaction)
		(void) NewGUCNestLevel();
}

void
handler_begin(const char *owner)
{
	Oid			role = get_role_oid(owner, true);

	Assert(IsTransactionState() && !IsSubTransaction());
	Assert(!active);

	if (!OidIsValid(role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist", owner),
				 errdetail("The handler has to run as that role.")));

	GetUserIdAndSecContext(&saved_role, &saved_security_context);
	active = true;
	SetUserIdAndSecContext(role, saved_security_context | SECURITY_LOCAL_USERID_CHANGE);
	set_search_path("\"$user\", public");
}

/*
 * Of the current role; the error is about a function that somebody else may
 * have named.
 */
static void
check_execute(Oid function)
{
	AclResult	result = compat_proc_aclcheck(function, GetUserId(), ACL_EXECUTE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, get_func_name(function));
}

HandlerFunction *
handler_lookup(const char *name, Oid argument_type)
{
	HandlerFunction *function = palloc0(sizeof(HandlerFunction));
	char	   *copy = pstrdup(name);
	List	   *names = compat_string_to_qualified_name_list(copy);

	function->oid = LookupFuncName(names, 1, &argument_type, false);
	check_execute(function->oid);
	InvokeFunctionExecuteHook(function->oid);
	fmgr_info(function->oid, &function->flinfo);
	return function;
}

void
handler_call(HandlerFunction *function, Datum argument)
{
	LOCAL_FCINFO(fcinfo, 1);
	PgStat_FunctionCallUsage usage;
	int			nest_level;

	Assert(active);

	nest_level = NewGUCNestLevel();
	start_running();
	PushActiveSnapshot(GetTransactionSnapshot());

	InitFunctionCallInfoData(*fcinfo, &function->flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = argument;
	fcinfo->args[0].isnull = false;
	pgstat_init_function_usage(fcinfo, &usage);
	(void) FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);

	PopActiveSnapshot();
	CHECK_FOR_INTERRUPTS();
	stop_running();
	AtEOXact_GUC(false, nest_level);
	CommandCounterIncrement();
}

void
handler_finish(void)
{
	ConstraintsSetStmt *constraints = makeNode(ConstraintsSetStmt);
	int			nest_level;

	Assert(active && !IsSubTransaction());

	nest_level = NewGUCNestLevel();
	start_running();
	constraints->constraints = NIL;
	constraints->deferred = false;
	AfterTriggerSetState(constraints);
	CommandCounterIncrement();

	/* also those WITH HOLD: their query would run at commit */
	PortalHashTableDeleteAll();
	if (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE)
	{
		/* rows of catalogs are deleted, and some have parts elsewhere */
		PushActiveSnapshot(GetTransactionSnapshot());
		ResetTempTableNamespace();
		PopActiveSnapshot();
	}
	CHECK_FOR_INTERRUPTS();
	stop_running();
	AtEOXact_GUC(false, nest_level);
}

ErrorData *
handler_caught(MemoryContext context)
{
	ErrorData  *error;

	stop_running();
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	return error;
}

void
handler_end(void)
{
	Assert(!IsTransactionState());

	stop_running();
	if (!active)
		return;
	active = false;
	set_search_path(NULL);
	SetUserIdAndSecContext(saved_role, saved_security_context);
	side_worker_release_advisory_locks();
	DropAllPreparedStatements();
}

char *
handler_stored_name(Oid function, Oid argument_type, const char *what)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("%s: function with OID %u does not exist", what, function)));
	form = (Form_pg_proc) GETSTRUCT(tuple);
	name = quote_qualified_identifier(get_namespace_name(form->pronamespace),
									  NameStr(form->proname));
	if (form->prokind != PROKIND_FUNCTION || form->proretset ||
		form->prorettype != VOIDOID || form->pronargs != 1 ||
		form->proargtypes.values[0] != argument_type)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s: \"%s\" is not a handler", what, name),
				 errdetail("It has to be a function %s(%s) that returns void.",
						   name, format_type_be_qualified(argument_type))));
	ReleaseSysCache(tuple);

	check_execute(function);
	return name;
}
