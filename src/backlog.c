/*
 * backlog.c
 *	  How much disk space the messages take, and the limit to it
 *	  (outbox_kafka.max_backlog).
 *
 * Publishers compare a number in shared memory with the limit; the relay
 * measures it, about once a second while somebody publishes and while there is
 * little room left (relay_backlog.c). A publisher that finds no wish to measure
 * noted since the last time notes one and wakes the relay, before its commit:
 * so one huge transaction is refused as well, with what it has written in a
 * second or so on top of the limit.
 *
 * Where no relay is attached (the library is not preloaded, there is no worker
 * for it) publishers measure themselves, each at most once a second: that is
 * when the messages pile up.
 *
 * What counts is what lies on disk: also messages that are delivered and kept
 * for outbox_kafka.retention, and rows of transactions that rolled back. The
 * relay gives those up before the limit is reached (segment_ring.c).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_class.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "guc.h"
#include "shmem.h"

/* Without a relay, a session measures this often while it publishes. */
#define MEASURE_INTERVAL_MS 1000

/* With the policy "warn", a session is warned this often. */
#define WARN_INTERVAL_MS 60000

#define BACKLOG_COLUMNS 3

PG_FUNCTION_INFO_V1(outbox_kafka_backlog);

uint64
backlog_limit(void)
{
	return (uint64) guc_max_backlog * 1024 * 1024;
}

/*
 * Add up a relation and, for a table, its indexes and its TOAST table. False:
 * one of them is locked or gone. Locks are given back.
 */
static bool
add_relation(Oid relid, uint64 *bytes)
{
	Relation	rel;
	bool		complete = true;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
	{
		UnlockRelationOid(relid, AccessShareLock);
		return false;
	}

	*bytes += (uint64) RelationGetNumberOfBlocks(rel) * BLCKSZ;
	if (rel->rd_rel->relkind != RELKIND_INDEX)
	{
		List	   *parts = RelationGetIndexList(rel);
		ListCell   *cell;

		if (OidIsValid(rel->rd_rel->reltoastrelid))
			parts = lappend_oid(parts, rel->rd_rel->reltoastrelid);
		foreach(cell, parts)
			complete = complete && add_relation(lfirst_oid(cell), bytes);
		list_free(parts);
	}
	relation_close(rel, AccessShareLock);
	return complete;
}

uint64
backlog_measure(const OutboxCatalog *catalog)
{
	static uint64 last[OUTBOX_SEGMENTS];
	OutboxCatalog own = *catalog;	/* locking may replace what we were given */
	uint64		total = 0;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		uint64		bytes = 0;

		if (add_relation(own.leaf[i], &bytes))
			last[i] = bytes;
		total += last[i];
	}
	return total;
}

/* What lies on disk, as far as a publisher knows. */
static uint64
known_size(void)
{
	static TimestampTz measured_at = 0;
	static uint64 measured = 0;
	RelaySlot  *slot = shared_state ? shmem_find_slot(MyDatabaseId) : NULL;
	uint32		procno = slot ? pg_atomic_read_u32(&slot->worker.procno) : SLOT_NO_PROC;
	TimestampTz now;

	if (procno != SLOT_NO_PROC)
	{
		if (pg_atomic_read_u32(&slot->backlog_wanted) == 0)
		{
			pg_atomic_write_u32(&slot->backlog_wanted, 1);
			shmem_set_latch(procno);
		}
		return pg_atomic_read_u64(&slot->backlog);
	}

	now = GetCurrentTimestamp();
	if (measured_at == 0 ||
		TimestampDifferenceExceeds(measured_at, now, MEASURE_INTERVAL_MS))
	{
		measured = backlog_measure(catalog_get(false));
		measured_at = now;
	}
	return measured;
}

static char *
pretty(uint64 bytes)
{
	return text_to_cstring(DatumGetTextPP(DirectFunctionCall1(pg_size_pretty,
															  Int64GetDatum((int64) bytes))));
}

void
backlog_check(void)
{
	static TimestampTz warned_at = 0;
	uint64		size;
	TimestampTz now;

	if (likely(guc_max_backlog == 0))
		return;
	size = known_size();
	if (likely(size <= backlog_limit()))
		return;

	if (guc_backlog_policy == BACKLOG_REFUSE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the outbox is full, the message is refused"),
				 errdetail("Messages take %s on disk, outbox_kafka.max_backlog is %s.",
						   pretty(size), pretty(backlog_limit())),
				 errhint("Room is made when messages are delivered: see outbox.relay_status.")));

	now = GetCurrentTimestamp();
	if (warned_at == 0 ||
		TimestampDifferenceExceeds(warned_at, now, WARN_INTERVAL_MS))
	{
		warned_at = now;
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the outbox takes more disk space than it should"),
				 errdetail("Messages take %s on disk, outbox_kafka.max_backlog is %s.",
						   pretty(size), pretty(backlog_limit())),
				 errhint("Room is made when messages are delivered: see outbox.relay_status.")));
	}
}

/* Behind outbox.backlog: measured now. */
Datum
outbox_kafka_backlog(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[BACKLOG_COLUMNS];
	bool		nulls[BACKLOG_COLUMNS] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	values[0] = Int64GetDatum((int64) backlog_measure(catalog_get(false)));
	values[1] = Int64GetDatum((int64) backlog_limit());
	nulls[1] = (guc_max_backlog == 0);
	values[2] = CStringGetTextDatum(guc_backlog_policy == BACKLOG_REFUSE ? "refuse" : "warn");

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
