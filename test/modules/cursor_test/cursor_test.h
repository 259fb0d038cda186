/*
 * cursor_test.h
 *	  Cursors for tests: the extension's own, and models of it that are wrong.
 */
#ifndef CURSOR_TEST_H
#define CURSOR_TEST_H

#include "cursor.h"

typedef enum CursorVariant
{
	VARIANT_RIGHT,				/* cursor.c */

	/* cursor.c with a part of its reasoning left out */
	VARIANT_XMAX,				/* what pg_current_snapshot() alone tells: its
								 * xmax is taken for the next xid */
	VARIANT_STALE_TAIL,			/* last_value of the sequence without
								 * is_called */
	VARIANT_MOVING,				/* each chunk shows what is committed by now,
								 * not what the batch's bound shows */
	VARIANT_TABLES_FIRST,		/* empty tables are left out before the bound
								 * is taken */
	VARIANT_LATE_TAIL,			/* the sequence is read after the snapshot and
								 * the next xid */
	VARIANT_EXPANDED,			/* right, but the range [xmax, next xid) is
								 * written out as a list */

	/* without snapshots */
	VARIANT_ID,					/* id > last */
	VARIANT_XMIN				/* xid < xmin, in the order of (xid, id) */
} CursorVariant;

typedef struct TestCursor
{
	char		name[NAMEDATALEN];
	CursorVariant variant;
	bool		open;			/* a batch is under way */
	int64		position;		/* id read last, in the batch */
	CursorBound *done;			/* the variants with bounds */
	CursorBound *batch;

	/* the variants without */
	uint64		done_xid;
	int64		done_id;
	int64	   *ids;			/* the batch's */
	int			nids;
	int			next;			/* of them, to be read */
} TestCursor;

/* wrong_models.c */

/* The bound of now as the variant sees it; NULL: the sequence is locked. */
extern CursorBound *wrong_bound(CursorVariant variant, const OutboxCatalog *catalog,
								MemoryContext context);

/* What is committed now counts as delivered. Cursors without bounds only. */
extern void wrong_start(TestCursor *cursor);

/* Find out what the next batch is. Cursors without bounds only. */
extern void wrong_open(TestCursor *cursor);

#endif							/* CURSOR_TEST_H */
