/*
 * inbox_lock.h
 *	  The lock between those who decide about a subscription and its workers.
 */
#ifndef OUTBOX_INBOX_LOCK_H
#define OUTBOX_INBOX_LOCK_H

#include "storage/lockdefs.h"

#include "outbox_kafka.h"

/*
 * Until the transaction ends. Handling takes it in ShareLock, deciding in
 * ExclusiveLock. dont_wait: false if it cannot be had now.
 */
extern bool inbox_lock(int subscription, LOCKMODE mode, bool dont_wait);

#endif							/* OUTBOX_INBOX_LOCK_H */
