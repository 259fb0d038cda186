/*
 * row_place.h
 *	  Rows that one process writes again and again, found where it wrote them
 *	  last.
 *
 * The relay's tables hold a row or a few, keyed by an integer in the first
 * column, and are written many times a second, also while another session holds
 * back the vacuum horizon for hours. So a row is not looked for: its TID is
 * remembered as long as the table's file stays the same, and the page is pruned
 * in passing.
 */
#ifndef OUTBOX_ROW_PLACE_H
#define OUTBOX_ROW_PLACE_H

#include "access/htup.h"
#include "storage/itemptr.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* Where the writer of a row wrote it last; zeroed at first. */
typedef struct RowPlace
{
	Oid			file;			/* pg_class.relfilenode then; 0: unknown */
	ItemPointerData tid;
} RowPlace;

/* Copy of the row with this key, in the current context, or NULL. */
extern HeapTuple row_place_read(Relation rel, int key, Snapshot snapshot);

/* Make sure place says where the row is. False: there is none. */
extern bool row_place_find(Relation rel, RowPlace *place, int key);

/*
 * Update the row at place, remove what it leaves behind, remember the new one.
 * Frees tuple.
 */
extern void row_place_replace(Relation rel, RowPlace *place, HeapTuple tuple);

#endif							/* OUTBOX_ROW_PLACE_H */
