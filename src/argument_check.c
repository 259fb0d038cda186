/*
 * argument_check.c
 *	  See argument_check.h.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "argument_check.h"

#define LONGEST_YEARS 100
#define LONGEST_DAYS (LONGEST_YEARS * INT64CONST(366))

void
argument_check_not_null(FunctionCallInfo fcinfo, int argument, const char *what)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be NULL", what)));
}

static bool
is_within(int64 value, int64 limit)
{
	return value >= -limit && value <= limit;
}

static char *
interval_text(const Interval *interval)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(interval)));
}

/* As interval_cmp() has it, so not only where all parts are zero. */
static int
sign(const Interval *interval)
{
	Interval	zero = {0};

	return DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(interval),
											 IntervalPGetDatum(&zero)));
}

bool
argument_is_zero(const Interval *interval)
{
	return sign(interval) == 0;
}

void
argument_check_positive(const Interval *interval, const char *what)
{
	if (sign(interval) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be positive, it is \"%s\"", what, interval_text(interval))));
	/* each for itself: they are added one after the other */
	if (!is_within(interval->month, LONGEST_YEARS * MONTHS_PER_YEAR) ||
		!is_within(interval->day, LONGEST_DAYS) ||
		!is_within(interval->time, LONGEST_DAYS * USECS_PER_DAY))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at most %d years, it is \"%s\"", what, LONGEST_YEARS,
						interval_text(interval))));
}
