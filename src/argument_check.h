/*
 * argument_check.h
 *	  Checks of SQL functions' arguments: errors that name the argument.
 */
#ifndef OUTBOX_ARGUMENT_CHECK_H
#define OUTBOX_ARGUMENT_CHECK_H

#include "datatype/timestamp.h"
#include "fmgr.h"

/* Argument number argument, from 0, which is called what. */
extern void argument_check_not_null(FunctionCallInfo fcinfo, int argument, const char *what);

extern bool argument_is_zero(const Interval *interval);

/*
 * Positive, and short enough that a worker that adds it to the present time, or
 * doubles it, gets something that exists: an error there would come again and
 * again, and keep the worker from everything else.
 */
extern void argument_check_positive(const Interval *interval, const char *what);

#endif							/* OUTBOX_ARGUMENT_CHECK_H */
