/*
 * fault.c
 *	  Moments at which a test lets the relay die.
 *
 * outbox_kafka.fault_point is a list. "name:n": the n-th time that this process
 * comes to the point of that name it is killed, as by kill -9. Some moments last
 * a millisecond or less; nothing from outside would hit them. "name" alone
 * switches something off that a test shows to be needed.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "fault.h"

/* Where the list has this name, or NULL; up to what follows the name. */
static const char *
find(const char *point)
{
	size_t		length = strlen(point);

	for (const char *entry = guc_fault_point; *entry != '\0';)
	{
		if (strncmp(entry, point, length) == 0 && strchr(":,", entry[length]) != NULL)
			return entry + length;
		entry += strcspn(entry, ",");
		entry += (*entry == ',');
	}
	return NULL;
}

void
fault_reached(const char *point)
{
	static int	reached = 0;
	const char *count = find(point);

	if (count == NULL || *count != ':' || ++reached < strtol(count + 1, NULL, 10))
		return;
	ereport(LOG,
			(errmsg("outbox_kafka dies at fault point \"%s\"", point)));
	kill(getpid(), SIGKILL);
}

bool
fault_is_set(const char *point)
{
	return find(point) != NULL;
}
