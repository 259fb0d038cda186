/*
 * kafka_conf_rules.c
 *	  The list of librdkafka's properties that can be set; see
 *	  kafka_conf_rules.h.
 */
#include <fnmatch.h>
#include <stddef.h>

#include "kafka_conf_rules.h"

#define REASON_SECRET "it is a secret"
#define REASON_READS_FILE "it makes the server read a file"
#define REASON_CALLS_OUT "it holds credentials or makes the server call an address"
#define REASON_LOADS_CODE "it loads or runs code"
#define REASON_CALLBACK "it is not a property that text can set"
#define REASON_GIVES_UP "the relay never gives up a message"
#define REASON_IN_FLIGHT "outbox_kafka.max_in_flight and outbox_kafka.max_in_flight_size bound the queue"
#define REASON_PARTITIONER "the relay chooses the partition itself"
#define REASON_ORDER "messages have to keep their order"
#define REASON_GROUP "the workers divide the partitions themselves"
#define REASON_POSITION "positions are kept in inbox.offset"

/* Of each list, the first pattern that matches counts. */
static const PropertyRule producer_rules[] = {
	/* values that the promises rest on */
	{"acks", NOWHERE, "it is always \"all\"", "all|-1"},
	{"request.required.acks", NOWHERE, "it is always \"all\"", "all|-1"},
	{"enable.idempotence", NOWHERE, "it is always on", "true"},
	{"enable.gapless.guarantee", NOWHERE, "it is always on", "true"},
	{"max.in.flight.requests.per.connection", NOWHERE, "an idempotent producer takes 1 to 5", "1|2|3|4|5"},
	{"max.in.flight", NOWHERE, "an idempotent producer takes 1 to 5", "1|2|3|4|5"},
	{"message.timeout.ms", NOWHERE, REASON_GIVES_UP, "0"},
	{"delivery.timeout.ms", NOWHERE, REASON_GIVES_UP, "0"},
	{"retries", NOWHERE, REASON_GIVES_UP, "2147483647"},
	{"message.send.max.retries", NOWHERE, REASON_GIVES_UP, "2147483647"},
	{"queuing.strategy", NOWHERE, REASON_ORDER, "fifo"},
	{"msg_order_cmp", NOWHERE, REASON_ORDER},
	{"message.max.bytes", NOWHERE, "outbox_kafka.max_message_bytes bounds a record"},
	{"queue.buffering.max.messages", NOWHERE, REASON_IN_FLIGHT},
	{"queue.buffering.max.kbytes", NOWHERE, REASON_IN_FLIGHT},
	{"transactional.id", NOWHERE, "the relay decides on transactions"},
	{"transaction.timeout.ms", NOWHERE, "the relay decides on transactions"},
	{"delivery.report.only.error", NOWHERE, "the relay needs every delivery report", "false"},
	{"produce.offset.report", NOWHERE, "it is always on", "true"},
	{"partitioner", NOWHERE, REASON_PARTITIONER},
	{"sticky.partitioning.linger.ms", NOWHERE, REASON_PARTITIONER},

	/* tuning */
	{"compression.codec", ANYWHERE},
	{"compression.type", ANYWHERE},
	{"compression.level", ANYWHERE},
	{"linger.ms", ANYWHERE},
	{"queue.buffering.max.ms", ANYWHERE},
	{"queue.buffering.backpressure.threshold", ANYWHERE},
	{"batch.size", ANYWHERE},
	{"batch.num.messages", ANYWHERE},
	{"message.copy.max.bytes", ANYWHERE},
	{"request.timeout.ms", ANYWHERE},
	{"topic.metadata.propagation.max.ms", ANYWHERE},
};

static const PropertyRule consumer_rules[] = {
	/* where to read, and how far, is the database's to say */
	{"group.id", NOWHERE, REASON_GROUP},
	{"group.*", NOWHERE, REASON_GROUP},
	{"partition.assignment.strategy", NOWHERE, REASON_GROUP},
	{"session.timeout.ms", NOWHERE, REASON_GROUP},
	{"heartbeat.interval.ms", NOWHERE, REASON_GROUP},
	{"coordinator.query.interval.ms", NOWHERE, REASON_GROUP},
	{"max.poll.interval.ms", NOWHERE, REASON_GROUP},
	{"enable.auto.commit", NOWHERE, REASON_POSITION, "false"},
	{"auto.commit.enable", NOWHERE, REASON_POSITION, "false"},
	{"auto.commit.interval.ms", NOWHERE, REASON_POSITION},
	{"enable.auto.offset.store", NOWHERE, REASON_POSITION, "false"},
	{"offset.store.*", NOWHERE, REASON_POSITION},
	{"auto.offset.reset", NOWHERE, "start_from of inbox.subscribe() decides", "error"},
	{"isolation.level", NOWHERE, "what was aborted is never handled", "read_committed"},
	{"enable.partition.eof", NOWHERE, "it is always on", "true"},
	{"consume.callback.max.messages", NOWHERE, REASON_CALLBACK},

	/* tuning */
	{"fetch.*", ANYWHERE},
	{"max.partition.fetch.bytes", ANYWHERE},
	{"queued.min.messages", ANYWHERE},
	{"queued.max.messages.kbytes", ANYWHERE},
	{"check.crcs", ANYWHERE},
};

static const PropertyRule common_rules[] = {
	/* what has a setting of its own, or a value that we rest on */
	{"bootstrap.servers", NOWHERE, "it has a setting of its own, outbox_kafka.bootstrap_servers"},
	{"metadata.broker.list", NOWHERE, "it has a setting of its own, outbox_kafka.bootstrap_servers"},
	{"topic.blacklist", NOWHERE, "it would hide topics from us"},
	{"statistics.interval.ms", NOWHERE, "nobody would read the statistics"},
	{"log.queue", NOWHERE, "our log depends on it", "true"},

	/* code */
	{"plugin.library.paths", NOWHERE, REASON_LOADS_CODE},
	{"ssl.engine.*", NOWHERE, REASON_LOADS_CODE},
	{"ssl_engine_callback_data", NOWHERE, REASON_LOADS_CODE},
	{"ssl.providers", NOWHERE, REASON_LOADS_CODE},
	{"sasl.kerberos.kinit.cmd", NOWHERE, "it is a shell command"},
	{"enable.sasl.oauthbearer.unsecure.jwt", NOWHERE, "an unsigned token is no authentication", "false"},
	{"internal.*", NOWHERE, "it is internal to librdkafka"},
	{"test.mock.*", NOWHERE, "it replaces the brokers"},
	{"interceptors", NOWHERE, REASON_CALLBACK},
	{"enabled_events", NOWHERE, REASON_CALLBACK},
	{"opaque", NOWHERE, REASON_CALLBACK},
	{"default_topic_conf", NOWHERE, REASON_CALLBACK},
	{"ssl_key", NOWHERE, REASON_CALLBACK},
	{"ssl_certificate", NOWHERE, REASON_CALLBACK},
	{"ssl_ca", NOWHERE, REASON_CALLBACK},
	{"*_cb", NOWHERE, REASON_CALLBACK},

	/* secrets and files */
	{"sasl.password", FILE_ONLY, REASON_SECRET},
	{"ssl.key.password", FILE_ONLY, REASON_SECRET},
	{"ssl.keystore.password", FILE_ONLY, REASON_SECRET},
	{"ssl.key.pem", FILE_ONLY, REASON_SECRET},
	{"ssl.certificate.pem", FILE_ONLY, "it belongs to the key"},
	{"ssl.ca.pem", FILE_ONLY, "it decides whom to trust"},
	{"https.ca.pem", FILE_ONLY, "it decides whom to trust"},
	{"ssl.key.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.certificate.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.ca.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.crl.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.keystore.location", FILE_ONLY, REASON_READS_FILE},
	{"https.ca.location", FILE_ONLY, REASON_READS_FILE},
	{"ssl.ca.certificate.stores", FILE_ONLY, "it decides whom to trust"},
	{"sasl.kerberos.keytab", FILE_ONLY, REASON_READS_FILE},
	{"sasl.kerberos.principal", FILE_ONLY, "it becomes part of a shell command"},
	{"sasl.oauthbearer.*", FILE_ONLY, REASON_CALLS_OUT},

	/* security without secrets */
	{"security.protocol", ANYWHERE},
	{"sasl.mechanism", ANYWHERE},
	{"sasl.mechanisms", ANYWHERE},
	{"sasl.username", ANYWHERE},
	{"sasl.kerberos.service.name", ANYWHERE},
	{"sasl.kerberos.min.time.before.relogin", ANYWHERE},
	{"ssl.cipher.suites", ANYWHERE},
	{"ssl.curves.list", ANYWHERE},
	{"ssl.sigalgs.list", ANYWHERE},
	{"ssl.endpoint.identification.algorithm", ANYWHERE},
	{"enable.ssl.certificate.verification", ANYWHERE},

	/* tuning */
	{"client.id", ANYWHERE},
	{"client.rack", ANYWHERE},
	{"client.dns.lookup", ANYWHERE},
	{"receive.message.max.bytes", ANYWHERE},
	{"retry.backoff.ms", ANYWHERE},
	{"retry.backoff.max.ms", ANYWHERE},
	{"reconnect.backoff.ms", ANYWHERE},
	{"reconnect.backoff.max.ms", ANYWHERE},
	{"reconnect.backoff.jitter.ms", ANYWHERE},
	{"connections.max.idle.ms", ANYWHERE},
	{"socket.*.bytes", ANYWHERE},
	{"socket.*.ms", ANYWHERE},
	{"socket.keepalive.enable", ANYWHERE},
	{"socket.nagle.disable", ANYWHERE},
	{"socket.max.fails", ANYWHERE},
	{"broker.address.ttl", ANYWHERE},
	{"broker.address.family", ANYWHERE},
	{"metadata.max.age.ms", ANYWHERE},
	{"metadata.recovery.*", ANYWHERE},
	{"topic.metadata.refresh.*", ANYWHERE},
	{"allow.auto.create.topics", ANYWHERE},
	{"enable.metrics.push", ANYWHERE},
	{"api.version.request.timeout.ms", ANYWHERE},
	{"log_level", ANYWHERE},
	{"log.connection.close", ANYWHERE},
	{"log.thread.name", ANYWHERE},
	{"debug", ANYWHERE},
};

static const PropertyRule *
find_rule(const PropertyRule *rules, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
	{
		if (fnmatch(rules[i].pattern, name, 0) == 0)
			return &rules[i];
	}
	return NULL;
}

#define FIND_RULE(rules, name) \
	find_rule(rules, sizeof(rules) / sizeof((rules)[0]), name)

const PropertyRule *
kafka_conf_rule(const char *name, PropertyUser user)
{
	const PropertyRule *rule = (user == FOR_PRODUCER) ?
	FIND_RULE(producer_rules, name) : FIND_RULE(consumer_rules, name);

	return rule != NULL ? rule : FIND_RULE(common_rules, name);
}
