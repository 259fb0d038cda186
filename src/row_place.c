/*
 * row_place.c
 *	  Rows that one process writes again and again; see row_place.h.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "catalog/indexing.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "row_place.h"

HeapTuple
row_place_read(Relation rel, int key, Snapshot snapshot)
{
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	HeapTuple	tuple;
	HeapTuple	result = NULL;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		bool		isnull;

		if (DatumGetInt32(heap_getattr(tuple, 1, RelationGetDescr(rel),
									   &isnull)) == key)
		{
			result = heap_copytuple(tuple);
			break;
		}
	}
	table_endscan(scan);
	return result;
}

bool
row_place_find(Relation rel, RowPlace *place, int key)
{
	Snapshot	snapshot;
	HeapTuple	tuple;

	if (place->file == rel->rd_rel->relfilenode)
		return true;

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	tuple = row_place_read(rel, key, snapshot);
	UnregisterSnapshot(snapshot);
	if (tuple == NULL)
		return false;
	place->file = rel->rd_rel->relfilenode;
	place->tid = tuple->t_self;
	return true;
}

void
row_place_replace(Relation rel, RowPlace *place, HeapTuple tuple)
{
	ItemPointerData old = place->tid;
	Buffer		buffer;

	/* should this transaction fail, the place is not to be trusted */
	place->file = InvalidOid;

	buffer = ReadBuffer(rel, ItemPointerGetBlockNumber(&old));
	heap_page_prune_opt(rel, buffer);
	ReleaseBuffer(buffer);

	CatalogTupleUpdate(rel, &old, tuple);
	place->tid = tuple->t_self;
	place->file = rel->rd_rel->relfilenode;
	heap_freetuple(tuple);
}
