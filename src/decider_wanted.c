/*
 * decider_wanted.c
 *	  Whether a database needs a decider: asked by its relay, and by the decider
 *	  itself before it goes.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"

#include "catalog.h"
#include "side_wanted.h"

/* What is decided is looked at until it can be removed. */
int
decider_wanted(void)
{
	const OutboxCatalog *catalog = catalog_get(true);
	Oid			table = InvalidOid;
	int			result;

	if (catalog != NULL)
		table = get_relname_relid("confirmation", catalog->schema);
	if (!OidIsValid(table))
		return 0;
	if (!ConditionalLockRelationOid(table, AccessShareLock))
		return -1;

	SPI_connect();
	if (SPI_execute("SELECT FROM outbox.confirmation WHERE NOT restored LIMIT 1", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.confirmation");
	result = SPI_processed > 0 ? 1 : 0;
	SPI_finish();
	return result;
}
