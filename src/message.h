/*
 * message.h
 *	  The row type of outbox.message, as C sees it.
 *
 * The order is the one of the install script; the columns never move within
 * one OUTBOX_SQL_VERSION.
 */
#ifndef OUTBOX_MESSAGE_H
#define OUTBOX_MESSAGE_H

#define Natts_outbox_message 11

#define Anum_outbox_message_xid 1
#define Anum_outbox_message_id 2
#define Anum_outbox_message_segment 3
#define Anum_outbox_message_event_id 4
#define Anum_outbox_message_topic 5
#define Anum_outbox_message_key 6
#define Anum_outbox_message_payload 7
#define Anum_outbox_message_headers 8
#define Anum_outbox_message_partition 9
#define Anum_outbox_message_correlation_id 10
#define Anum_outbox_message_created_at 11

#endif							/* OUTBOX_MESSAGE_H */
