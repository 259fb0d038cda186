/*
 * relay_side.c
 *	  Declaring which side workers the database needs.
 *
 * The launcher is connected to no database, so the relay is its eyes. It looks
 * when it starts, before anything that could keep it from sending, and whenever
 * it is told that its control tables changed, whatever state it is in: an inbox
 * is served also while nothing can be sent.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "relay_internal.h"
#include "side_wanted.h"

/* After a table was locked by somebody else. */
#define BLOCKED_MS 100

/*
 * Read what is needed. False: not now. In a transaction.
 */
static bool
read_wanted(SideWanted **wanted, int *count)
{
	int			decider = decider_wanted();

	if (decider < 0)
		return false;
	*count = inbox_wanted(wanted);
	if (*count < 0)
		return false;
	if (decider > 0)
	{
		SideWanted *all = palloc((*count + 1) * sizeof(SideWanted));

		all[0] = (SideWanted)
		{
			.kind = WORKER_DECIDER
		};
		for (int i = 0; i < *count; i++)
			all[i + 1] = (*wanted)[i];
		*wanted = all;
		(*count)++;
	}
	return true;
}

/* One line when it begins. */
static void
note_refused(Relay *relay, int refused)
{
	if (refused > 0 && relay->side_refused == 0)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of slots for inbox workers: %d of database \"%s\" cannot be started",
						refused, relay->database),
				 errdetail("There are %d inbox workers already. The subscriptions wait.",
						   guc_max_inbox_workers),
				 errhint("You might need to increase outbox_kafka.max_inbox_workers.")));
	relay->side_refused = refused;
}

void
relay_side_declare(Relay *relay, TimestampTz now)
{
	uint32		generation = pg_atomic_read_u32(&relay->slot->worker.control_generation);
	SideWanted *wanted = NULL;
	int			count = 0;
	bool		known = false;

	if (relay->side_known && generation == relay->side_seen &&
		(relay->side_due == 0 || relay->side_due > now))
		return;
	pg_memory_barrier();

	relay_begin(relay);
	if (relay_catalog(relay) != NULL)
	{
		known = read_wanted(&wanted, &count);
		if (known)
			note_refused(relay, side_slots_declare(MyDatabaseId, wanted, count));
	}
	relay_commit(relay);

	relay->side_known = true;
	relay->side_seen = generation;
	relay->side_due = known ? 0 : TimestampTzPlusMilliseconds(now, BLOCKED_MS);
}
