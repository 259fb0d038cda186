/*
 * lane.c
 *	  Which partition a message goes to.
 *
 * With a key: where the Java clients put it. Without one: a few hundred
 * neighbouring ids to one partition, the next ones to the next, so that
 * batches are full; taken from the id, so that it needs no memory.
 */
#include "postgres.h"

#include "fmgr.h"

#include "kafka.h"
#include "lane.h"
#include "message.h"

/* Neighbouring ids that share a partition. */
#define STICKY_IDS 500

PG_FUNCTION_INFO_V1(outbox_kafka_lane_of_message);

static int
lane_of(const bytea *key, int64 id, int partitions)
{
	if (key != NULL)
		return kafka_partition_for_key(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key),
									   partitions);
	return (int) ((uint64) id / STICKY_IDS % (uint64) partitions);
}

int
lane_of_message(TupleTableSlot *slot, int partitions)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, Anum_outbox_message_partition, &isnull);
	int64		id;
	Datum		key;

	if (!isnull)
		return DatumGetInt32(value);
	id = DatumGetInt64(slot_getattr(slot, Anum_outbox_message_id, &isnull));
	key = slot_getattr(slot, Anum_outbox_message_key, &isnull);
	return lane_of(isnull ? NULL : DatumGetByteaPP(key), id, partitions);
}

/*
 * outbox.lane_of_message(key, partition, id, partitions): the same for views.
 * NULL if the number of partitions is.
 */
Datum
outbox_kafka_lane_of_message(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(3) || PG_GETARG_INT32(3) <= 0)
		PG_RETURN_NULL();
	if (!PG_ARGISNULL(1))
		PG_RETURN_INT32(PG_GETARG_INT32(1));
	PG_RETURN_INT32(lane_of(PG_ARGISNULL(0) ? NULL : PG_GETARG_BYTEA_PP(0),
							PG_ARGISNULL(2) ? 0 : PG_GETARG_INT64(2),
							PG_GETARG_INT32(3)));
}
