/*
 * backlog.h
 *	  How much disk space the messages take, and the limit to it
 *	  (outbox_kafka.max_backlog).
 */
#ifndef OUTBOX_BACKLOG_H
#define OUTBOX_BACKLOG_H

#include "catalog.h"

/* outbox_kafka.max_backlog in bytes; 0: no limit. */
extern uint64 backlog_limit(void);

/*
 * Bytes on disk of outbox.message: its leaves with indexes and TOAST tables.
 * Inside a transaction. Waits for no lock: a leaf that somebody has locked
 * counts as much as when this process measured it last.
 */
extern uint64 backlog_measure(const OutboxCatalog *catalog);

/*
 * A message is about to be stored: an error, or a warning now and then, if the
 * limit is exceeded. Costs next to nothing while it is not.
 */
extern void backlog_check(void);

#endif							/* OUTBOX_BACKLOG_H */
