/*
 * relay_transaction.c
 *	  Exactly once into Kafka: the relay's Kafka transactions.
 *
 * Each Kafka transaction holds messages of one cursor, in order, and the
 * position that the cursor has reached with them: both become visible together
 * or not at all. After a crash the position is read back from Kafka; what
 * PostgreSQL has stored may be older by then, and does not matter.
 *
 * A position is an id within a batch, so it means nothing without the batch:
 * see relay_transaction_define.c.
 *
 * The batch is PgQ's unit and holds whole transactions of PostgreSQL. As long
 * as it fits into a Kafka transaction (max_transaction_messages, and few enough
 * seconds to send it), these become visible as wholes. A larger one is cut
 * anywhere, which keeps the order.
 *
 * One transaction at a time is under way by a producer: it is begun with the
 * first record; when the batch is read to its end, or the transaction is full,
 * the position is sent along while the reports still come in; when all are
 * there, it is committed. While it commits, what is published gathers for the
 * next one: transactions grow with the load by themselves. In a window that is
 * transactional nothing counts as delivered before the commit.
 *
 * A transaction's end goes on at the brokers after the commit has been answered,
 * and until it is over nothing can be added to the next one. librdkafka asks
 * again after 20 ms when that happens to a record, a long time; but soon when it
 * happens to a position. So a transaction that follows closely is begun with the
 * position that Kafka has, and messages are read when that has been taken: all
 * those that have been committed meanwhile.
 *
 * What goes wrong ends the producer. Its transaction is aborted if that can be
 * done in a moment; the next producer with the same transactional.id ends it in
 * any case, and the read-back says which way an unanswered commit went. Lanes
 * that were refused, or did not answer, are held after that, with their own
 * cursor from where the main one stands, and the rest is read again without
 * them.
 *
 * Held lanes and parked messages go through the second producer, which has
 * transactions of its own with an id, a position and a nonce of its own, so that
 * a lane that does not answer delays nobody but other such lanes. Its
 * transactions belong to one cursor, or to some parked messages, at a time.
 * Kafka knows only the last of its positions. Therefore each change from one to
 * another begins with a new definition, which flushes the progress of all
 * cursors. For parked messages the definition names their ids, the position is
 * the highest id sent. All cursors' progress in PostgreSQL stands in one history:
 * a definition that is on disk has everything on disk that was stored before.
 *
 * A row that is put aside is parked in the transaction that reads it, long
 * before the position moves past it in Kafka. Should that not come to pass, the
 * row is read and parked again. In between it must not be sent from where it is
 * parked, or it would be sent again from where it was read: so parked messages
 * wait until the batch is done (tentative), also after a crash in between.
 *
 * Both producers are opened before anything is sent: a predecessor that is
 * still running somewhere is then fenced as a whole.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "utils/timestamp.h"

#include "due.h"
#include "durability.h"
#include "fault.h"
#include "guc.h"
#include "relay_catchup.h"
#include "relay_isolation.h"
#include "relay_parked.h"
#include "relay_standby.h"
#include "relay_transaction_internal.h"

/* Sending may take so long; the broker ends a transaction of 10 s. */
#define SENDING_MS 3000

/* One that has taken so long may have been ended by the broker. */
#define TOO_LONG_MS 9000

/* A transaction of held lanes that takes longer is given up. */
#define SECOND_MS 5000

/* The last one's end is over after this time, or its cause is another one. */
#define RECENT_MS 100

/* So long another relay has to say that it disputes the right to send. */
#define DISPUTE_MS 3000

/* Below that a transaction is not made smaller when it fails. */
#define LIMIT_MIN 100

RelayTransaction *
relay_transaction_of(const Relay *relay, const RelayHeld *held)
{
	return &relay->transactions->of[held ? TRANSACTION_SECOND : TRANSACTION_MAIN];
}

/* There is a producer, and no records are under way. */
static bool
is_quiet(const RelayTransaction *t)
{
	return t->phase >= TRANSACTION_READY && t->phase <= TRANSACTION_BEGUN;
}

/* ---- life ---- */

void
relay_transactions_load(Relay *relay, const OutboxCatalog *catalog)
{
	OutboxCatalog copy = *catalog;
	ListCell   *lc;
	pg_uuid_t	nonce;

	relay->transactions = MemoryContextAllocZero(relay->context, sizeof(*relay->transactions));
	for (int i = 0; i < TRANSACTIONS; i++)
	{
		RelayTransaction *t = &relay->transactions->of[i];

		t->number = i;
		t->limit = guc_max_transaction_messages;

		/* what is read may be visible, and not on disk */
		t->needs = durability_position();
		if (!transaction_state_read(&copy, i, &t->state))
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("could not read outbox.relay_transaction, it is locked or a row is gone")));
	}

	/* a batch under way may have parked rows */
	relay->transactions->tentative = window_nonce(relay->window, &nonce);
	foreach(lc, relay->held)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		held->tentative = window_nonce(held->window, &nonce);
	}
}

void
relay_transactions_configure(Relay *relay)
{
	bool		exact = (guc_delivery == DELIVERY_EXACTLY_ONCE);
	ListCell   *lc;

	relay->exact = exact;
	window_set_transactional(relay->window, exact);
	foreach(lc, relay->held)
	{
		RelayHeld  *held = (RelayHeld *) lfirst(lc);

		window_set_transactional(held->window, exact);
		if (exact)
			held->isolated = true;
	}
	for (int i = 0; i < TRANSACTIONS; i++)
		relay->transactions->of[i].limit = guc_max_transaction_messages;
}

char *
relay_transaction_id(const Relay *relay, int number)
{
	if (!relay->exact)
		return NULL;
	return psprintf("outbox_kafka-%s-%d", relay->identity, number);
}

void
relay_transaction_opened(Relay *relay, int number, KafkaProducer *producer)
{
	RelayTransaction *t = &relay->transactions->of[number];

	if (!relay->exact)
		return;
	t->producer = producer;
	t->phase = TRANSACTION_OPENING;
	if (relay->transactions->claimed)
	{
		t->wrote = false;
		t->disputes = 0;
	}
	kafka_transaction_call(producer, KAFKA_CALL_OPEN, 0, NULL);
}

void
relay_transaction_closed(Relay *relay, int number)
{
	RelayTransaction *t = &relay->transactions->of[number];

	if (t->phase == TRANSACTION_CLOSED)
		return;

	/* should size have been the reason */
	if (t->sent > 0)
		t->limit = Max(Min(t->limit, t->sent) / 2, LIMIT_MIN);
	t->phase = TRANSACTION_CLOSED;
	t->producer = NULL;
	t->owner = OWNER_NONE;
	t->held = NULL;
	t->sent = 0;
	t->committed_at = 0;
	t->empty = false;
	t->broken[0] = '\0';
	if (number == TRANSACTION_MAIN)
		relay->transactions->give_up = false;
}

bool
relay_transaction_is_open(const Relay *relay, int number)
{
	return relay->transactions->of[number].phase >= TRANSACTION_READY;
}

bool
relay_transaction_is_idle(const Relay *relay, int number)
{
	const RelayTransaction *t = &relay->transactions->of[number];

	return t->phase == TRANSACTION_CLOSED ||
		(t->phase == TRANSACTION_READY && t->owner == OWNER_NONE);
}

bool
relay_transaction_may_read(const Relay *relay, const RelayHeld *held)
{
	const RelayTransaction *t = relay_transaction_of(relay, held);

	if (t->phase != TRANSACTION_READY && t->phase != TRANSACTION_BEGUN &&
		t->phase != TRANSACTION_SENDING)
		return false;
	if (held == NULL)
		return relay->transactions->both_opened && !relay->transactions->give_up &&
			(relay->transactions->pending == NIL || t->phase == TRANSACTION_SENDING);
	return t->owner == OWNER_NONE || (t->owner == OWNER_HELD && t->held == held);
}

bool
relay_transaction_has_begun(const Relay *relay)
{
	return relay->exact &&
		relay->transactions->of[TRANSACTION_MAIN].phase == TRANSACTION_SENDING;
}

bool
relay_transaction_is_ending(const Relay *relay)
{
	for (int i = 0; relay->exact && i < TRANSACTIONS; i++)
		if (relay->transactions->of[i].phase >= TRANSACTION_ENDING)
			return true;
	return false;
}

/* ---- sending ---- */

/*
 * The transaction cannot go on. Its producer is ended when it has reported what
 * it still has to: that may say whose fault it is.
 */
static void
lose(Relay *relay, RelayTransaction *t, const char *text, TimestampTz now)
{
	t->lost_idle = (t->sent == 0);
	t->broken[0] = '\0';
	if (t->number == TRANSACTION_SECOND)
		(void) isolation_lose(relay, text, now);
	else
		relay_producer_lose(relay, text, now);
}

static bool
begin(Relay *relay, RelayTransaction *t, TimestampTz now)
{
	KafkaError	error;

	if (t->phase == TRANSACTION_SENDING)
		return true;
	if (t->phase != TRANSACTION_READY && t->phase != TRANSACTION_BEGUN)
		return false;
	if (t->phase == TRANSACTION_READY && !kafka_transaction_begin(t->producer, &error))
	{
		strlcpy(t->broken, error.message, sizeof(t->broken));
		return false;
	}
	t->phase = TRANSACTION_SENDING;
	t->since = now;
	t->sent = 0;
	t->positioned = false;
	return true;
}

bool
relay_transaction_prepare(Relay *relay, TimestampTz now)
{
	RelayTransaction *t = &relay->transactions->of[TRANSACTION_MAIN];
	KafkaError	error;

	if (t->phase != TRANSACTION_READY || t->committed_at == 0 ||
		TimestampDifferenceExceeds(t->committed_at, now, RECENT_MS))
		return true;
	if (!kafka_transaction_begin(t->producer, &error))
	{
		strlcpy(t->broken, error.message, sizeof(t->broken));
		return false;
	}
	t->phase = TRANSACTION_BEGINNING;
	relay_transaction_send_position(t, t->position, t->state.committed);
	return false;
}

bool
relay_transaction_begin(Relay *relay, const RelayHeld *held, TimestampTz now)
{
	RelayTransaction *t = relay_transaction_of(relay, held);

	if (!begin(relay, t, now))
		return false;
	t->owner = held ? OWNER_HELD : OWNER_MAIN;
	t->held = unconstify(RelayHeld *, held);
	return true;
}

bool
relay_transaction_begin_parked(Relay *relay, TimestampTz now)
{
	return begin(relay, &relay->transactions->of[TRANSACTION_SECOND], now);
}

void
relay_transaction_sent(Relay *relay, const RelayHeld *held)
{
	relay_transaction_of(relay, held)->sent++;
}

void
relay_transaction_sent_parked(Relay *relay, int64 id)
{
	RelayTransaction *t = &relay->transactions->of[TRANSACTION_SECOND];

	t->sent++;
	t->sent_id = id;
}

bool
relay_transaction_is_full(const Relay *relay, const RelayHeld *held, TimestampTz now)
{
	const RelayTransaction *t = relay_transaction_of(relay, held);

	if (window_is_full(relay_window_of(relay, held)))
		return true;
	return t->phase == TRANSACTION_SENDING &&
		(t->sent >= t->limit ||
		 (held && t->sent >= held->limit) ||
		 TimestampDifferenceExceeds(t->since, now, SENDING_MS));
}

void
relay_transaction_broke(Relay *relay, const RelayHeld *held, const char *text)
{
	RelayTransaction *t = relay_transaction_of(relay, held);

	strlcpy(t->broken, text, sizeof(t->broken));
}

static void
end_sending(RelayTransaction *t, int64 position)
{
	FAULT_POINT("sent");
	t->phase = TRANSACTION_ENDING;
	t->position = position;
	relay_transaction_send_position(t, position, t->state.defined);
}

void
relay_transaction_flush(Relay *relay)
{
	for (int i = 0; relay->exact && i < TRANSACTIONS; i++)
	{
		const RelayTransaction *t = &relay->transactions->of[i];

		if (t->phase == TRANSACTION_ENDING)
			XLogFlush(t->needs);
	}
}

/* If the batch is done, what it parked stays parked. */
static void
note_batch_done(Relay *relay, RelayHeld *held)
{
	if (window_is_reading(relay_window_of(relay, held)))
		return;
	if (held)
		held->tentative = false;
	else
		relay->transactions->tentative = false;
}

void
relay_transaction_complete(Relay *relay, RelayHeld *held)
{
	RelayTransaction *t = relay_transaction_of(relay, held);
	Window	   *window = relay_window_of(relay, held);

	if (t->phase == TRANSACTION_SENDING)
	{
		end_sending(t, window_read_position(window));
		return;
	}

	/* all of it was passed over: there is nothing to tell Kafka */
	window_commit(window);
	note_batch_done(relay, held);
	t->owner = OWNER_NONE;
	t->held = NULL;
}

void
relay_transaction_settle(Relay *relay)
{
	if (is_quiet(&relay->transactions->of[TRANSACTION_MAIN]) &&
		window_oldest(relay->window) != NULL)
		relay_transaction_complete(relay, NULL);
}

void
relay_transaction_complete_parked(Relay *relay)
{
	RelayTransaction *t = &relay->transactions->of[TRANSACTION_SECOND];

	if (t->phase == TRANSACTION_SENDING)
		end_sending(t, t->sent_id);
	else
		t->owner = OWNER_NONE;
}

void
relay_transaction_parked_some(Relay *relay, RelayHeld *held)
{
	RelayTransaction *t = relay_transaction_of(relay, held);

	t->needs = XactLastCommitEnd;
	if (window_oldest(relay_window_of(relay, held)) == NULL)
		return;					/* the position on disk is past them */
	if (held)
		held->tentative = true;
	else
		relay->transactions->tentative = true;
}

/* ---- the end ---- */

static void
finish_commit(Relay *relay, RelayTransaction *t, TimestampTz now)
{
	RelayHeld  *held = t->held;

	t->committed_at = now;
	if (t->empty)
	{
		/* it was begun for nothing, and holds the position it was begun with */
		t->empty = false;
		t->phase = TRANSACTION_READY;
		return;
	}
	FAULT_POINT("committed");
	t->wrote = true;
	strlcpy(t->state.committed, t->state.defined, sizeof(t->state.committed));
	t->limit = Min(t->limit * 2, guc_max_transaction_messages);
	t->phase = TRANSACTION_READY;
	if (t->owner != OWNER_PARKED)
	{
		window_commit(relay_window_of(relay, held));
		note_batch_done(relay, held);
	}
	t->owner = OWNER_NONE;
	t->held = NULL;
	t->sent = 0;
	t->needs = InvalidXLogRecPtr;
	if (t->number == TRANSACTION_MAIN)
	{
		relay->transactions->give_up = false;
		relay_transaction_hold_pending(relay, now);
	}
}

int
relay_transaction_patience(const Relay *relay)
{
	for (int i = 0; relay->exact && i < TRANSACTIONS; i++)
	{
		const RelayTransaction *t = &relay->transactions->of[i];

		if (t->fenced && t->unsure)
			return DISPUTE_MS;
	}
	return 0;
}

/* Whether everything that was sent was taken. */
static bool
all_acknowledged(const Relay *relay, const RelayTransaction *t)
{
	if (kafka_producer_outstanding(t->producer) > 0 ||
		kafka_producer_is_dead(t->producer, NULL))
		return false;
	if (t->owner == OWNER_PARKED)
		return parked_are_delivered(relay->parked);
	return window_in_flight(relay_window_of(relay, t->held)) == 0;
}

/* Somebody else has the id now, unless the broker ended what took too long. */
static void
note_fenced(RelayTransaction *t, int code, TimestampTz now)
{
	if (kafka_error_is_fenced(code) && t->wrote &&
		!(t->phase >= TRANSACTION_SENDING && TimestampDifferenceExceeds(t->since, now, TOO_LONG_MS)))
		t->fenced = true;
}

/* A call has ended well. */
static void
take_result(Relay *relay, RelayTransaction *t, const KafkaTransactionResult *result,
			TimestampTz now)
{
	switch (result->call)
	{
		case KAFKA_CALL_OPEN:
			relay_transaction_finish_opening(relay, t, result);
			break;
		case KAFKA_CALL_POSITION:
			if (t->phase == TRANSACTION_BEGINNING)
			{
				t->phase = TRANSACTION_BEGUN;
				t->since = now;
			}
			else
				t->positioned = true;
			break;
		case KAFKA_CALL_COMMIT:
			finish_commit(relay, t, now);
			break;
		default:
			break;
	}
}

void
relay_transaction_serve(Relay *relay, int number, TimestampTz now)
{
	RelayTransaction *t = &relay->transactions->of[number];
	KafkaTransactionResult result;
	KafkaError	death;

	if (t->phase == TRANSACTION_CLOSED)
	{
		if (number == TRANSACTION_MAIN && relay->exact)
			relay_transaction_hold_pending(relay, now);
		return;
	}
	if (kafka_producer_is_dead(t->producer, &death))
		note_fenced(t, death.code, now);
	if (t->broken[0] != '\0')
	{
		lose(relay, t, pstrdup(t->broken), now);
		return;
	}
	if (kafka_transaction_result(t->producer, &result))
	{
		if (!result.ok)
		{
			note_fenced(t, result.error.code, now);
			lose(relay, t, result.error.message, now);
			return;
		}
		if (t->phase == TRANSACTION_RESTATING)
			relay_transaction_restate_further(relay, t, result.call);
		else
			take_result(relay, t, &result, now);
	}

	if (t->phase == TRANSACTION_ENDING && t->positioned && all_acknowledged(relay, t) &&
		(XLogRecPtrIsInvalid(t->needs) || relay_standby_has(relay, t->needs)))
	{
		XLogFlush(t->needs);
		FAULT_POINT("positioned");
		kafka_transaction_call(t->producer, KAFKA_CALL_COMMIT, 0, NULL);
		t->phase = TRANSACTION_COMMITTING;
		FAULT_POINT("committing");
	}

	/* for a lane to be held; what was sent is read again without it */
	if (number == TRANSACTION_MAIN && relay->transactions->give_up &&
		(t->phase == TRANSACTION_SENDING || t->phase == TRANSACTION_ENDING))
	{
		relay_producer_close(relay);
		relay_transaction_hold_pending(relay, now);
		return;
	}
	if (number == TRANSACTION_MAIN && is_quiet(t))
		relay_transaction_hold_pending(relay, now);

	/* the broker would end it some time, and the producer with it */
	if (t->phase == TRANSACTION_BEGUN &&
		TimestampDifferenceExceeds(t->since, now, SENDING_MS))
	{
		kafka_transaction_call(t->producer, KAFKA_CALL_COMMIT, 0, NULL);
		t->phase = TRANSACTION_COMMITTING;
		t->empty = true;
	}
	if (number == TRANSACTION_MAIN && !relay->transactions->both_opened)
		(void) isolation_producer(relay, now);

	if (number == TRANSACTION_SECOND && t->owner != OWNER_NONE &&
		t->phase <= TRANSACTION_ENDING &&
		TimestampDifferenceExceeds(t->since, now, SECOND_MS))
	{
		RelayHeld  *held = t->held;

		if (t->phase == TRANSACTION_READY)
			t->owner = OWNER_NONE;
		else if (!isolation_lose(relay, "no acknowledgement from a held topic", now))
			return;
		if (held != NULL)
			relay_held_failed(held, now);
	}
}

TimestampTz
relay_transaction_due(const Relay *relay)
{
	TimestampTz due = 0;

	for (int i = 0; relay->exact && i < TRANSACTIONS; i++)
	{
		const RelayTransaction *t = &relay->transactions->of[i];

		if (t->phase == TRANSACTION_ENDING && !XLogRecPtrIsInvalid(t->needs) && guc_wait_for_standby)
			due = due_sooner(due, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 5));
		if (t->phase == TRANSACTION_BEGUN)
			due = due_sooner(due, TimestampTzPlusMilliseconds(t->since, SENDING_MS + 1));
		if (i == TRANSACTION_SECOND && t->owner != OWNER_NONE && t->phase <= TRANSACTION_ENDING)
			due = due_sooner(due, TimestampTzPlusMilliseconds(t->since, SECOND_MS + 1));
	}
	return due;
}
