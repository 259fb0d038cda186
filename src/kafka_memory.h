/*
 * kafka_memory.h
 *	  See kafka_memory.c.
 */
#ifndef OUTBOX_KAFKA_MEMORY_H
#define OUTBOX_KAFKA_MEMORY_H

/* From now on freed memory is kept, until it is released. */
extern void kafka_memory_keep(void);
extern void kafka_memory_release(void);

#endif							/* OUTBOX_KAFKA_MEMORY_H */
