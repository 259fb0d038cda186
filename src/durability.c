/*
 * durability.c
 *	  Visible is not durable: nothing is sent before its commit is flushed.
 *
 * With synchronous_commit = off a row is visible before its commit record is
 * on disk; a crash then would take back a message that Kafka already has. The
 * commit log knows the WAL position of such a commit before the row becomes
 * visible (for a group of neighbouring xids, so perhaps a later one: that only
 * flushes more). For commits that were flushed in the ordinary way it knows
 * none, and nothing is to be done. Commits older than the oldest part of the
 * commit log that is kept are long flushed.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"

#include "compat.h"
#include "durability.h"

void
durability_ensure(uint64 xid, XLogRecPtr all_before)
{
	uint64		next = U64FromFullTransactionId(ReadNextFullTransactionId());
	TransactionId short_xid = (TransactionId) xid;
	XLogRecPtr	commit;

	if (GetFlushRecPtr(NULL) >= all_before)
		return;
	if (next - xid > MaxTransactionId / 2 ||
		TransactionIdPrecedes(short_xid, compat_oldest_clog_xid()))
		return;

	commit = TransactionIdGetCommitLSN(short_xid);
	if (!XLogRecPtrIsInvalid(commit))
		XLogFlush(commit);
}
