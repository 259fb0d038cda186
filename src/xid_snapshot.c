/*
 * xid_snapshot.c
 *	  Snapshots that outlive their transaction.
 *
 * Only top-level xids are listed, as in pg_current_snapshot(): a message row
 * carries its top-level xid in a column. On disk they are values of the
 * server's type pg_snapshot, whose own input and output functions are used
 * for the conversion, since its layout is private to the server.
 */
#include "postgres.h"

#include "access/transam.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "xid_snapshot.h"

static int
compare_xids(const void *a, const void *b)
{
	uint64		xa = *(const uint64 *) a;
	uint64		xb = *(const uint64 *) b;

	return xa < xb ? -1 : (xa > xb ? 1 : 0);
}

/* Widen an xid that is at most 2^31 behind (or, racing, ahead of) next. */
static uint64
widen(TransactionId xid, FullTransactionId next)
{
	uint32		next_xid = XidFromFullTransactionId(next);
	uint64		epoch = EpochFromFullTransactionId(next);

	if (!TransactionIdIsNormal(xid))
		return xid;
	if (xid > next_xid)
		epoch--;
	return (epoch << 32) | xid;
}

XidSnapshot *
xid_snapshot_from(Snapshot snapshot)
{
	/* read after the snapshot was taken, so every xid in it is behind */
	FullTransactionId next = ReadNextFullTransactionId();
	XidSnapshot *result;
	int			n = 0;

	result = palloc(offsetof(XidSnapshot, xip) + sizeof(uint64) * snapshot->xcnt);
	result->xmin = widen(snapshot->xmin, next);
	result->xmax = widen(snapshot->xmax, next);
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		result->xip[i] = widen(snapshot->xip[i], next);
	if (snapshot->xcnt > 1)
		qsort(result->xip, snapshot->xcnt, sizeof(uint64), compare_xids);

	/* a transaction being prepared can be listed twice */
	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		if (n == 0 || result->xip[n - 1] != result->xip[i])
			result->xip[n++] = result->xip[i];
	}
	result->nxip = n;
	return result;
}

bool
xid_snapshot_sees(const XidSnapshot *snapshot, uint64 xid)
{
	int			low = 0;
	int			high = snapshot->nxip - 1;

	if (xid < snapshot->xmin)
		return true;
	if (xid >= snapshot->xmax)
		return false;
	while (low <= high)
	{
		int			middle = low + (high - low) / 2;

		if (snapshot->xip[middle] == xid)
			return false;
		if (snapshot->xip[middle] < xid)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return true;
}

XidSnapshot *
xid_snapshot_from_datum(Datum value)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(pg_snapshot_out, value));
	char	   *at = text;
	XidSnapshot *result;
	int			n = 0;

	for (char *c = text; *c; c++)
		n += (*c == ',') ? 1 : 0;
	result = palloc(offsetof(XidSnapshot, xip) + sizeof(uint64) * (n + 1));

	result->xmin = strtou64(at, &at, 10);
	result->xmax = strtou64(at + 1, &at, 10);
	at++;
	n = 0;
	while (*at)
	{
		result->xip[n++] = strtou64(at, &at, 10);
		if (*at == ',')
			at++;
	}
	result->nxip = n;
	pfree(text);
	return result;
}

Datum
xid_snapshot_to_datum(const XidSnapshot *snapshot)
{
	StringInfoData text;
	Datum		result;

	initStringInfo(&text);
	appendStringInfo(&text, UINT64_FORMAT ":" UINT64_FORMAT ":",
					 snapshot->xmin, snapshot->xmax);
	for (int i = 0; i < snapshot->nxip; i++)
		appendStringInfo(&text, "%s" UINT64_FORMAT, i > 0 ? "," : "",
						 snapshot->xip[i]);
	result = DirectFunctionCall1(pg_snapshot_in, CStringGetDatum(text.data));
	pfree(text.data);
	return result;
}
