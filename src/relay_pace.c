/*
 * relay_pace.c
 *	  How often the relay looks for messages.
 *
 * At a few hundred commits a second each is looked at when it happens. At
 * thousands a second that would cost a snapshot, a scan and a request to the
 * broker for each, and the processors for it are taken from the publishers. So
 * the relay then looks at intervals, and does not ask to be woken in between: as
 * many milliseconds as there are thousands of commits a second.
 *
 * That is a guess at what the machine can spare. Where it shows that processors
 * are scarce the intervals are longer: the kernel tells how long the relay,
 * ready to run, had to wait for one each time (/proc/self/schedstat: time run,
 * time waited, in ns, and how many times). Where it does not tell, there is only
 * the guess.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "utils/timestamp.h"

#include "relay_internal.h"

/* How often rate and waits are measured. */
#define MEASURE_INTERVAL_MS 50

/* Commits a second from which on the relay looks at intervals. */
#define PACE_FROM 2500
#define PACE_CROWDED_FROM 1500

#define PACE_MAX_MS 10
#define PACE_CROWDED_MS 25

/*
 * Waiting longer than this for a processor, on the average, is a crowd; and it
 * is over only when it was shorter for so many measurements.
 */
#define CROWDED_WAIT_NS 150000
#define CROWDED_MEASUREMENTS 40

/* False if the kernel does not tell. */
static bool
read_waits(uint64 *waited_ns, uint64 *times)
{
	char		line[128];
	unsigned long long run;
	unsigned long long waited;
	unsigned long long count;
	ssize_t		length;
	int			fd = open("/proc/self/schedstat", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	length = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (length <= 0)
		return false;
	line[length] = '\0';

	if (sscanf(line, "%llu %llu %llu", &run, &waited, &count) != 3)
		return false;
	*waited_ns = waited;
	*times = count;
	return true;
}

static void
measure_crowd(RelayPace *pace)
{
	uint64		waited;
	uint64		times;

	if (!read_waits(&waited, &times))
		return;
	if (pace->times != 0 && times > pace->times)
	{
		if ((waited - pace->waited_ns) / (times - pace->times) >= CROWDED_WAIT_NS)
			pace->crowded = CROWDED_MEASUREMENTS;
		else if (pace->crowded > 0)
			pace->crowded--;
	}
	pace->waited_ns = waited;
	pace->times = times;
}

void
relay_pace_measure(Relay *relay, TimestampTz now)
{
	RelayPace  *pace = &relay->pace;
	long		elapsed = TimestampDifferenceMilliseconds(pace->measured_at, now);
	uint64		commits;

	if (elapsed < MEASURE_INTERVAL_MS)
		return;
	commits = pg_atomic_read_u64(&relay->slot->commits);
	pace->commits_per_second = (int) Min((commits - pace->commits) * 1000 / elapsed,
										 (uint64) INT_MAX);
	pace->commits = commits;
	pace->measured_at = now;
	if (pace->commits_per_second >= PACE_CROWDED_FROM)
		measure_crowd(pace);
}

int
relay_pace(const Relay *relay)
{
	const RelayPace *pace = &relay->pace;

	if (pace->crowded > 0 && pace->commits_per_second >= PACE_CROWDED_FROM)
		return PACE_CROWDED_MS;
	if (pace->commits_per_second < PACE_FROM)
		return 0;
	return Min(pace->commits_per_second / 1000, PACE_MAX_MS);
}
