/*
 * relay_standby.c
 *	  Waiting for the synchronous standby (outbox_kafka.wait_for_standby).
 *
 * No transaction is open while the relay waits, and nothing but messages that
 * are not on the standby yet has to wait: reports are served, progress is
 * stored, pauses and reloads take effect. What is asked for is one position in
 * shared memory, after a millisecond at first, then less and less often: each
 * time after a sixteenth of the time it has taken so far, so that little is
 * added to a wait of any length.
 *
 * Without a synchronous standby (none is configured, or too few are connected)
 * the relay waits as well: sending then is what the setting is there to
 * prevent. relay_status says what it waits for.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "durability.h"
#include "guc.h"
#include "relay_standby.h"

#define PAUSE_MIN_MS 1
#define PAUSE_MAX_MS 100

/* A wait of this length is shown as the relay's state. */
#define LATE_MS 1000

/* Waits that come and go are told of no more often than this. */
#define TELL_INTERVAL_MS 60000

bool
relay_standby_has(Relay *relay, XLogRecPtr position)
{
	if (guc_wait_for_standby && !durability_on_standby(position))
		return false;
	relay->standby_since = 0;
	relay->standby_late = false;
	return true;
}

bool
relay_standby_is_late(const Relay *relay)
{
	return relay->standby_late;
}

static void
tell(Relay *relay, XLogRecPtr position, TimestampTz now)
{
	char	   *text = psprintf("waiting for a synchronous standby: %s",
								durability_standby_problem(position));

	if (!relay->standby_late || strcmp(text, relay->standby_text) != 0)
		shmem_set_error(&relay->slot->worker, text);
	strlcpy(relay->standby_text, text, sizeof(relay->standby_text));

	if (!relay->standby_late &&
		TimestampDifferenceExceeds(relay->standby_told_at, now, TELL_INTERVAL_MS))
	{
		relay->standby_told_at = now;
		ereport(WARNING,
				(errmsg("outbox_kafka is %s", text),
				 errdetail("Nothing is lost; messages are sent when their commits are on the standby."),
				 errhint("See synchronous_standby_names, pg_stat_replication and outbox_kafka.wait_for_standby.")));
	}
	relay->standby_late = true;
}

int
relay_standby_pause(Relay *relay, XLogRecPtr position, TimestampTz now)
{
	long		waited;

	if (relay->standby_since == 0)
		relay->standby_since = now;
	waited = TimestampDifferenceMilliseconds(relay->standby_since, now);
	if (waited >= LATE_MS)
		tell(relay, position, now);
	return (int) Min(Max(waited / 16, PAUSE_MIN_MS), PAUSE_MAX_MS);
}
