/*
 * publish_grant.h
 *	  Who may publish to which topic.
 */
#ifndef OUTBOX_PUBLISH_GRANT_H
#define OUTBOX_PUBLISH_GRANT_H

/*
 * An error unless the current user may publish to the topic (a valid name, not
 * terminated). Superusers and members of the extension's owner may publish
 * everywhere; others by outbox.publish_grant. Accepts invalidations: what
 * catalog_get() returned before has to be asked for again.
 */
extern void publish_grant_check(const char *topic, int length);

/* The current user is a superuser or has the extension owner's privileges. */
extern bool publish_grant_is_administrator(void);

#endif							/* OUTBOX_PUBLISH_GRANT_H */
