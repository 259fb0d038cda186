/*
 * handled_message.c
 *	  Which message this process is handling.
 *
 * Set by the worker around a handler's call, and looked at by whatever that
 * publishes. No SQL can set it: who may answer an expectation rests on it.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "handled_message.h"
#include "message_check.h"

#define CAUSATION_HEADER "causation-id"

/* Length of a UUID as text, with the terminator. */
#define UUID_TEXT_LENGTH 37

typedef struct HandledMessage
{
	bool		any;
	bool		has_event_id;
	pg_uuid_t	event_id;
	char		subscription[NAMEDATALEN * 4];
	char		correlation_id[CORRELATION_ID_MAX_LENGTH * 4 + 1];
} HandledMessage;

static HandledMessage handled;

void
handled_message_set(const char *subscription, const pg_uuid_t *event_id,
					const char *correlation_id)
{
	handled.any = true;
	strlcpy(handled.subscription, subscription, sizeof(handled.subscription));
	handled.has_event_id = event_id != NULL;
	if (event_id != NULL)
		handled.event_id = *event_id;
	handled.correlation_id[0] = '\0';

	/* what nobody could publish with is not handed on */
	if (correlation_id != NULL &&
		strlen(correlation_id) < sizeof(handled.correlation_id))
		strcpy(handled.correlation_id, correlation_id);
}

void
handled_message_clear(void)
{
	handled.any = false;
}

const char *
handled_message_subscription(void)
{
	return handled.any ? handled.subscription : NULL;
}

/* palloc'd */
static char *
event_id_text(void)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&handled.event_id)));
}

const char *
handled_message_correlation_id(void)
{
	if (!handled.any)
		return NULL;

	/* most handlers never ask */
	if (handled.correlation_id[0] == '\0' && handled.has_event_id)
		strlcpy(handled.correlation_id, event_id_text(), UUID_TEXT_LENGTH);
	return handled.correlation_id[0] != '\0' ? handled.correlation_id : NULL;
}

Jsonb *
handled_message_headers(Jsonb *headers)
{
	JsonbParseState *state = NULL;
	JsonbValue	name;
	JsonbValue	value;
	Jsonb	   *causation;

	if (!handled.any || !handled.has_event_id)
		return headers;

	/* what is no object is refused later, by message_check() */
	if (headers != NULL && !JB_ROOT_IS_OBJECT(headers))
		return headers;

	name.type = jbvString;
	name.val.string.val = pstrdup(CAUSATION_HEADER);
	name.val.string.len = strlen(CAUSATION_HEADER);
	value.type = jbvString;
	value.val.string.val = event_id_text();
	value.val.string.len = strlen(value.val.string.val);

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	(void) pushJsonbValue(&state, WJB_KEY, &name);
	(void) pushJsonbValue(&state, WJB_VALUE, &value);
	causation = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	if (headers == NULL)
		return causation;

	/* of two of one name, the second counts: one that was given */
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(causation),
											  JsonbPGetDatum(headers)));
}
