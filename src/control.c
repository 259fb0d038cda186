/*
 * control.c
 *	  Steering the relay from SQL. What is paused stands in
 *	  outbox.relay_control, what is set aside in outbox.parked_message; the
 *	  relay is told at commit to read them again.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"

#include "wakeup.h"

PG_FUNCTION_INFO_V1(outbox_kafka_relay_control_changed);
PG_FUNCTION_INFO_V1(outbox_kafka_wake_relay);

/*
 * AFTER trigger of outbox.relay_control.
 */
Datum
outbox_kafka_relay_control_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.relay_control_changed() is a trigger function")));

	wakeup_mark_control();

	PG_RETURN_POINTER(NULL);
}

/* For the functions that decide about parked messages. */
Datum
outbox_kafka_wake_relay(PG_FUNCTION_ARGS)
{
	wakeup_mark_control();
	PG_RETURN_VOID();
}
