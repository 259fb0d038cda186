/*
 * catalog.c
 *	  The OIDs of the extension's own objects, cached for the session.
 *
 * The extension is found by its name in pg_extension, its schema by name among
 * its members, and everything else by name inside that schema. Nobody but the
 * extension's owner can put a table there, and a member cannot be dropped
 * alone, so names inside the schema can be trusted; a foreign schema outbox is
 * never looked into.
 *
 * All names are looked up at once. What was found is forgotten as soon as one
 * of the relations is invalidated (DROP EXTENSION, a segment emptied, a change
 * by an update script) or any schema is (RENAME). pg_extension itself sends no
 * invalidations before PostgreSQL 18: an update script has to alter at least
 * one of the tables, or sessions go on with the version they know.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "catalog.h"

static OutboxCatalog catalog;
static bool catalog_valid = false;

/* An invalidation came while the names were being looked up. */
static bool catalog_stale = false;

static bool
is_ours(Oid relid)
{
	if (relid == catalog.message || relid == catalog.sequence ||
		relid == catalog.segment || relid == catalog.relay_state ||
		relid == catalog.relay_position || relid == catalog.relay_control ||
		relid == catalog.publish_grant || relid == catalog.parked ||
		relid == catalog.held_lane || relid == catalog.discarded ||
		relid == catalog.discard_request ||
		relid == catalog.topic_limit)
		return true;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (relid == catalog.leaf[i] || relid == catalog.leaf_id_index[i] ||
			relid == catalog.leaf_xid_index[i] ||
			relid == catalog.leaf_event_index[i])
			return true;
	}

	return false;
}

static void
relation_invalidated(Datum arg, Oid relid)
{
	if (!catalog_valid || !OidIsValid(relid) || is_ours(relid))
	{
		catalog_valid = false;
		catalog_stale = true;
	}
}

static void
schema_invalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	catalog_valid = false;
	catalog_stale = true;
}

/*
 * Our row of pg_extension. False if there is none. *version is palloc'd.
 */
static bool
find_extension(Oid *extension, Oid *owner, char **version)
{
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum(OUTBOX_EXTENSION));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);

	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		Form_pg_extension form = (Form_pg_extension) GETSTRUCT(tuple);
		Datum		value;
		bool		isnull;

		value = heap_getattr(tuple, Anum_pg_extension_extversion,
							 RelationGetDescr(rel), &isnull);
		*extension = form->oid;
		*owner = form->extowner;
		*version = isnull ? pstrdup("") : TextDatumGetCString(value);
	}

	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	return found;
}

static Oid
find_relation(const char *name, Oid schema)
{
	Oid			relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" of extension \"%s\" is missing",
						OUTBOX_SCHEMA, name, OUTBOX_EXTENSION),
				 errhint("Restore the extension's objects, or create the extension anew.")));

	return relid;
}

static void
find_relations(OutboxCatalog *found)
{
	Oid			schema = found->schema;

	found->message = find_relation("message", schema);
	found->sequence = find_relation("message_id", schema);
	found->segment = find_relation("segment", schema);
	found->relay_state = find_relation("relay_state", schema);
	found->relay_position = find_relation("relay_position", schema);
	found->relay_control = find_relation("relay_control", schema);
	found->publish_grant = find_relation("publish_grant", schema);
	found->parked = find_relation("parked_message", schema);
	found->held_lane = find_relation("held_lane", schema);
	found->discarded = find_relation("discarded_message", schema);
	found->discard_request = find_relation("discard_request", schema);
	found->relay_transaction = find_relation("relay_transaction", schema);
	found->relay_conflict = find_relation("relay_conflict", schema);
	found->topic_limit = find_relation("topic_limit", schema);

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "message_%d", i);
		found->leaf[i] = find_relation(name, schema);
		snprintf(name, sizeof(name), "message_%d_id", i);
		found->leaf_id_index[i] = find_relation(name, schema);
		snprintf(name, sizeof(name), "message_%d_xid_id", i);
		found->leaf_xid_index[i] = find_relation(name, schema);
		snprintf(name, sizeof(name), "message_%d_event_id", i);
		found->leaf_event_index[i] = find_relation(name, schema);
	}
}

/*
 * Fill the cache. *version is set, palloc'd, when the extension is there but
 * of a version this library does not know, else NULL.
 */
static CatalogExtensionState
load(char **version)
{
	static bool registered = false;
	OutboxCatalog found = {0};
	char	   *extversion;

	Assert(IsTransactionState());

	if (!registered)
	{
		CacheRegisterRelcacheCallback(relation_invalidated, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, schema_invalidated, (Datum) 0);
		registered = true;
	}

	*version = NULL;
	catalog_valid = false;
	catalog_stale = false;

	if (!find_extension(&found.extension, &found.owner, &extversion))
		return CATALOG_ABSENT;

	if (strcmp(extversion, OUTBOX_SQL_VERSION) != 0)
	{
		*version = extversion;
		return CATALOG_UNKNOWN_VERSION;
	}
	pfree(extversion);

	found.schema = get_namespace_oid(OUTBOX_SCHEMA, true);
	if (!OidIsValid(found.schema) ||
		getExtensionOfObject(NamespaceRelationId, found.schema) != found.extension)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_SCHEMA_NAME),
				 errmsg("schema \"%s\" of extension \"%s\" is missing",
						OUTBOX_SCHEMA, OUTBOX_EXTENSION),
				 errhint("The schema must keep its name and belong to the extension.")));

	find_relations(&found);

	catalog = found;
	catalog_valid = !catalog_stale;

	return CATALOG_READY;
}

const OutboxCatalog *
catalog_get(bool missing_ok)
{
	char	   *version;

	if (likely(catalog_valid))
		return &catalog;

	switch (load(&version))
	{
		case CATALOG_READY:
			return &catalog;

		case CATALOG_ABSENT:
			if (!missing_ok)
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_OBJECT),
						 errmsg("extension \"%s\" does not exist in this database",
								OUTBOX_EXTENSION),
						 errhint("Run CREATE EXTENSION %s.", OUTBOX_EXTENSION)));
			break;

		case CATALOG_UNKNOWN_VERSION:
			if (!missing_ok)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("extension \"%s\" has version %s, the library serves version %s",
								OUTBOX_EXTENSION, version, OUTBOX_SQL_VERSION),
						 errhint("Run ALTER EXTENSION %s UPDATE, or install the library of that version and restart the server.",
								 OUTBOX_EXTENSION)));
			break;
	}

	return NULL;
}

Oid
catalog_type(Oid schema, const char *name)
{
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									   CStringGetDatum(name), ObjectIdGetDatum(schema));

	if (!OidIsValid(type))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("type \"%s\" of extension \"%s\" is missing", name, OUTBOX_EXTENSION)));
	return type;
}

void
catalog_lock_now(const char *table, LOCKMODE mode)
{
	RangeVar   *name = makeRangeVar(pstrdup("outbox"), pstrdup(table), -1);

	(void) RangeVarGetRelidExtended(name, mode, RVR_NOWAIT, NULL, NULL);
}
