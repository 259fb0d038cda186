/*
 * relay_transaction_open.c
 *	  What a predecessor committed to Kafka, and whether somebody else did.
 *
 * When a producer has fenced its predecessor, the position that Kafka has is
 * read back, and taken over if its nonce is that of a batch of ours; see
 * relay_transaction.c.
 *
 * A nonce that is none of ours at the first opening means that this database is
 * behind what was sent in its name: it was recovered to a point in time, or it is
 * a copy. It goes on from its own progress, with a warning, but it is not sure
 * to be the one that sends, and its positions say so (STANDING_UNSURE).
 *
 * If such a nonce is read back although this process has written its own,
 * somebody else has written since: there are two that send. That is a conflict.
 * To be fenced proves nothing by itself: a transaction that took too long ends in
 * the same way, so the position is read back first. Whoever finds it stops. If
 * the other one knew the last position before it took over, it is the rightful
 * successor (a switchover), and goes on: it was fenced, and warns. If the other
 * one is not sure, its position is marked as disputed, and who reads that back
 * stops, whether the position is its own or not: so both do. A bounded number of
 * tries is made, as the other one may take the right to write away again.
 *
 * If the cluster is another one than before, its positions say nothing of what
 * was sent to the old one; that is a conflict, too. Conflicts are stored in
 * outbox.relay_conflict: nothing is sent any more, also after a restart, until
 * outbox.claim() says that this is the database to send, or the cluster to send
 * to. One that has been claimed is sure, and takes the mark away.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "fault.h"
#include "relay_isolation.h"
#include "relay_parked.h"
#include "relay_transaction_internal.h"

/* What follows the nonce of a position. */
#define STANDING_SURE '\0'
#define STANDING_UNSURE '?'
#define STANDING_DISPUTED '!'

#define DISPUTES_MAX 5

#define COPY_SENDS "a copy of this database, with the same identity, sends to the same Kafka cluster"

void
relay_transaction_nonce_text(const pg_uuid_t *nonce, char *text)
{
	strlcpy(text, DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(nonce))),
			KAFKA_NONCE_LENGTH);
}

bool
relay_transaction_has_nonce(const Window *window, const char *text)
{
	pg_uuid_t	nonce;
	char		own[KAFKA_NONCE_LENGTH];

	if (!window_nonce(window, &nonce))
		return false;
	relay_transaction_nonce_text(&nonce, own);
	return strcmp(own, text) == 0;
}

bool
relay_transactions_reset(const OutboxCatalog *catalog)
{
	OutboxCatalog copy = *catalog;
	TransactionState state = {0};

	for (int i = 0; i < TRANSACTIONS; i++)
	{
		RowPlace	place = {0};

		if (!transaction_state_write(&copy, i, &place, &state))
			return false;
	}
	catalog_lock_now("relay_conflict", RowExclusiveLock);
	SPI_connect();
	if (SPI_execute("DELETE FROM outbox.relay_conflict", false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete from outbox.relay_conflict");
	SPI_finish();
	return true;
}

/* ---- conflicts ---- */

static void
execute(const char *sql, int nargs, Oid *types, Datum *values, int expected)
{
	catalog_lock_now("relay_conflict",
					 expected == SPI_OK_SELECT ? AccessShareLock : RowExclusiveLock);
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) != expected)
		elog(ERROR, "unexpected result of a statement on outbox.relay_conflict");
}

void
relay_transactions_read_conflict(Relay *relay)
{
	bool		conflict = false;
	bool		claimed = false;

	SPI_connect();
	execute("SELECT claimed_at IS NOT NULL FROM outbox.relay_conflict", 0, NULL, NULL,
			SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		bool		isnull;

		claimed = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
											 1, &isnull));
		conflict = !claimed;
	}
	SPI_finish();
	if (claimed && !relay->transactions->claimed)
		relay->transactions->both_opened = false;
	relay->conflict = conflict;
	relay->transactions->claimed = claimed;
}

static void
raise_conflict(Relay *relay, const char *what)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(what)};

	relay_begin(relay);
	if (relay_catalog(relay) != NULL)
	{
		SPI_connect();
		execute("INSERT INTO outbox.relay_conflict (id, what, found_at)"
				" VALUES (1, $1, clock_timestamp()) ON CONFLICT (id) DO NOTHING",
				1, types, values, SPI_OK_INSERT);
		SPI_finish();
		ForceSyncCommit();
	}
	relay_commit(relay);

	relay->conflict = true;
	shmem_set_error(&relay->slot->worker, what);
	ereport(WARNING,
			(errmsg("outbox_kafka does not send any more: %s", what),
			 errdetail("Nothing is lost: messages wait."),
			 errhint("Call outbox.claim() if this database is the one to send, to this Kafka cluster. Some messages may then be sent a second time.")));
	relay_producer_close(relay);
	isolation_close(relay);
}

/* What was claimed has been accepted. */
static void
end_conflict(Relay *relay)
{
	relay_begin(relay);
	if (relay_catalog(relay) != NULL)
	{
		bool		written = true;

		for (int i = 0; i < TRANSACTIONS && written; i++)
		{
			RelayTransaction *t = &relay->transactions->of[i];

			written = transaction_state_write(relay_catalog(relay), i, &t->place, &t->state);
		}
		if (written)
		{
			SPI_connect();
			execute("DELETE FROM outbox.relay_conflict", 0, NULL, NULL, SPI_OK_DELETE);
			SPI_finish();
			relay->transactions->claimed = false;
		}
		ForceSyncCommit();
	}
	relay_commit(relay);
}

/* ---- what Kafka knows ---- */

/* Parked messages that Kafka has are parked no more. */
static void
delete_parked(Relay *relay, const RelayTransaction *t, int64 position)
{
	relay_begin(relay);
	if (relay_catalog(relay) != NULL)
		parked_delete(relay->parked, t->state.parked, t->state.nparked, position);
	relay_commit(relay);
}

/* Take over what Kafka knows of a cursor. False: its nonce is none of ours. */
static bool
take_position(Relay *relay, RelayTransaction *t, const KafkaTransactionResult *result)
{
	ListCell   *lc;

	if (t->number == TRANSACTION_MAIN)
	{
		if (relay_transaction_has_nonce(relay->window, result->nonce))
		{
			window_skip_to(relay->window, result->position);
			relay->define = true;
			return true;
		}
	}
	else
	{
		foreach(lc, relay->held)
		{
			RelayHeld  *held = (RelayHeld *) lfirst(lc);

			if (relay_transaction_has_nonce(held->window, result->nonce))
			{
				window_skip_to(held->window, result->position);
				held->define = true;
				return true;
			}
		}
		if (t->state.nparked > 0 && strcmp(result->nonce, t->state.defined) == 0)
		{
			delete_parked(relay, t, result->position);
			return true;
		}
	}
	return strcmp(result->nonce, t->state.defined) == 0 ||
		strcmp(result->nonce, t->state.committed) == 0;
}

/* Whether Kafka can have a position that PostgreSQL does not. */
static bool
is_in_doubt(const Relay *relay, const RelayTransaction *t)
{
	pg_uuid_t	nonce;
	ListCell   *lc;

	if (t->number == TRANSACTION_MAIN)
		return window_nonce(relay->window, &nonce);
	foreach(lc, relay->held)
	{
		if (window_nonce(((const RelayHeld *) lfirst(lc))->window, &nonce))
			return true;
	}
	return t->state.nparked > 0 && strcmp(t->state.defined, t->state.committed) != 0;
}

/*
 * What a position says of who wrote it, behind the nonce: whether he is the one
 * to send. Cuts it off.
 */
static char
take_standing(char *nonce)
{
	size_t		length = strlen(nonce);
	char		standing = length > 0 ? nonce[length - 1] : STANDING_SURE;

	if (standing != STANDING_UNSURE && standing != STANDING_DISPUTED)
		return STANDING_SURE;
	nonce[length - 1] = '\0';
	return standing;
}

static void
send_position(RelayTransaction *t, int64 position, const char *nonce, char standing)
{
	kafka_transaction_call(t->producer, KAFKA_CALL_POSITION, position,
						   psprintf(standing == STANDING_SURE ? "%s" : "%s%c", nonce, standing));
}

void
relay_transaction_send_position(RelayTransaction *t, int64 position, const char *nonce)
{
	send_position(t, position, nonce, t->unsure ? STANDING_UNSURE : STANDING_SURE);
}

/* Commit the position that was read back once more: disputed, or not any more. */
static void
restate(RelayTransaction *t, const KafkaTransactionResult *result, bool dispute)
{
	KafkaError	error;

	if (!kafka_transaction_begin(t->producer, &error))
	{
		strlcpy(t->broken, error.message, sizeof(t->broken));
		return;
	}
	t->opened = *result;
	t->dispute = dispute;
	t->phase = TRANSACTION_RESTATING;
	send_position(t, result->position, result->nonce,
				  dispute ? STANDING_DISPUTED : STANDING_SURE);
}

/* The position is as it should be; gap: but it does not help, and why. */
static void
accept_position(Relay *relay, RelayTransaction *t, const KafkaTransactionResult *result,
				const char *gap)
{
	if (gap != NULL)
	{
		shmem_set_error(&relay->slot->worker,
						psprintf("%s: messages may have been sent twice", gap));
		ereport(WARNING,
				(errmsg("outbox_kafka: %s", gap),
				 errdetail("It goes on from what PostgreSQL has stored: some messages may be sent a second time."),
				 errhint("This is what recovery to a point in time, or a failover that lost transactions, looks like.")));
	}
	else if (t->fenced && t->number == TRANSACTION_MAIN)
	{
		const char *text = "another relay with the identity of this database was started: a copy of it, or an old primary";

		shmem_set_error(&relay->slot->worker, text);
		ereport(WARNING,
				(errmsg("outbox_kafka: %s", text),
				 errdetail("This one goes on. The other one stops when it finds that."),
				 errhint("If the other one is to send, call outbox.claim() there.")));
	}
	t->fenced = false;

	/* what is not known stays so, also if this process ends before it writes */
	strlcpy(t->state.committed, result->found && !(t->unsure && gap) ? result->nonce : "",
			sizeof(t->state.committed));
	strlcpy(t->state.cluster, result->cluster, sizeof(t->state.cluster));
	t->phase = TRANSACTION_READY;
	if (t->number == TRANSACTION_MAIN && t->lost_idle)
		relay->failures = 0;
	if (t->number == TRANSACTION_SECOND)
		relay->transactions->both_opened = true;
	if (relay->transactions->claimed && relay_transaction_is_open(relay, TRANSACTION_MAIN) &&
		relay_transaction_is_open(relay, TRANSACTION_SECOND))
		end_conflict(relay);
}

/* Take over what was read back and is not disputed, or find that two send. */
static void
judge_position(Relay *relay, RelayTransaction *t, const KafkaTransactionResult *result,
			   char standing)
{
	bool		claimed = relay->transactions->claimed;

	if (take_position(relay, t, result))
	{
		t->unsure = (standing == STANDING_UNSURE && !claimed);
		accept_position(relay, t, result, NULL);
	}
	else if (!t->wrote || claimed)
	{
		t->unsure = !claimed;
		accept_position(relay, t, result,
						"Kafka knows a later position of the relay than this database");
	}
	else if (standing == STANDING_UNSURE && t->disputes < DISPUTES_MAX)
	{
		t->disputes++;
		restate(t, result, true);
	}
	else
		raise_conflict(relay, COPY_SENDS);
}

void
relay_transaction_restate_further(Relay *relay, RelayTransaction *t, KafkaTransactionCall call)
{
	if (call == KAFKA_CALL_POSITION)
		kafka_transaction_call(t->producer, KAFKA_CALL_COMMIT, 0, NULL);
	else if (t->dispute)
		raise_conflict(relay, COPY_SENDS);
	else
		judge_position(relay, t, &t->opened, STANDING_SURE);
}

/* It has been read back. */
void
relay_transaction_finish_opening(Relay *relay, RelayTransaction *t, const KafkaTransactionResult *result)
{
	KafkaTransactionResult read = *result;
	char		standing = take_standing(read.nonce);
	bool		claimed = relay->transactions->claimed;

	if (t->state.cluster[0] != '\0' && strcmp(t->state.cluster, read.cluster) != 0 &&
		!claimed)
		raise_conflict(relay, psprintf("this is Kafka cluster %s, messages were sent to %s before",
									   read.cluster, t->state.cluster));
	else if (fault_is_set("forget"))
		accept_position(relay, t, &read, NULL);
	else if (!read.found)
		accept_position(relay, t, &read,
						t->state.committed[0] != '\0' && is_in_doubt(relay, t) ?
						"Kafka does not know the relay's position any more" : NULL);
	else if (standing != STANDING_DISPUTED)
		judge_position(relay, t, &read, standing);
	else if (claimed)
		restate(t, &read, false);
	else
		raise_conflict(relay, COPY_SENDS);
}
