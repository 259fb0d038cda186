/*
 * inbox_wanted.c
 *	  Which inbox workers a database needs; see side_wanted.h.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "outbox_kafka.h"
#include "side_wanted.h"

/* Columns of inbox.subscription */
#define COLUMN_ID 1
#define COLUMN_WORKERS 10
#define COLUMN_PAUSED 13

int
inbox_wanted(SideWanted **wanted)
{
	Oid			schema = get_namespace_oid(INBOX_SCHEMA, true);
	Oid			relation = OidIsValid(schema) ? get_relname_relid("subscription", schema) : InvalidOid;
	Relation	rel;
	TableScanDesc scan;
	TupleTableSlot *slot;
	int			count = 0;
	int			room = 16;

	*wanted = palloc(sizeof(SideWanted) * room);
	if (!OidIsValid(relation))
		return 0;
	if (!ConditionalLockRelationOid(relation, AccessShareLock))
		return -1;
	rel = table_open(relation, NoLock);
	slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		int32		id = DatumGetInt32(slot_getattr(slot, COLUMN_ID, &isnull));
		int32		workers = DatumGetInt32(slot_getattr(slot, COLUMN_WORKERS, &isnull));

		if (DatumGetBool(slot_getattr(slot, COLUMN_PAUSED, &isnull)))
			continue;
		for (int number = 0; number < workers; number++)
		{
			if (count == room)
			{
				room *= 2;
				*wanted = repalloc(*wanted, sizeof(SideWanted) * room);
			}
			(*wanted)[count].kind = WORKER_INBOX;
			(*wanted)[count].subscription = id;
			(*wanted)[count].number = number;
			count++;
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return count;
}
