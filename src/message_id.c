/*
 * message_id.c
 *	  The one place where a message gets its xid and its id.
 *
 * The cursor rests on the order here: the transaction has its xid before the
 * id is drawn. So once the cursor has read the sequence and then the next xid,
 * a row whose id was drawn before has an xid below that one, and is found
 * either in the snapshot or among the transactions known to be open. Drawn the
 * other way round, a row of a low id could turn up under an xid that nobody
 * waits for, and never be sent.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/sequence.h"
#include "storage/lmgr.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "message_id.h"

int64
message_next_id(Oid sequence, FullTransactionId *xid)
{
	*xid = GetTopFullTransactionId();

	/* if DROP EXTENSION was waited for, the error shall say so */
	LockRelationOid(sequence, RowExclusiveLock);
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(sequence)))
		sequence = catalog_get(false)->sequence;

	return nextval_internal(sequence, false);
}
