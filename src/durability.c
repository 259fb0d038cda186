/*
 * durability.c
 *	  Visible is not durable: nothing is sent before its commit is flushed,
 *	  with wait_for_standby also on the synchronous standby.
 *
 * On the local disk.  With synchronous_commit = off a row is visible before
 * its commit record is on disk; a crash then would take back a message that
 * Kafka already has. The commit log knows the WAL position of such a commit
 * before the row becomes visible (for a group of neighbouring xids, so perhaps
 * a later one: that only flushes more). For commits that were flushed in the
 * ordinary way it knows none, and nothing is to be done. Commits older than
 * the oldest part of the commit log that is kept are long flushed.
 *
 * On the standby.  The commit log is of no use here. It knows no position for
 * a commit that was flushed in the ordinary way, and such a one becomes visible
 * without being on the standby whenever its session does not wait, or does not
 * wait to the end: synchronous_commit = local, a cancelled wait, a terminated
 * session, a crash during the wait. It also forgets positions when its pages
 * leave memory, once they are flushed locally. So the question is not asked
 * row by row: a batch is sent when the standby has flushed the position where
 * the WAL ended when the batch's bound had been taken. That covers all that
 * the bound shows, however it was committed, because a transaction becomes
 * visible only after its commit record has been put into the WAL. It stays the
 * same while the batch waits, so a standby that is always a little behind holds
 * up nobody for ever. The WAL up to there is flushed locally first, or it might
 * not be sent to the standby before somebody else commits.
 *
 * The position that synchronous standbys have confirmed is read where the
 * server keeps it for its own waiting sessions. It only grows, and means what
 * it means to them: the first or any of synchronous_standby_names, as many as
 * are asked for, have flushed that much. It starts at zero with the server, so
 * after a restart nothing is taken for confirmed before a standby has said so.
 * Nobody tells when it moves except to a session that sits in the queue for
 * it, so it is polled, see relay_standby.c. SyncRepWaitForLSN() would block
 * the relay, and return without a word when the wait is cancelled.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "replication/syncrep.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"

#include "compat.h"
#include "durability.h"
#include "guc.h"

/*
 * The server's insert position stands behind the header of a page of which
 * nothing else is written yet. Flushing, here or on a standby, ends before
 * that header until somebody writes on.
 */
XLogRecPtr
durability_position(void)
{
	XLogRecPtr	position = GetXLogInsertRecPtr();
	uint32		header = SizeOfXLogShortPHD;

	if (XLogSegmentOffset(position, wal_segment_size) < XLOG_BLCKSZ)
		header = SizeOfXLogLongPHD;
	if (position % XLOG_BLCKSZ == header)
		position -= header;
	return position;
}

bool
durability_on_standby(XLogRecPtr position)
{
	static XLogRecPtr confirmed = InvalidXLogRecPtr;

	if (confirmed < position)
	{
		LWLockAcquire(SyncRepLock, LW_SHARED);
		confirmed = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
		LWLockRelease(SyncRepLock);
	}
	return confirmed >= position;
}

char *
durability_standby_problem(XLogRecPtr position)
{
	SyncRepStandbyData *standbys;
	int			connected;

	if (SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0' ||
		SyncRepConfig == NULL)
		return pstrdup("synchronous_standby_names is empty");

	connected = SyncRepGetCandidateStandbys(&standbys);
	pfree(standbys);
	if (connected < SyncRepConfig->num_sync)
		return psprintf("%d of %d synchronous standbys are connected",
						connected, SyncRepConfig->num_sync);
	return psprintf("it has not flushed the WAL up to %X/%X yet",
					LSN_FORMAT_ARGS(position));
}

bool
durability_ensure(uint64 xid, XLogRecPtr all_before)
{
	uint64		next;
	TransactionId short_xid = (TransactionId) xid;
	XLogRecPtr	commit;

	if (guc_wait_for_standby)
	{
		/* what a standby has is on the local disk as well */
		if (durability_on_standby(all_before))
			return true;
		XLogFlush(all_before);
		return durability_on_standby(all_before);
	}

	if (GetFlushRecPtr(NULL) >= all_before)
		return true;
	next = U64FromFullTransactionId(ReadNextFullTransactionId());
	if (next - xid > MaxTransactionId / 2 ||
		TransactionIdPrecedes(short_xid, compat_oldest_clog_xid()))
		return true;

	commit = TransactionIdGetCommitLSN(short_xid);
	if (!XLogRecPtrIsInvalid(commit))
		XLogFlush(commit);
	return true;
}
