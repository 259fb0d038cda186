/*
 * relay_discard.c
 *	  Messages that somebody gives up before they are sent.
 *
 * outbox.discard() and outbox.discard_topic() only ask. Whether a message of a
 * held lane has been sent is known to the relay alone, and changes from one
 * moment to the next; so it decides when the lane's cursor comes to the
 * message. In one transaction the message is entered in
 * outbox.discarded_message and the progress moves past it: none is ever both
 * sent and shown as discarded, and a crash at any point leaves it either
 * waiting, with the request still there, or discarded. Nothing of the lane is
 * in flight then, or progress could not move.
 *
 * A lane that cannot be sent to is read as well, up to the first message that
 * is not to be given up. When that comes to the end, the lane is given back to
 * the main cursor, and what it kept (a cursor, segments) is free.
 *
 * outbox.discard_topic() stores a snapshot: what it shows is meant, and nothing
 * that is published or commits later. A request is done, and removed, when no
 * held lane of its topic is left that has not read all it can mean: up to a
 * batch opened after it was seen.
 *
 * A message that merely waits for its turn can be given up by its id as well,
 * as an expired expectation does. The main cursor decides when it comes to it,
 * without waiting for what is in flight before: so the message can be entered
 * as discarded while the progress is still behind it, and has to be passed over
 * again after a crash. The request tells, which is kept until the progress on
 * disk covers the message. What may have been sent without our knowing, by a
 * relay before or a producer that was lost, is in doubt, and is sent.
 *
 * The records say what became of a message as long as it is retained. After a
 * segment was emptied, those are removed whose message is gone, a thousand at
 * a time.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "due.h"
#include "guc.h"
#include "message.h"
#include "relay_discard.h"
#include "xid_snapshot.h"

/* Between two tries to get a lock, or to remove records. */
#define WORK_INTERVAL_MS 100

/*
 * Between two looks whether messages to be given up are behind the progress, if
 * none is stored: giving a lane back moves it as well.
 */
#define UNFINISHED_INTERVAL_MS 5000

struct DiscardRequest
{
	pg_uuid_t	id;
	RelayTopic *topic;
	XidSnapshot *upto;			/* NULL: one message */
	char	   *by;
	bool		if_unsent;		/* not if it is in doubt, held or not */
	bool		done;			/* the one message is entered as discarded */
	uint64		count;			/* given up by this relay */
};

/* An entry of the hash of single messages. */
typedef struct DiscardMessage
{
	int64		id;
	DiscardRequest *request;
} DiscardMessage;

struct RelayDiscard
{
	MemoryContext context;		/* of the requests; reset when read again */
	List	   *requests;		/* of DiscardRequest */
	HTAB	   *messages;		/* those of one message; NULL: none */
	TimestampTz finish_at;		/* look whether some are done; 0: no need */
	bool		unfinished;		/* some wait for progress on disk */
	TimestampTz finished_at;	/* when that was looked at */

	/* messages that it shows may have been sent before; NULL: all may */
	CursorBound *doubt;

	/* of the chunk under way, in its transaction's memory */
	ArrayBuildState *ids;
	ArrayBuildState *event_ids;
	ArrayBuildState *created;
	ArrayBuildState *by;
	ArrayBuildState *topics;

	/* removing records */
	uint64		emptied_seen;
	bool		swept_once;
	TimestampTz sweep_at;		/* 0: nothing to remove */
	int64		swept_to;		/* id */
};

RelayDiscard *
discard_create(MemoryContext context)
{
	RelayDiscard *discard = MemoryContextAllocZero(context, sizeof(RelayDiscard));

	discard->context = AllocSetContextCreate(context, "outbox discard requests",
											 ALLOCSET_SMALL_SIZES);
	return discard;
}

/* ---- what was asked for ---- */

static void
add_message(RelayDiscard *discard, int64 id, DiscardRequest *request)
{
	DiscardMessage *message;

	if (discard->messages == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(int64);
		ctl.entrysize = sizeof(DiscardMessage);
		ctl.hcxt = discard->context;
		discard->messages = hash_create("outbox messages to discard", 64, &ctl,
										HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	message = hash_search(discard->messages, &id, HASH_ENTER, NULL);
	message->request = request;
}

void
discard_load(Relay *relay)
{
	RelayDiscard *discard = relay->discard;

	discard->requests = NIL;
	discard->messages = NULL;
	MemoryContextReset(discard->context);

	SPI_connect();
	if (SPI_execute("SELECT r.request_id, r.topic, r.message_id, r.upto, r.requested_by, r.if_unsent,"
					" EXISTS (SELECT FROM outbox.discarded_message AS d WHERE d.id = r.message_id)"
					" FROM outbox.discard_request AS r ORDER BY r.requested_at", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.discard_request");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(discard->context);
		DiscardRequest *request = palloc0(sizeof(DiscardRequest));
		bool		isnull;
		char	   *topic;
		Datum		id;
		Datum		upto;

		request->id = *DatumGetUUIDP(SPI_getbinval(tuple, desc, 1, &isnull));
		topic = TextDatumGetCString(SPI_getbinval(tuple, desc, 2, &isnull));
		request->by = TextDatumGetCString(SPI_getbinval(tuple, desc, 5, &isnull));
		request->if_unsent = DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull));
		request->done = DatumGetBool(SPI_getbinval(tuple, desc, 7, &isnull));
		upto = SPI_getbinval(tuple, desc, 4, &isnull);
		if (!isnull)
			request->upto = xid_snapshot_from_datum(upto);
		id = SPI_getbinval(tuple, desc, 3, &isnull);
		if (!isnull)
			add_message(discard, DatumGetInt64(id), request);
		if (strlen(topic) <= OUTBOX_TOPIC_MAX_LENGTH)
			request->topic = relay_topic(relay->topics, topic, (int) strlen(topic));
		discard->requests = lappend(discard->requests, request);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
}

static bool
is_asked_for(const RelayDiscard *discard, const RelayTopic *topic)
{
	ListCell   *lc;

	foreach(lc, discard->requests)
	{
		if (((const DiscardRequest *) lfirst(lc))->topic == topic)
			return true;
	}
	return false;
}

void
discard_begin_lane(Relay *relay, RelayHeld *held)
{
	if (held->discards_after)
		cursor_bound_release(held->discards_after);
	held->discards_after = NULL;
	held->discards = held->discarding = is_asked_for(relay->discard, held->topic);
	held->discard_at = 0;
	if (!held->discards)
		return;
	held->discards_after = cursor_bound_share(window_newest_bound(relay->window));

	/* it ends with a batch after this one, also if nothing is published */
	relay->caught_up = false;
}

void
discard_begin(Relay *relay)
{
	ListCell   *lc;

	foreach(lc, relay->held)
		discard_begin_lane(relay, (RelayHeld *) lfirst(lc));
	if (relay->discard->requests != NIL)
		relay->discard->finish_at = GetCurrentTimestamp();
}

/*
 * Whether a row may have been sent without our knowing. (With exactly once a
 * held lane withdraws nothing at all: what it passes over counts only with a
 * transaction of its own.)
 */
static bool
is_in_doubt(const RelayDiscard *discard, const CursorRow *row)
{
	return discard->doubt == NULL ||
		xid_snapshot_sees(discard->doubt->snapshot, row->xid);
}

DiscardRequest *
discard_request_for(const Relay *relay, const RelayHeld *held, const CursorRow *row)
{
	const RelayDiscard *discard = relay->discard;
	const RelayTopic *topic = held->topic;
	ListCell   *lc;

	if (!held->discards)
		return NULL;
	if (discard->messages)
	{
		DiscardMessage *message = hash_search(discard->messages, &row->id, HASH_FIND, NULL);

		if (message && message->request->topic == topic &&
			(message->request->done || !message->request->if_unsent ||
			 (!relay->exact && !is_in_doubt(discard, row))))
			return message->request;
	}
	foreach(lc, discard->requests)
	{
		DiscardRequest *request = (DiscardRequest *) lfirst(lc);

		if (request->topic == topic && request->upto &&
			xid_snapshot_sees(request->upto, row->xid))
			return request;
	}
	return NULL;
}

bool
discard_is_asked(const Relay *relay)
{
	return relay->discard->messages != NULL;
}

DiscardRequest *
discard_request_for_main(const Relay *relay, const RelayTopic *topic, const CursorRow *row)
{
	const RelayDiscard *discard = relay->discard;
	DiscardMessage *message;

	if (discard->messages == NULL)
		return NULL;
	message = hash_search(discard->messages, &row->id, HASH_FIND, NULL);
	if (message == NULL || message->request->topic != topic)
		return NULL;
	return message->request->done || !is_in_doubt(discard, row) ?
		message->request : NULL;
}

static void
doubt(RelayDiscard *discard, CursorBound *bound)
{
	if (discard->doubt)
		cursor_bound_release(discard->doubt);
	discard->doubt = cursor_bound_share(bound);
}

void
discard_first_bound(Relay *relay, CursorBound *bound)
{
	if (relay->discard->doubt == NULL)
		doubt(relay->discard, bound);
}

void
discard_doubt(Relay *relay)
{
	if (relay->discard->doubt != NULL)
		doubt(relay->discard, window_newest_bound(relay->window));
}

/* ---- in a chunk ---- */

bool
discard_lock(const OutboxCatalog *catalog)
{
	OutboxCatalog copy = *catalog;

	return ConditionalLockRelationOid(copy.discarded, RowExclusiveLock) && held_lock(&copy);
}

static void
accumulate(ArrayBuildState **state, Datum value, Oid type)
{
	*state = accumArrayResult(*state, value, false, type, CurTransactionContext);
}

void
discard_add(Relay *relay, DiscardRequest *request, const CursorRow *row)
{
	RelayDiscard *discard = relay->discard;
	bool		isnull;

	request->count++;
	request->done = true;
	accumulate(&discard->topics, CStringGetTextDatum(request->topic->name), TEXTOID);
	accumulate(&discard->ids, Int64GetDatum(row->id), INT8OID);
	accumulate(&discard->event_ids,
			   slot_getattr(row->slot, Anum_outbox_message_event_id, &isnull), UUIDOID);
	accumulate(&discard->created,
			   slot_getattr(row->slot, Anum_outbox_message_created_at, &isnull),
			   TIMESTAMPTZOID);
	accumulate(&discard->by, CStringGetTextDatum(request->by), TEXTOID);
}

bool
discard_store(Relay *relay)
{
	RelayDiscard *discard = relay->discard;
	Oid			types[] = {INT8ARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID};
	Datum		values[lengthof(types)];

	if (discard->ids == NULL)
		return false;
	values[0] = makeArrayResult(discard->ids, CurrentMemoryContext);
	values[1] = makeArrayResult(discard->event_ids, CurrentMemoryContext);
	values[2] = makeArrayResult(discard->created, CurrentMemoryContext);
	values[3] = makeArrayResult(discard->by, CurrentMemoryContext);
	values[4] = makeArrayResult(discard->topics, CurrentMemoryContext);
	discard->ids = discard->event_ids = discard->created = discard->by = discard->topics = NULL;

	SPI_connect();
	if (SPI_execute_with_args("INSERT INTO outbox.discarded_message"
							  " (id, event_id, topic, created_at, discarded_at, discarded_by)"
							  " SELECT d.id, d.event_id, d.topic, d.created_at, clock_timestamp(), d.by"
							  " FROM unnest($1, $2, $3, $4, $5) AS d (id, event_id, created_at, by, topic)"
							  " ON CONFLICT (id) DO NOTHING",
							  lengthof(types), types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write outbox.discarded_message");
	SPI_finish();
	return true;
}

void
discard_came_to(Relay *relay, RelayHeld *held)
{
	/* what was asked for may be in the next batch only */
	if (!held->discards || window_newest_bound(relay->window) == held->discards_after)
		return;
	held->discards = false;
	relay->discard->finish_at = GetCurrentTimestamp();
}

/* ---- afterwards ---- */

/* Whether a lane of the topic has not read all that may be meant. */
static bool
is_under_way(const Relay *relay, const RelayTopic *topic)
{
	ListCell   *lc;

	foreach(lc, relay->held)
	{
		const RelayHeld *held = (const RelayHeld *) lfirst(lc);

		if (held->topic == topic && held->discards)
			return true;
	}
	return false;
}

static void
report(const DiscardRequest *request)
{
	if (request->count > 0)
		ereport(LOG,
				(errmsg("outbox_kafka discarded " UINT64_FORMAT " messages of topic \"%s\", as \"%s\" asked",
						request->count, request->topic->name, request->by)));
}

/* That request is done and removed, column 1 is its id. */
static void
forget(RelayDiscard *discard, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	pg_uuid_t  *id = DatumGetUUIDP(SPI_getbinval(tuple, desc, 1, &isnull));
	ListCell   *lc;

	foreach(lc, discard->requests)
	{
		DiscardRequest *request = (DiscardRequest *) lfirst(lc);

		if (memcmp(&request->id, id, sizeof(*id)) != 0)
			continue;
		report(request);
		discard->requests = foreach_delete_current(discard->requests, lc);
	}
}

/* Remove the requests that are done. */
static void
finish(Relay *relay, TimestampTz now)
{
	RelayDiscard *discard = relay->discard;
	ArrayBuildState *ids = NULL;
	const OutboxCatalog *catalog;
	Oid			types[] = {UUIDARRAYOID};
	Datum		values[lengthof(types)];
	List	   *done = NIL;
	ListCell   *lc;
	uint64		finished;

	discard->finish_at = 0;
	discard->finished_at = relay->stored_at;
	discard->unfinished = false;
	foreach(lc, discard->requests)
	{
		DiscardRequest *request = (DiscardRequest *) lfirst(lc);

		if (!is_under_way(relay, request->topic))
			done = lappend(done, request);
	}
	if (done == NIL)
		return;

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog == NULL ||
		!ConditionalLockRelationOid(catalog->discard_request, RowExclusiveLock))
	{
		relay_commit(relay);
		discard->finish_at = TimestampTzPlusMilliseconds(now, WORK_INTERVAL_MS);
		return;
	}
	foreach(lc, done)
		accumulate(&ids, UUIDPGetDatum(&((DiscardRequest *) lfirst(lc))->id), UUIDOID);
	values[0] = makeArrayResult(ids, CurrentMemoryContext);
	SPI_connect();

	/* that for a message is what keeps it from being sent after a crash */
	if (SPI_execute_with_args("DELETE FROM outbox.discard_request AS r"
							  " WHERE r.request_id = ANY ($1) AND (r.message_id IS NULL OR NOT EXISTS ("
							  "  SELECT FROM outbox.message AS m WHERE m.id = r.message_id"
							  "  AND NOT outbox.is_delivered(m.xid, m.id, m.topic, m.key, m.partition)))"
							  " RETURNING r.request_id",
							  lengthof(types), types, values, NULL, false, 0) != SPI_OK_DELETE_RETURNING)
		elog(ERROR, "could not write outbox.discard_request");
	finished = SPI_processed;
	for (uint64 i = 0; i < finished; i++)
		forget(discard, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
	SPI_finish();
	relay_commit(relay);
	discard->unfinished = finished < (uint64) list_length(done);
	if (discard->unfinished)
		discard->finish_at = TimestampTzPlusMilliseconds(now, UNFINISHED_INTERVAL_MS);
}

/* Remove some records of messages that are gone. Returns false at the end. */
static bool
sweep(Relay *relay)
{
	RelayDiscard *discard = relay->discard;
	const OutboxCatalog *catalog;
	OutboxCatalog copy;
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(discard->swept_to), Int32GetDatum(guc_retention)};
	bool		locked;
	bool		isnull = true;

	relay_begin(relay);
	catalog = relay_catalog(relay);
	if (catalog == NULL)
	{
		relay_commit(relay);
		return false;
	}
	copy = *catalog;
	locked = ConditionalLockRelationOid(copy.discarded, RowExclusiveLock) &&
		ConditionalLockRelationOid(copy.message, AccessShareLock);
	for (int i = 0; locked && i < OUTBOX_SEGMENTS; i++)
		locked = ConditionalLockRelationOid(copy.leaf[i], AccessShareLock);
	if (!locked)
	{
		relay_commit(relay);
		return true;
	}

	/* what was parked from a copy has no message: it is kept as long as one */
	SPI_connect();
	if (SPI_execute_with_args("WITH looked_at AS ("
							  "  SELECT d.id, d.event_id, d.discarded_at FROM outbox.discarded_message AS d"
							  "  WHERE d.id > $1 ORDER BY d.id LIMIT 1000),"
							  " gone AS ("
							  "  DELETE FROM outbox.discarded_message AS d USING looked_at AS s"
							  "  WHERE d.id = s.id"
							  "  AND s.discarded_at < now() - make_interval(secs => $2)"
							  "  AND NOT EXISTS (SELECT FROM outbox.message AS m"
							  "   WHERE m.event_id = s.event_id AND m.id = s.id))"
							  " SELECT max(id) FROM looked_at",
							  lengthof(types), types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not write outbox.discarded_message");
	if (SPI_processed == 1)
	{
		Datum		last = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			discard->swept_to = DatumGetInt64(last);
	}
	SPI_finish();
	relay_commit(relay);
	return !isnull;
}

void
discard_work(Relay *relay, TimestampTz now)
{
	RelayDiscard *discard = relay->discard;
	uint64		emptied = segment_ring_emptied(relay->ring);

	/* the last relay may have emptied one and not come to this */
	if (emptied != discard->emptied_seen || !discard->swept_once)
	{
		discard->emptied_seen = emptied;
		discard->swept_once = true;
		discard->swept_to = PG_INT64_MIN;
		discard->sweep_at = now;
	}
	if (discard->sweep_at != 0 && discard->sweep_at <= now)
		discard->sweep_at = sweep(relay) ?
			TimestampTzPlusMilliseconds(now, WORK_INTERVAL_MS) : 0;

	if (discard->unfinished && relay->stored_at != discard->finished_at)
		discard->finish_at = due_sooner(discard->finish_at,
										TimestampTzPlusMilliseconds(relay->stored_at, WORK_INTERVAL_MS));

	/* only once all that is paused is held */
	if (discard->finish_at != 0 && discard->finish_at <= now && relay->control_known)
		finish(relay, now);
}

TimestampTz
discard_due(const Relay *relay)
{
	return due_sooner(relay->discard->sweep_at,
					  relay->control_known ? relay->discard->finish_at : 0);
}
