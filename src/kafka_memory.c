/*
 * kafka_memory.c
 *	  What becomes of the memory that librdkafka has freed.
 *
 * librdkafka allocates some hundred bytes for each record and frees them with
 * its report. While a backlog leaves, the C library would give the end of its
 * heap back to the kernel and ask for it again many times a second, and the
 * kernel clears each page: that took a tenth of the relay's processor time. So
 * it keeps what is free, up to a bound, until the producer ends; one for full
 * batches does so with its backlog.
 */
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "kafka_memory.h"

/* More than a window's records take. */
#define KEPT_BYTES (64 * 1024 * 1024)

/* Requests are made in buffers of a megabyte; larger ones are rare. */
#define MAPPED_FROM_BYTES (4 * 1024 * 1024)

void
kafka_memory_keep(void)
{
#ifdef __GLIBC__
	mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
	mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
#endif
}

void
kafka_memory_release(void)
{
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}
