/*
 * fault.h
 *	  Moments at which a test lets the relay die (outbox_kafka.fault_point).
 */
#ifndef OUTBOX_FAULT_H
#define OUTBOX_FAULT_H

#include "guc.h"

extern void fault_reached(const char *point);

/* Whether a test has switched off what goes by this name. */
extern bool fault_is_set(const char *point);

/* The process ends here if a test asked for it. Costs nothing otherwise. */
#define FAULT_POINT(point) \
	do { \
		if (unlikely(guc_fault_point[0] != '\0')) \
			fault_reached(point); \
	} while (0)

#endif							/* OUTBOX_FAULT_H */
