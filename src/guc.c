/*
 * guc.c
 *	  The settings outbox_kafka.*: definitions and check hooks.
 *
 * What concerns one database's relay or its publishers is PGC_SUSET, so that
 * ALTER DATABASE ... SET works and an administrator can pass it on with GRANT
 * SET ON PARAMETER; nothing that guards the server or the secrecy of the
 * broker's credentials can be set by ordinary users.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "guc.h"
#include "kafka.h"
#include "kafka_consumer.h"

char	   *guc_bootstrap_servers = NULL;
char	   *guc_producer_config = NULL;
char	   *guc_config_file = NULL;
int			guc_max_message_bytes = 1000000;
int			guc_max_in_flight = 50000;
int			guc_max_in_flight_size = 32 * 1024;
int			guc_retention = 3600;
int			guc_segment_size = 64;
int			guc_headers = HEADERS_CLOUDEVENTS;
int			guc_record_timestamp = RECORD_TIMESTAMP_CREATED;
char	   *guc_source = NULL;
int			guc_max_backlog = 0;
int			guc_backlog_policy = BACKLOG_REFUSE;
bool		guc_wait_for_standby = false;
char	   *guc_identity_file = NULL;
int			guc_max_databases = 64;
int			guc_max_inbox_workers = 16;
char	   *guc_consumer_config = NULL;
int			guc_metadata_refresh = 60;
int			guc_delivery = DELIVERY_AT_LEAST_ONCE;
int			guc_max_transaction_messages = 20000;
int			guc_handler_timeout = 60 * 1000;
int			guc_confirmation_retention = 7 * 24 * 3600;
char	   *guc_fault_point = NULL;

static const struct config_enum_entry delivery_options[] = {
	{"at_least_once", DELIVERY_AT_LEAST_ONCE, false},
	{"exactly_once", DELIVERY_EXACTLY_ONCE, false},
	{NULL, 0, false}
};

static const struct config_enum_entry headers_options[] = {
	{"cloudevents", HEADERS_CLOUDEVENTS, false},
	{"plain", HEADERS_PLAIN, false},
	{"none", HEADERS_NONE, false},
	{NULL, 0, false}
};

static const struct config_enum_entry record_timestamp_options[] = {
	{"created", RECORD_TIMESTAMP_CREATED, false},
	{"sent", RECORD_TIMESTAMP_SENT, false},
	{NULL, 0, false}
};

static const struct config_enum_entry backlog_policy_options[] = {
	{"warn", BACKLOG_WARN, false},
	{"refuse", BACKLOG_REFUSE, false},
	{NULL, 0, false}
};

static bool
check_producer_config(char **newval, void **extra, GucSource source)
{
	const char *problem;

	if (*newval == NULL || (*newval)[0] == '\0')
		return true;

	problem = kafka_conf_check(*newval);
	if (problem != NULL)
	{
		/* the server's own message would show the value, even a password */
		GUC_check_errmsg("invalid value for parameter \"%s\"",
						 "outbox_kafka.producer_config");
		GUC_check_errdetail("%s", problem);
		return false;
	}
	return true;
}

static bool
check_consumer_config(char **newval, void **extra, GucSource source)
{
	const char *problem;

	if (*newval == NULL || (*newval)[0] == '\0')
		return true;

	problem = kafka_consumer_conf_check(*newval);
	if (problem == NULL)
		return true;
	/* the server's own message would show the value, even a password */
	GUC_check_errmsg("invalid value for parameter \"%s\"",
					 "outbox_kafka.consumer_config");
	GUC_check_errdetail("%s", problem);
	return false;
}

/* It becomes a header of every record, so what CloudEvents forbids is refused. */
static bool
check_source(char **newval, void **extra, GucSource source)
{
	if (*newval == NULL)
		return true;

	for (const char *c = *newval; *c != '\0'; c++)
	{
		if ((unsigned char) *c <= ' ' || (unsigned char) *c >= 0x7f)
		{
			GUC_check_errdetail("A URI reference consists of printable ASCII characters without spaces.");
			return false;
		}
	}
	return true;
}

/* Relative to the data directory it would be copied with the server. */
static bool
check_identity_file(char **newval, void **extra, GucSource source)
{
	if (*newval == NULL || (*newval)[0] == '\0' || is_absolute_path(*newval))
		return true;
	GUC_check_errdetail("It must be an absolute path outside the data directory.");
	return false;
}

void
guc_define(void)
{
	/*
	 * Which Kafka cluster a database publishes to. Unset, messages are stored
	 * and wait. Pointing a running system at another cluster sends there what
	 * is still waiting, and nothing of what was delivered before.
	 */
	DefineCustomStringVariable("outbox_kafka.bootstrap_servers",
							   "Kafka brokers to connect to first.",
							   "A comma-separated list of host:port. Empty: messages are stored and wait.",
							   &guc_bootstrap_servers,
							   "",
							   PGC_SUSET, 0,
							   NULL, NULL, NULL);

	/*
	 * How the producer connects and sends: security protocol, compression,
	 * linger and the like. Only properties from a list are accepted; the ones
	 * that the promises rest on (acks, idempotence, timeouts) are not in it.
	 * Whoever may read all settings sees this one: passwords belong into
	 * config_file.
	 */
	DefineCustomStringVariable("outbox_kafka.producer_config",
							   "Properties of librdkafka for the producer.",
							   "Written as \"name=value; name=value\".",
							   &guc_producer_config,
							   "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY,
							   check_producer_config, NULL, NULL);

	/*
	 * The same for the consumers of subscriptions, which have other
	 * properties: how much is fetched at a time, what is read ahead. Where
	 * they read and what they skip is not among them.
	 */
	DefineCustomStringVariable("outbox_kafka.consumer_config",
							   "Properties of librdkafka for consumers.",
							   "Written as \"name=value; name=value\".",
							   &guc_consumer_config,
							   "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY,
							   check_consumer_config, NULL, NULL);

	/*
	 * How soon a new partition, or a new topic that matches a pattern, is
	 * read.
	 */
	DefineCustomIntVariable("outbox_kafka.metadata_refresh",
							"How often subscriptions look for new topics and partitions.",
							NULL,
							&guc_metadata_refresh,
							60, 1, 3600,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	/*
	 * Where passwords and keys are kept, out of reach of SQL. One file for
	 * the server; it must be readable by the server's user and root only.
	 */
	DefineCustomStringVariable("outbox_kafka.config_file",
							   "File with further properties of librdkafka, such as passwords.",
							   "Lines of name=value. It is refused unless only the server's user and root can read it.",
							   &guc_config_file,
							   "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);

	/*
	 * The largest record an application may publish. A larger value needs
	 * message.max.bytes of the brokers and max.message.bytes of the topics to
	 * be raised as well, or the brokers refuse what was accepted here.
	 */
	DefineCustomIntVariable("outbox_kafka.max_message_bytes",
							"Largest record that can be published: key, payload and headers.",
							NULL,
							&guc_max_message_bytes,
							1000000, 1, 1000000000,
							PGC_SUSET, GUC_UNIT_BYTE,
							NULL, NULL, NULL);

	/*
	 * How many messages are on their way at a time: throughput over distant
	 * brokers against the number that is sent twice after a crash.
	 */
	DefineCustomIntVariable("outbox_kafka.max_in_flight",
							"Messages that may be sent and not acknowledged yet.",
							"As many may be sent again after a crash.",
							&guc_max_in_flight,
							50000, 1, 1000000,
							PGC_SUSET, 0,
							NULL, NULL, NULL);

	/*
	 * The memory a relay may use for messages on their way.
	 */
	DefineCustomIntVariable("outbox_kafka.max_in_flight_size",
							"Amount of messages that may be sent and not acknowledged yet.",
							"One message is sent however large it is.",
							&guc_max_in_flight_size,
							32 * 1024, 64, 2 * 1024 * 1024,
							PGC_SUSET, GUC_UNIT_KB,
							NULL, NULL, NULL);

	/*
	 * Whether readers with isolation.level=read_committed get each message
	 * once, at the price of some milliseconds and of waiting for one
	 * transaction at a time, or sooner and perhaps again after a crash.
	 */
	DefineCustomEnumVariable("outbox_kafka.delivery",
							 "Sends messages at least once, or exactly once in Kafka transactions.",
							 NULL,
							 &guc_delivery,
							 DELIVERY_AT_LEAST_ONCE, delivery_options,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);

	/*
	 * Up to which size the messages of a transaction here become visible in
	 * Kafka together. Readers wait for the whole of a Kafka transaction.
	 */
	DefineCustomIntVariable("outbox_kafka.max_transaction_messages",
							"Messages of a Kafka transaction, with exactly_once.",
							"More that were committed together are split.",
							&guc_max_transaction_messages,
							20000, 1, 1000000,
							PGC_SUSET, 0,
							NULL, NULL, NULL);

	/*
	 * How long one bad handler may keep its partition, or the compensations
	 * of other messages, waiting.
	 */
	DefineCustomIntVariable("outbox_kafka.handler_timeout",
							"Time that one call of a handler may take.",
							"Of subscriptions and of confirmations. 0: no limit.",
							&guc_handler_timeout,
							60 * 1000, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	/* How long what was decided can be looked at, and late answers are known. */
	DefineCustomIntVariable("outbox_kafka.confirmation_retention",
							"Time that decided confirmations are kept.",
							"Failed compensations are kept until they are retried.",
							&guc_confirmation_retention,
							7 * 24 * 3600, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	/* For tests alone: where the relay is to die, see fault.h. */
	DefineCustomStringVariable("outbox_kafka.fault_point",
							   "Where the relay is killed, for tests.",
							   NULL,
							   &guc_fault_point,
							   "",
							   PGC_SUSET,
							   GUC_SUPERUSER_ONLY | GUC_NOT_IN_SAMPLE | GUC_NO_SHOW_ALL,
							   NULL, NULL, NULL);

	/*
	 * How long delivered messages can still be looked at: disk space against
	 * the time to find out what was sent.
	 */
	DefineCustomIntVariable("outbox_kafka.retention",
							"Time that delivered messages stay readable.",
							"It counts from delivery; 0 removes them as soon as their segment can be emptied.",
							&guc_retention,
							3600, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	/*
	 * How often the ring of segments turns. Smaller segments give space back
	 * sooner, each at the price of a short exclusive lock.
	 */
	DefineCustomIntVariable("outbox_kafka.segment_size",
							"Size of a segment after which publishing moves on to the next one.",
							NULL,
							&guc_segment_size,
							64, 1, 1024 * 1024,
							PGC_SUSET, GUC_UNIT_MB,
							NULL, NULL, NULL);

	/*
	 * What consumers get to know of a message besides key and value. Each
	 * header costs throughput.
	 */
	DefineCustomEnumVariable("outbox_kafka.headers",
							 "Headers that the relay adds to records.",
							 "cloudevents: ce_specversion, ce_id, ce_source, ce_type; plain: id; none: nothing.",
							 &guc_headers,
							 HEADERS_CLOUDEVENTS, headers_options,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);

	/*
	 * Whether consumers and the topic's retention go by the time of the event
	 * or by the time Kafka got it. Matters after an outage.
	 */
	DefineCustomEnumVariable("outbox_kafka.record_timestamp",
							 "Time that records carry: when they were published in SQL, or sent.",
							 NULL,
							 &guc_record_timestamp,
							 RECORD_TIMESTAMP_CREATED, record_timestamp_options,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);

	/*
	 * The name under which consumers know this database. Set it before
	 * several databases of the same name publish to one cluster, and keep it
	 * when a database is renamed.
	 */
	DefineCustomStringVariable("outbox_kafka.source",
							   "Value of the header ce_source.",
							   "Empty: /postgresql/ and the name of the database.",
							   &guc_source,
							   "",
							   PGC_SUSET, 0,
							   check_source, NULL, NULL);

	/*
	 * How much disk space messages may take before publishers notice that
	 * they do not get away: the disk's safety against the application's.
	 */
	DefineCustomIntVariable("outbox_kafka.max_backlog",
							"Disk space that messages may take before publishing warns or refuses.",
							"Tables, indexes and TOAST of outbox.message, measured about once a second. 0: no limit.",
							&guc_max_backlog,
							0, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_MB,
							NULL, NULL, NULL);

	/*
	 * Whether the application fails or the disk fills when Kafka has been
	 * away for too long.
	 */
	DefineCustomEnumVariable("outbox_kafka.backlog_policy",
							 "What publishing does when outbox_kafka.max_backlog is exceeded.",
							 "refuse: an error; warn: a warning, once a minute in each session.",
							 &guc_backlog_policy,
							 BACKLOG_REFUSE, backlog_policy_options,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);

	/*
	 * Whether a failover to the synchronous standby can take back what Kafka
	 * already has: a round trip to the standby before each batch, and nothing
	 * sent while it is away.
	 */
	DefineCustomBoolVariable("outbox_kafka.wait_for_standby",
							 "Sends a message only when the synchronous standby has flushed its commit.",
							 "Without a connected synchronous standby messages wait.",
							 &guc_wait_for_standby,
							 false,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	/*
	 * Which server a database may send from. A copy of the files that is
	 * brought up elsewhere, where this file does not name its databases,
	 * sends nothing.
	 */
	DefineCustomStringVariable("outbox_kafka.identity_file",
							   "File outside the data directory that names the databases that may send.",
							   "Lines with what outbox.identity() returns. Empty: all may.",
							   &guc_identity_file,
							   "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_identity_file, NULL, NULL);

	/*
	 * How much shared memory and how many of max_worker_processes the
	 * extension may take: one relay for each database that has it, one
	 * decider where confirmations are awaited, and the inbox workers of all
	 * databases together. Only a preloaded library can have such settings.
	 */
	if (process_shared_preload_libraries_in_progress)
	{
		DefineCustomIntVariable("outbox_kafka.max_databases",
								"Databases of this server that can have a relay at a time.",
								NULL,
								&guc_max_databases,
								64, 1, 10000,
								PGC_POSTMASTER, 0,
								NULL, NULL, NULL);
		DefineCustomIntVariable("outbox_kafka.max_inbox_workers",
								"Inbox workers of this server that can run at a time.",
								"A subscription takes as many as it was given workers.",
								&guc_max_inbox_workers,
								16, 0, 1000,
								PGC_POSTMASTER, 0,
								NULL, NULL, NULL);
	}

	MarkGUCPrefixReserved("outbox_kafka");
}
