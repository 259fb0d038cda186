/*
 * compat.h
 *	  The only place that asks which PostgreSQL this is (15 to 18).
 *
 * Wrappers carry the newest signature; no core name is redefined. Include it
 * after postgres.h.
 */
#ifndef OUTBOX_COMPAT_H
#define OUTBOX_COMPAT_H

#include "access/genam.h"
#include "access/transam.h"
#include "catalog/index.h"
#include "catalog/pg_database.h"
#include "catalog/pg_proc.h"
#include "lib/dshash.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/regproc.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "outbox_kafka needs PostgreSQL 15 or newer"
#endif

#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif

/* 16: no longer part of postgres.h */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 18: pg_noreturn, which stands before the declaration; so does this one */
#if PG_VERSION_NUM >= 180000
#define compat_noreturn pg_noreturn
#else
#define compat_noreturn pg_attribute_noreturn()
#endif

/* 17: backends got numbers of their own and GetNumberFromPGProc */
static inline uint32
compat_my_proc_number(void)
{
#if PG_VERSION_NUM >= 170000
	return (uint32) MyProcNumber;
#else
	return (uint32) MyProc->pgprocno;
#endif
}

/* 17: wait events of extensions have names */
static inline uint32
compat_wait_event(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	(void) name;
	return PG_WAIT_EXTENSION;
#endif
}

/* 17: a resource owner instead of a memory context; NULL: for the session */
static inline WaitEventSet *
compat_create_wait_event_set(int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, nevents);
#else
	return CreateWaitEventSet(TopMemoryContext, nevents);
#endif
}

/* 18: index scans take a place for instrumentation */
static inline IndexScanDesc
compat_index_beginscan(Relation heap, Relation index, Snapshot snapshot,
					   int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(heap, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(heap, index, snapshot, nkeys, 0);
#endif
}

/* 16: relfilenodes became relfilenumbers */
static inline void
compat_new_relfilenumber(Relation rel)
{
#if PG_VERSION_NUM >= 160000
	RelationSetNewRelfilenumber(rel, rel->rd_rel->relpersistence);
#else
	RelationSetNewRelfilenode(rel, rel->rd_rel->relpersistence);
#endif
}

/* 17: the statement comes along, for event triggers; here there is none */
static inline bool
compat_reindex_relation(Oid relid, int flags)
{
	ReindexParams params = {0};

#if PG_VERSION_NUM >= 170000
	return reindex_relation(NULL, relid, flags, &params);
#else
	return reindex_relation(relid, flags, &params);
#endif
}

/* 16: one ownership check for every class of objects */
static inline bool
compat_database_ownercheck(Oid dboid, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, dboid, roleid);
#else
	return pg_database_ownercheck(dboid, roleid);
#endif
}

/* 16: and one check of privileges */
static inline AclResult
compat_proc_aclcheck(Oid function, Oid roleid, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ProcedureRelationId, function, roleid, mode);
#else
	return pg_proc_aclcheck(function, roleid, mode);
#endif
}

/* 16: errors may be returned instead */
static inline List *
compat_string_to_qualified_name_list(const char *string)
{
#if PG_VERSION_NUM >= 160000
	return stringToQualifiedNameList(string, NULL);
#else
	return stringToQualifiedNameList(string);
#endif
}

/* 17: keys are copied by a function. Keys here are plain memory */
static inline dshash_parameters
compat_dshash_parameters(size_t key_size, size_t entry_size, int tranche_id)
{
	dshash_parameters parameters = {
		.key_size = key_size,
		.entry_size = entry_size,
		.compare_function = dshash_memcmp,
		.hash_function = dshash_memhash,
#if PG_VERSION_NUM >= 170000
		.copy_function = dshash_memcpy,
#endif
		.tranche_id = tranche_id,
	};

	return parameters;
}

/* 17: ShmemVariableCache became TransamVariables */
static inline TransactionId
compat_oldest_clog_xid(void)
{
#if PG_VERSION_NUM >= 170000
	return TransamVariables->oldestClogXid;
#else
	return ShmemVariableCache->oldestClogXid;
#endif
}

/* 18: whether a deferrable one counts became a choice */
static inline Oid
compat_primary_key_index(Relation rel)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(rel, false);
#else
	return RelationGetPrimaryKeyIndex(rel);
#endif
}

#endif							/* OUTBOX_COMPAT_H */
