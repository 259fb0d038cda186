/*
 * inbox.h
 *	  The inbox worker.
 */
#ifndef OUTBOX_INBOX_H
#define OUTBOX_INBOX_H

extern PGDLLEXPORT void outbox_kafka_inbox_main(Datum main_arg);

#endif							/* OUTBOX_INBOX_H */
