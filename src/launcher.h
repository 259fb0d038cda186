/*
 * launcher.h
 *	  The worker that starts the relays.
 */
#ifndef OUTBOX_LAUNCHER_H
#define OUTBOX_LAUNCHER_H

/*
 * From _PG_init, while shared_preload_libraries is processed. Does nothing
 * during pg_upgrade, where no worker may run.
 */
extern void launcher_register(void);

#endif							/* OUTBOX_LAUNCHER_H */
