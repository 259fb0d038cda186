/*
 * publish_grant.c
 *	  Who may publish to which topic, by outbox.publish_grant.
 *
 * A role may publish to a topic when it has the privileges of a granted role
 * one of whose patterns matches. Positive answers are remembered for the
 * session, by role and topic. They are forgotten when the table changes (its
 * trigger sends a relcache invalidation of it, which reaches every session at
 * the commit of the change), and when any role or membership does.
 *
 * The table is read directly, so neither search_path nor row security nor the
 * privileges of the caller have a part in it, and under the latest snapshot,
 * so that a revoke also binds a transaction that began before it.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "outbox_kafka.h"
#include "publish_grant.h"

/* Columns of outbox.publish_grant, in the order of the install script */
#define Anum_outbox_publish_grant_role_name 1
#define Anum_outbox_publish_grant_topics 2

/* Answers remembered before all are forgotten */
#define MAX_ANSWERS 4096

typedef struct GrantKey
{
	Oid			role;
	char		topic[OUTBOX_TOPIC_MAX_LENGTH + 3]; /* zero padded */
} GrantKey;

static HTAB *answers = NULL;

/* The last positive answer; most sessions publish to one topic at a time. */
static GrantKey last_answer;
static int	last_topic_length;

/* The table that the answers were read from */
static Oid	answers_relid = InvalidOid;

/* An invalidation came: the answers have to be forgotten before the next use. */
static bool answers_stale = true;

PG_FUNCTION_INFO_V1(outbox_kafka_publish_grant_changed);

static void
grants_invalidated(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == answers_relid)
		answers_stale = true;
}

static void
roles_invalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	answers_stale = true;
}

static void
forget_answers(void)
{
	static bool registered = false;
	HASHCTL		control = {0};

	if (!registered)
	{
		CacheRegisterRelcacheCallback(grants_invalidated, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHOID, roles_invalidated, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, roles_invalidated, (Datum) 0);
		registered = true;
	}

	last_answer.role = InvalidOid;

	if (answers != NULL)
	{
		if (hash_get_num_entries(answers) == 0)
			return;
		hash_destroy(answers);
		answers = NULL;
	}

	control.keysize = sizeof(GrantKey);
	control.entrysize = sizeof(GrantKey);
	control.hcxt = TopMemoryContext;
	answers = hash_create("outbox_kafka publish grants", 64, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Whether a pattern covers a topic; "*" stands for any characters, all else
 * for itself. Time is bounded by the product of the lengths.
 */
static bool
pattern_matches(const char *pattern, int pattern_length,
				const char *topic, int topic_length)
{
	int			p = 0;
	int			t = 0;
	int			star = -1;
	int			resume = 0;

	while (t < topic_length)
	{
		if (p < pattern_length && pattern[p] == '*')
		{
			star = p++;
			resume = t;
		}
		else if (p < pattern_length && pattern[p] == topic[t])
		{
			p++;
			t++;
		}
		else if (star >= 0)
		{
			p = star + 1;
			t = ++resume;
		}
		else
			return false;
	}

	while (p < pattern_length && pattern[p] == '*')
		p++;

	return p == pattern_length;
}

/*
 * Whether one row of outbox.publish_grant lets the role publish to the topic.
 */
static bool
row_grants(HeapTuple tuple, TupleDesc desc, Oid role,
		   const char *topic, int length)
{
	Datum		value;
	bool		isnull;
	char	   *role_name;
	Oid			granted;
	Datum	   *patterns;
	bool	   *nulls;
	int			npatterns;

	value = heap_getattr(tuple, Anum_outbox_publish_grant_role_name, desc, &isnull);
	role_name = TextDatumGetCString(value);
	granted = get_role_oid(role_name, true);
	pfree(role_name);

	if (!OidIsValid(granted) || !has_privs_of_role(role, granted))
		return false;

	value = heap_getattr(tuple, Anum_outbox_publish_grant_topics, desc, &isnull);
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &patterns, &nulls, &npatterns);

	for (int i = 0; i < npatterns; i++)
	{
		text	   *pattern;

		if (nulls[i])
			continue;
		pattern = DatumGetTextPP(patterns[i]);
		if (pattern_matches(VARDATA_ANY(pattern), VARSIZE_ANY_EXHDR(pattern),
							topic, length))
			return true;
	}

	return false;
}

/*
 * Look it up in the table. Leaks a little memory in the current context.
 */
static bool
table_grants(Oid role, const char *topic, int length)
{
	Relation	rel;
	Snapshot	snapshot;
	TableScanDesc scan;
	HeapTuple	tuple;
	bool		granted = false;

	rel = table_open(answers_relid, AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);

	while (!granted && (tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
		granted = row_grants(tuple, RelationGetDescr(rel), role, topic, length);

	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);

	return granted;
}

static void
remember(const GrantKey *key, int length)
{
	if (hash_get_num_entries(answers) >= MAX_ANSWERS)
		forget_answers();

	(void) hash_search(answers, key, HASH_ENTER, NULL);
	last_answer = *key;
	last_topic_length = length;
}

bool
publish_grant_is_administrator(void)
{
	Oid			role = GetUserId();

	return superuser_arg(role) ||
		has_privs_of_role(role, catalog_get(false)->owner);
}

void
publish_grant_check(const char *topic, int length)
{
	Oid			role = GetUserId();
	const OutboxCatalog *catalog;
	GrantKey	key = {0};

	AcceptInvalidationMessages();

	if (superuser_arg(role))
		return;

	catalog = catalog_get(false);
	if (answers_stale || answers == NULL)
	{
		forget_answers();
		answers_relid = catalog->publish_grant;
		answers_stale = false;
	}
	else if (role == last_answer.role && length == last_topic_length &&
			 memcmp(topic, last_answer.topic, length) == 0)
		return;

	key.role = role;
	memcpy(key.topic, topic, length);

	if (hash_search(answers, &key, HASH_FIND, NULL) != NULL)
	{
		last_answer = key;
		last_topic_length = length;
		return;
	}

	if (has_privs_of_role(role, catalog->owner) ||
		table_grants(role, topic, length))
	{
		/* what came in while reading may have made the answer out of date */
		if (!answers_stale)
			remember(&key, length);
		return;
	}

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\" may not publish to topic \"%.*s\"",
					GetUserNameFromId(role, false), length, topic),
			 errhint("outbox.grant_publish() allows a role to publish to topics.")));
}

/*
 * Trigger of outbox.publish_grant: every session forgets what it knows when
 * this transaction commits, this one after the statement, and once more if it
 * is rolled back.
 */
Datum
outbox_kafka_publish_grant_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.publish_grant_changed() is a trigger function")));

	CacheInvalidateRelcache(trigger->tg_relation);

	PG_RETURN_POINTER(NULL);
}
