/*
 * kafka_resolve.h
 *	  Looking up a broker's name in a way that can be left.
 */
#ifndef OUTBOX_KAFKA_RESOLVE_H
#define OUTBOX_KAFKA_RESOLVE_H

#include <stdbool.h>

struct addrinfo;

/*
 * Like getaddrinfo(), but returns EAI_AGAIN soon after *leave became true (see
 * below). The result is freed with freeaddrinfo(). From any thread.
 */
extern int	kafka_resolve(const char *node, const char *service,
						  const struct addrinfo *hints,
						  struct addrinfo **result, const bool *leave);

/* Set *leave and have every kafka_resolve() with it return. */
extern void kafka_resolve_leave(bool *leave);

#endif							/* OUTBOX_KAFKA_RESOLVE_H */
