/*
 * kafka_wake.h
 *	  A descriptor that any thread can make readable.
 */
#ifndef OUTBOX_KAFKA_WAKE_H
#define OUTBOX_KAFKA_WAKE_H

#include <stdbool.h>

typedef struct KafkaWake
{
	int			fd;				/* read end, or -1 */
	int			write_fd;		/* the same where there is eventfd */
} KafkaWake;

/* False: errno says why; what is open is closed by kafka_wake_close(). */
extern bool kafka_wake_open(KafkaWake *wake);
extern void kafka_wake_close(KafkaWake *wake);

/* Make the descriptor readable. From any thread. */
extern void kafka_wake_set(const KafkaWake *wake);
extern void kafka_wake_clear(const KafkaWake *wake);

#endif							/* OUTBOX_KAFKA_WAKE_H */
