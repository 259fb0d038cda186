/*
 * identity.h
 *	  Whether this database may send from this server
 *	  (outbox_kafka.identity_file).
 */
#ifndef OUTBOX_IDENTITY_H
#define OUTBOX_IDENTITY_H

/* Text of a UUID with its end. */
#define IDENTITY_LENGTH 37

/*
 * Look into identity_file whether it names that identity. NULL: it does, or
 * there is no such file to look into. Else what is wrong, in the current
 * context. Reads the file each time. Raises no error.
 */
extern char *identity_problem(const char *identity);

/*
 * Relay: this database's identity, into a place of IDENTITY_LENGTH. A database
 * that was copied with CREATE DATABASE gets a new one, which is stored. Inside
 * a transaction.
 */
extern void identity_read(char *identity);

#endif							/* OUTBOX_IDENTITY_H */
