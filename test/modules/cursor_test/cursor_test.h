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
	uint64		batch_xid;
	int64		batch_id;
} TestCursor;

/* wrong_models.c */

/* The bound of now as the variant sees it. */
extern CursorBound *wrong_bound(CursorVariant variant, const OutboxCatalog *catalog,
								MemoryContext context);

/* Make done of a cursor without bounds what is committed now. */
extern void wrong_start(TestCursor *cursor);
extern void wrong_open(TestCursor *cursor);

/*
 * Up to rows (0: all) ids, palloc'd; *count says how many. *end: the batch is
 * finished.
 */
extern int64 *wrong_read(TestCursor *cursor, int rows, int *count, bool *end);

#endif							/* CURSOR_TEST_H */
