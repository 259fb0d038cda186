/*
 * record.h
 *	  From a row of outbox.message to a Kafka record.
 */
#ifndef OUTBOX_RECORD_H
#define OUTBOX_RECORD_H

#include "executor/tuptable.h"

#include "kafka.h"
#include "relay_topic.h"
#include "window.h"

/*
 * The topic a row goes to, entered into topics if it is new.
 */
extern RelayTopic *record_topic(RelayTopics *topics, TupleTableSlot *slot);

/*
 * Fill record and what the window has to remember of it (not its topic). The
 * topic is resolved. Pointers go into the slot or the current memory context,
 * which the caller resets; record->headers is the caller's until it is
 * produced. now: no record is dated later, and dated_now asks for it. False: the row asks for a partition that the topic does not have;
 * record->partition says which.
 */
extern bool record_build(TupleTableSlot *slot, RelayTopic *topic,
						 TimestampTz now, bool dated_now,
						 KafkaRecord *record, WindowEntry *entry);

/* The event id of a row as text, for messages to the administrator. */
extern char *record_event_id(TupleTableSlot *slot);

#endif							/* OUTBOX_RECORD_H */
