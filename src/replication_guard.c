/*
 * replication_guard.c
 *	  Keeps another server's outbox out of ours.
 *
 * A publication FOR ALL TABLES includes the extension's tables. Where its
 * subscriber has the extension too, the rows of the publisher's progress,
 * ring and grants would overwrite the subscriber's: messages would be taken
 * for delivered that never were. This trigger, fired ALWAYS, drops what comes
 * through an apply worker (a skipped row is no error there). What the relay
 * and the administrator write passes.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"
#include "replication/logicalworker.h"

PG_FUNCTION_INFO_V1(outbox_kafka_ignore_replication);

Datum
outbox_kafka_ignore_replication(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger before each row",
						"outbox.ignore_replication")));

	if (IsLogicalWorker())
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						   trigger->tg_newtuple : trigger->tg_trigtuple);
}
