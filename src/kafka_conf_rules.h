/*
 * kafka_conf_rules.h
 *	  Which properties of librdkafka can be set, and where. For kafka_conf*.c
 *	  only.
 *
 * A property belongs to one of three places:
 *
 *	ANYWHERE	tunes or describes the connection; no secret, and the server
 *				opens or runs nothing because of it;
 *	FILE_ONLY	a secret, or something that makes the server open a file, call
 *				an address or put the value into a shell command: whoever can
 *				write that file is trusted with it;
 *	NOWHERE		loads code, or would break what we promise. Some of these are
 *				fixed: naming them with the value they have anyway is harmless
 *				and accepted.
 */
#ifndef OUTBOX_KAFKA_CONF_RULES_H
#define OUTBOX_KAFKA_CONF_RULES_H

typedef enum PropertyPlace
{
	ANYWHERE,
	FILE_ONLY,
	NOWHERE
} PropertyPlace;

/* Whose property it is: that of any client, or of one kind. */
typedef enum PropertyUser
{
	FOR_PRODUCER,
	FOR_CONSUMER
} PropertyUser;

typedef struct PropertyRule
{
	const char *pattern;		/* of names, for fnmatch() */
	PropertyPlace place;
	const char *reason;			/* why it is refused, or a file's matter */
	const char *fixed;			/* the accepted values, '|' between them */
} PropertyRule;

/* The rule for a name where this kind of client has it, or NULL. */
extern const PropertyRule *kafka_conf_rule(const char *name, PropertyUser user);

#endif							/* OUTBOX_KAFKA_CONF_RULES_H */
