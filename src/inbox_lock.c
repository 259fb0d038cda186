/*
 * inbox_lock.c
 *	  The lock between those who decide about a subscription and its workers.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lock.h"

#include "inbox_lock.h"

/*
 * Advisory locks of users have 1 or 2 in the last field of their tag, so
 * nobody can take this one by SQL.
 */
#define INBOX_LOCK_FIELD4 0x6f73

bool
inbox_lock(int subscription, LOCKMODE mode, bool dont_wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, (uint32) subscription, INBOX_LOCK_FIELD4);
	return LockAcquire(&tag, mode, false, dont_wait) != LOCKACQUIRE_NOT_AVAIL;
}
