/*
 * dbhooks.h
 *	  Commands that concern relays without knowing it.
 */
#ifndef OUTBOX_DBHOOKS_H
#define OUTBOX_DBHOOKS_H

/* From _PG_init, while shared_preload_libraries is processed. */
extern void dbhooks_install(void);

#endif							/* OUTBOX_DBHOOKS_H */
