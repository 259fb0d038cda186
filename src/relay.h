/*
 * relay.h
 *	  The worker that sends a database's messages to Kafka.
 */
#ifndef OUTBOX_RELAY_H
#define OUTBOX_RELAY_H

/* For the postmaster; main_arg as worker_attach() wants it. */
extern PGDLLEXPORT void outbox_kafka_relay_main(Datum main_arg);

#endif							/* OUTBOX_RELAY_H */
