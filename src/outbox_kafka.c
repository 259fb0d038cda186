/*
 * outbox_kafka.c
 *	  Where the server enters the library.
 *
 * Preloaded, it brings everything: shared memory, the hooks, the launcher.
 * Loaded later by a session, it can publish and no more: shared_state stays
 * NULL, which is what every other file asks.
 */
#include "postgres.h"

#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"

#include "dbhooks.h"
#include "guc.h"
#include "launcher.h"
#include "outbox_kafka.h"
#include "shmem.h"
#include "wakeup.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	guc_define();

	if (process_shared_preload_libraries_in_progress)
	{
		shmem_install_hooks();
		dbhooks_install();
		launcher_register();
	}
	else if (creating_extension)
		ereport(WARNING,
				(errmsg("%s is not in shared_preload_libraries", OUTBOX_LIBRARY),
				 errdetail("Messages can be published, but nothing sends them to Kafka."),
				 errhint("Add %s to shared_preload_libraries and restart the server.",
						 OUTBOX_LIBRARY)));

	wakeup_install();
}
