/*
 * transaction_state.c
 *	  What is known of a producer's Kafka transactions, on disk.
 *
 * One row for each of the relay's two producers, see relay_transaction.c. It is
 * written with every definition, so as the relay's progress is (row_place.h).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "transaction_state.h"

#define Natts_relay_transaction 5
#define Anum_relay_transaction_producer 1
#define Anum_relay_transaction_defined 2
#define Anum_relay_transaction_committed 3
#define Anum_relay_transaction_cluster 4
#define Anum_relay_transaction_parked 5

static void
read_text(HeapTuple tuple, TupleDesc desc, int attribute, char *target, size_t size)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, attribute, desc, &isnull);

	target[0] = '\0';
	if (!isnull)
		strlcpy(target, TextDatumGetCString(value), size);
}

bool
transaction_state_read(const OutboxCatalog *catalog, int producer, TransactionState *state)
{
	Relation	rel;
	Snapshot	snapshot;
	HeapTuple	tuple;

	memset(state, 0, sizeof(*state));
	if (!cursor_lock(catalog->relay_transaction, AccessShareLock, CURSOR_NO_WAIT))
		return false;
	rel = table_open(catalog->relay_transaction, NoLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	tuple = row_place_read(rel, producer, snapshot);
	UnregisterSnapshot(snapshot);
	if (tuple != NULL)
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		Datum		value;

		read_text(tuple, desc, Anum_relay_transaction_defined,
				  state->defined, sizeof(state->defined));
		read_text(tuple, desc, Anum_relay_transaction_committed,
				  state->committed, sizeof(state->committed));
		read_text(tuple, desc, Anum_relay_transaction_cluster,
				  state->cluster, sizeof(state->cluster));
		value = heap_getattr(tuple, Anum_relay_transaction_parked, desc, &isnull);
		if (!isnull)
		{
			Datum	   *ids;
			int			count;

			deconstruct_array(DatumGetArrayTypeP(value), INT8OID, sizeof(int64),
							  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &ids, NULL, &count);
			for (int i = 0; i < Min(count, TRANSACTION_PARKED); i++)
				state->parked[state->nparked++] = DatumGetInt64(ids[i]);
		}
	}
	table_close(rel, NoLock);
	return tuple != NULL;
}

static void
form_text(const char *text, int attribute, Datum *values, bool *nulls)
{
	nulls[attribute - 1] = (text[0] == '\0');
	if (text[0] != '\0')
		values[attribute - 1] = CStringGetTextDatum(text);
}

bool
transaction_state_write(const OutboxCatalog *catalog, int producer, RowPlace *place,
						const TransactionState *state)
{
	Relation	rel;
	Datum		values[Natts_relay_transaction];
	bool		nulls[Natts_relay_transaction] = {false};
	bool		found;

	if (!cursor_lock(catalog->relay_transaction, RowExclusiveLock, CURSOR_NO_WAIT))
		return false;
	rel = table_open(catalog->relay_transaction, NoLock);
	found = row_place_find(rel, place, producer);
	if (found)
	{
		values[Anum_relay_transaction_producer - 1] = Int32GetDatum(producer);
		form_text(state->defined, Anum_relay_transaction_defined, values, nulls);
		form_text(state->committed, Anum_relay_transaction_committed, values, nulls);
		form_text(state->cluster, Anum_relay_transaction_cluster, values, nulls);
		nulls[Anum_relay_transaction_parked - 1] = (state->nparked == 0);
		if (state->nparked > 0)
		{
			Datum		ids[TRANSACTION_PARKED];

			for (int i = 0; i < state->nparked; i++)
				ids[i] = Int64GetDatum(state->parked[i]);
			values[Anum_relay_transaction_parked - 1] =
				PointerGetDatum(construct_array(ids, state->nparked, INT8OID, sizeof(int64),
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
		}
		row_place_replace(rel, place,
						  heap_form_tuple(RelationGetDescr(rel), values, nulls));
	}
	table_close(rel, NoLock);
	return found;
}
