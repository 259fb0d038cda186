/*
 * owner_session.c
 *	  See owner_session.h.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/guc.h"

#include "catalog.h"
#include "owner_session.h"

void
owner_begin(OwnerSession *session)
{
	Oid			owner = catalog_get(false)->owner;

	GetUserIdAndSecContext(&session->role, &session->security_context);
	SetUserIdAndSecContext(owner,
						   session->security_context | SECURITY_LOCAL_USERID_CHANGE);
	session->guc_nest_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
}

void
owner_end(const OwnerSession *session)
{
	SPI_finish();
	AtEOXact_GUC(false, session->guc_nest_level);
	SetUserIdAndSecContext(session->role, session->security_context);
}

void
owner_execute(OwnerStatement *statement, Datum *values, const char *nulls)
{
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->text, statement->nargs,
									   unconstify(Oid *, statement->types));

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare a statement as the extension's owner: %s",
				 SPI_result_code_string(SPI_result));
		statement->plan = plan;
	}
	result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "could not execute a statement as the extension's owner: %s",
			 SPI_result_code_string(result));
}
