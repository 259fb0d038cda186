/*
 * kafka_admin.c
 *	  What a test asks of a Kafka cluster, in milliseconds: Kafka's own tools
 *	  take a second or two each to start a Java machine.
 *
 *	  kafka_admin BOOTSTRAP metadata [TOPIC]
 *	  kafka_admin BOOTSTRAP create TOPIC PARTITIONS REPLICAS [NAME=VALUE...]
 *	  kafka_admin BOOTSTRAP delete TOPIC
 *	  kafka_admin BOOTSTRAP grow TOPIC PARTITIONS
 *	  kafka_admin BOOTSTRAP configure TOPIC [NAME=VALUE...]
 *	  kafka_admin BOOTSTRAP offsets TOPIC
 *	  kafka_admin BOOTSTRAP allow PRINCIPAL OPERATION topic|cluster NAME
 *	  kafka_admin BOOTSTRAP withdraw PRINCIPAL OPERATION topic|cluster NAME
 *	  kafka_admin BOOTSTRAP remove TOPIC PARTITION OFFSET
 *	  kafka_admin BOOTSTRAP committed GROUP TOPIC PARTITION
 *	  kafka_admin BOOTSTRAP transact TOPIC PARTITION commit|abort VALUE...
 *	  kafka_admin BOOTSTRAP produce TOPIC PARTITION KEY FILE [@TIME] [NAME[=VALUE]...]
 *
 * metadata prints a line "broker ID" for each broker that is alive and a line
 * "partition TOPIC NUMBER LEADER REPLICAS IN_SYNC" for each partition (leader
 * -1: none). offsets prints "NUMBER LOW HIGH" for each partition. configure
 * replaces the topic's whole configuration. allow and withdraw add and remove an
 * ACL, for any host; OPERATION is a name of Kafka's, such as WRITE. remove
 * deletes the records before an offset, as retention does. committed prints the
 * group's offset, -1001 if there is none. transact writes records without a key
 * in a transaction, which it commits or aborts. produce writes a record with a
 * file's content as value, these headers and a time in milliseconds, or the
 * present one; - is no key, or no value. Success is exit code 0; errors go to
 * standard error with exit code 1.
 */
#include <librdkafka/rdkafka.h>

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MS 10000

static rd_kafka_t *client;
static char errstr[512];

static void
fail(const char *format,...)
{
	va_list		args;

	fputs("kafka_admin: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static void
check_error(rd_kafka_resp_err_t err, const char *detail)
{
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		fail("%s: %s", rd_kafka_err2name(err),
			 detail && detail[0] ? detail : rd_kafka_err2str(err));
}

static int
to_number(const char *text)
{
	char	   *end;
	long		number = strtol(text, &end, 10);

	if (end == text || *end != '\0' || number < 1 || number > 100000)
		fail("not a count: %s", text);
	return (int) number;
}

static long long
to_offset(const char *text)
{
	char	   *end;
	long long	number = strtoll(text, &end, 10);

	if (end == text || *end != '\0' || number < 0)
		fail("not a number: %s", text);
	return number;
}

/* Wait for the result of a request about topics; its first error ends us. */
static void
finish_topic_request(rd_kafka_queue_t *queue)
{
	rd_kafka_event_t *event = rd_kafka_queue_poll(queue, 2 * TIMEOUT_MS);
	const rd_kafka_topic_result_t **topics = NULL;
	const rd_kafka_ConfigResource_t **resources = NULL;
	size_t		count = 0;

	if (event == NULL)
		fail("no answer");
	check_error(rd_kafka_event_error(event), rd_kafka_event_error_string(event));
	switch (rd_kafka_event_type(event))
	{
		case RD_KAFKA_EVENT_CREATETOPICS_RESULT:
			topics = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &count);
			break;
		case RD_KAFKA_EVENT_DELETETOPICS_RESULT:
			topics = rd_kafka_DeleteTopics_result_topics(rd_kafka_event_DeleteTopics_result(event), &count);
			break;
		case RD_KAFKA_EVENT_CREATEPARTITIONS_RESULT:
			topics = rd_kafka_CreatePartitions_result_topics(rd_kafka_event_CreatePartitions_result(event), &count);
			break;
		case RD_KAFKA_EVENT_ALTERCONFIGS_RESULT:
			resources = rd_kafka_AlterConfigs_result_resources(rd_kafka_event_AlterConfigs_result(event), &count);
			break;
		default:
			fail("unexpected event %s", rd_kafka_event_name(event));
	}
	for (size_t i = 0; i < count; i++)
	{
		if (topics)
			check_error(rd_kafka_topic_result_error(topics[i]),
						rd_kafka_topic_result_error_string(topics[i]));
		else
			check_error(rd_kafka_ConfigResource_error(resources[i]),
						rd_kafka_ConfigResource_error_string(resources[i]));
	}
	rd_kafka_event_destroy(event);
}

static rd_kafka_AdminOptions_t *
new_options(rd_kafka_admin_op_t operation)
{
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(client, operation);

	check_error(rd_kafka_AdminOptions_set_request_timeout(options, TIMEOUT_MS, errstr, sizeof(errstr)), errstr);
	if (operation != RD_KAFKA_ADMIN_OP_ALTERCONFIGS)
		check_error(rd_kafka_AdminOptions_set_operation_timeout(options, TIMEOUT_MS, errstr, sizeof(errstr)), errstr);
	return options;
}

/* Split "name=value"; the result points into the argument. */
static void
split_setting(char *argument, const char **name, const char **value)
{
	char	   *equals = strchr(argument, '=');

	if (equals == NULL)
		fail("not NAME=VALUE: %s", argument);
	*equals = '\0';
	*name = argument;
	*value = equals + 1;
}

static void
create_topic(rd_kafka_queue_t *queue, int argc, char **argv)
{
	rd_kafka_NewTopic_t *topic;
	rd_kafka_AdminOptions_t *options = new_options(RD_KAFKA_ADMIN_OP_CREATETOPICS);

	if (argc < 3)
		fail("create needs a topic, partitions and replicas");
	topic = rd_kafka_NewTopic_new(argv[0], to_number(argv[1]), to_number(argv[2]), errstr, sizeof(errstr));
	if (topic == NULL)
		fail("%s", errstr);
	for (int i = 3; i < argc; i++)
	{
		const char *name,
				   *value;

		split_setting(argv[i], &name, &value);
		check_error(rd_kafka_NewTopic_set_config(topic, name, value), NULL);
	}
	rd_kafka_CreateTopics(client, &topic, 1, options, queue);
	finish_topic_request(queue);
	rd_kafka_NewTopic_destroy(topic);
	rd_kafka_AdminOptions_destroy(options);
}

static void
delete_topic(rd_kafka_queue_t *queue, const char *name)
{
	rd_kafka_DeleteTopic_t *topic = rd_kafka_DeleteTopic_new(name);
	rd_kafka_AdminOptions_t *options = new_options(RD_KAFKA_ADMIN_OP_DELETETOPICS);

	rd_kafka_DeleteTopics(client, &topic, 1, options, queue);
	finish_topic_request(queue);
	rd_kafka_DeleteTopic_destroy(topic);
	rd_kafka_AdminOptions_destroy(options);
}

static void
grow_topic(rd_kafka_queue_t *queue, const char *name, const char *partitions)
{
	rd_kafka_NewPartitions_t *topic;
	rd_kafka_AdminOptions_t *options = new_options(RD_KAFKA_ADMIN_OP_CREATEPARTITIONS);

	topic = rd_kafka_NewPartitions_new(name, to_number(partitions), errstr, sizeof(errstr));
	if (topic == NULL)
		fail("%s", errstr);
	rd_kafka_CreatePartitions(client, &topic, 1, options, queue);
	finish_topic_request(queue);
	rd_kafka_NewPartitions_destroy(topic);
	rd_kafka_AdminOptions_destroy(options);
}

static void
configure_topic(rd_kafka_queue_t *queue, int argc, char **argv)
{
	rd_kafka_ConfigResource_t *resource;
	rd_kafka_AdminOptions_t *options = new_options(RD_KAFKA_ADMIN_OP_ALTERCONFIGS);

	resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, argv[0]);
	for (int i = 1; i < argc; i++)
	{
		const char *name,
				   *value;

		split_setting(argv[i], &name, &value);
		check_error(rd_kafka_ConfigResource_set_config(resource, name, value), NULL);
	}
	rd_kafka_AlterConfigs(client, &resource, 1, options, queue);
	finish_topic_request(queue);
	rd_kafka_ConfigResource_destroy(resource);
	rd_kafka_AdminOptions_destroy(options);
}

static rd_kafka_AclOperation_t
to_operation(const char *name)
{
	for (int i = 0; i < RD_KAFKA_ACL_OPERATION__CNT; i++)
	{
		if (strcmp(rd_kafka_AclOperation_name((rd_kafka_AclOperation_t) i), name) == 0)
			return (rd_kafka_AclOperation_t) i;
	}
	fail("no such operation: %s", name);
	return RD_KAFKA_ACL_OPERATION_UNKNOWN;
}

/* Add (allow) or remove an ACL; what is removed has to be there. */
static void
change_acl(rd_kafka_queue_t *queue, bool allow, char **argv)
{
	bool		is_cluster = strcmp(argv[2], "cluster") == 0;
	rd_kafka_ResourceType_t type = is_cluster ? RD_KAFKA_RESOURCE_BROKER : RD_KAFKA_RESOURCE_TOPIC;
	rd_kafka_AclOperation_t operation = to_operation(argv[1]);
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(client, allow ? RD_KAFKA_ADMIN_OP_CREATEACLS : RD_KAFKA_ADMIN_OP_DELETEACLS);
	rd_kafka_AclBinding_t *acl;
	rd_kafka_event_t *event;
	const rd_kafka_error_t *error = NULL;
	const rd_kafka_acl_result_t **results;
	const rd_kafka_DeleteAcls_result_response_t **responses;
	size_t		count = 0;
	size_t		removed = 0;

	if (allow)
		acl = rd_kafka_AclBinding_new(type, argv[3], RD_KAFKA_RESOURCE_PATTERN_LITERAL,
									  argv[0], "*", operation,
									  RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW, errstr, sizeof(errstr));
	else
		acl = rd_kafka_AclBindingFilter_new(type, argv[3], RD_KAFKA_RESOURCE_PATTERN_LITERAL,
											argv[0], "*", operation,
											RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW, errstr, sizeof(errstr));
	if (acl == NULL)
		fail("%s", errstr);
	check_error(rd_kafka_AdminOptions_set_request_timeout(options, TIMEOUT_MS, errstr, sizeof(errstr)), errstr);
	if (allow)
		rd_kafka_CreateAcls(client, &acl, 1, options, queue);
	else
		rd_kafka_DeleteAcls(client, &acl, 1, options, queue);

	event = rd_kafka_queue_poll(queue, 2 * TIMEOUT_MS);
	if (event == NULL)
		fail("no answer");
	check_error(rd_kafka_event_error(event), rd_kafka_event_error_string(event));
	if (allow)
	{
		results = rd_kafka_CreateAcls_result_acls(rd_kafka_event_CreateAcls_result(event), &count);
		for (size_t i = 0; i < count && error == NULL; i++)
			error = rd_kafka_acl_result_error(results[i]);
	}
	else
	{
		responses = rd_kafka_DeleteAcls_result_responses(rd_kafka_event_DeleteAcls_result(event), &count);
		for (size_t i = 0; i < count && error == NULL; i++)
		{
			error = rd_kafka_DeleteAcls_result_response_error(responses[i]);
			if (error == NULL)
				(void) rd_kafka_DeleteAcls_result_response_matching_acls(responses[i], &removed);
		}
		if (error == NULL && removed == 0)
			fail("there is no such ACL");
	}
	if (error != NULL)
		fail("%s", rd_kafka_error_string(error));
	rd_kafka_event_destroy(event);
	rd_kafka_AclBinding_destroy(acl);
	rd_kafka_AdminOptions_destroy(options);
}

/* Metadata of one topic, or of all and the brokers. Caller destroys it. */
static const rd_kafka_metadata_t *
get_metadata(const char *name, rd_kafka_topic_t **topic)
{
	const rd_kafka_metadata_t *metadata;

	*topic = name ? rd_kafka_topic_new(client, name, NULL) : NULL;
	check_error(rd_kafka_metadata(client, name == NULL, *topic, &metadata, TIMEOUT_MS), NULL);
	return metadata;
}

static void
print_ids(const int32_t *ids, int count)
{
	putchar(' ');
	for (int i = 0; i < count; i++)
		printf("%s%d", i ? "," : "", ids[i]);
}

static void
print_metadata(const char *name)
{
	rd_kafka_topic_t *handle;
	const rd_kafka_metadata_t *metadata = get_metadata(name, &handle);

	for (int i = 0; i < metadata->broker_cnt; i++)
		printf("broker %d\n", metadata->brokers[i].id);
	for (int i = 0; i < metadata->topic_cnt; i++)
	{
		const rd_kafka_metadata_topic_t *topic = &metadata->topics[i];

		if (name)
			check_error(topic->err, NULL);
		for (int j = 0; j < topic->partition_cnt; j++)
		{
			const rd_kafka_metadata_partition_t *partition = &topic->partitions[j];

			printf("partition %s %d %d", topic->topic, partition->id, partition->leader);
			print_ids(partition->replicas, partition->replica_cnt);
			print_ids(partition->isrs, partition->isr_cnt);
			putchar('\n');
		}
	}
	rd_kafka_metadata_destroy(metadata);
	if (handle)
		rd_kafka_topic_destroy(handle);
}

static void
print_offsets(const char *name)
{
	rd_kafka_topic_t *handle;
	const rd_kafka_metadata_t *metadata = get_metadata(name, &handle);

	check_error(metadata->topics[0].err, NULL);
	for (int i = 0; i < metadata->topics[0].partition_cnt; i++)
	{
		int32_t		partition = metadata->topics[0].partitions[i].id;
		int64_t		low,
					high;

		check_error(rd_kafka_query_watermark_offsets(client, name, partition, &low, &high, TIMEOUT_MS), NULL);
		printf("%d %lld %lld\n", partition, (long long) low, (long long) high);
	}
	rd_kafka_metadata_destroy(metadata);
	rd_kafka_topic_destroy(handle);
}

static void
remove_records(rd_kafka_queue_t *queue, char **argv)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_DeleteRecords_t *request;
	const rd_kafka_topic_partition_list_t *result;
	rd_kafka_event_t *event;

	rd_kafka_topic_partition_list_add(list, argv[0], (int32_t) to_offset(argv[1]))->offset = to_offset(argv[2]);
	request = rd_kafka_DeleteRecords_new(list);
	rd_kafka_DeleteRecords(client, &request, 1, NULL, queue);
	event = rd_kafka_queue_poll(queue, 2 * TIMEOUT_MS);
	if (event == NULL)
		fail("no answer");
	check_error(rd_kafka_event_error(event), rd_kafka_event_error_string(event));
	result = rd_kafka_DeleteRecords_result_offsets(rd_kafka_event_DeleteRecords_result(event));
	for (int i = 0; i < result->cnt; i++)
		check_error(result->elems[i].err, NULL);
	rd_kafka_event_destroy(event);
	rd_kafka_DeleteRecords_destroy(request);
	rd_kafka_topic_partition_list_destroy(list);
}

static void
set_conf(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	if (rd_kafka_conf_set(conf, name, value, errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK)
		fail("%s", errstr);
}

static rd_kafka_t *
new_client(rd_kafka_type_t type, const char *bootstrap, const char *name, const char *value)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *result;

	set_conf(conf, "bootstrap.servers", bootstrap);
	set_conf(conf, "log_level", "0");
	set_conf(conf, name, value);
	result = rd_kafka_new(type, conf, errstr, sizeof(errstr));
	if (result == NULL)
		fail("%s", errstr);
	return result;
}

static void
print_committed(const char *bootstrap, char **argv)
{
	rd_kafka_t *consumer = new_client(RD_KAFKA_CONSUMER, bootstrap, "group.id", argv[0]);
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);

	rd_kafka_topic_partition_list_add(list, argv[1], (int32_t) to_offset(argv[2]));
	check_error(rd_kafka_committed(consumer, list, TIMEOUT_MS), NULL);
	check_error(list->elems[0].err, NULL);
	printf("%lld\n", (long long) list->elems[0].offset);
	rd_kafka_topic_partition_list_destroy(list);
	rd_kafka_destroy(consumer);
}

static void
check_done(rd_kafka_error_t *error)
{
	if (error != NULL)
		fail("%s", rd_kafka_error_string(error));
}

static void
produce(const char *bootstrap, int argc, char **argv)
{
	rd_kafka_t *producer = new_client(RD_KAFKA_PRODUCER, bootstrap, "message.max.bytes", "100000000");
	rd_kafka_headers_t *headers = rd_kafka_headers_new(1);
	const char *key = strcmp(argv[2], "-") == 0 ? NULL : argv[2];
	char	   *value = NULL;
	size_t		length = 0;
	int64_t		time = 0;

	if (strcmp(argv[3], "-") != 0)
	{
		FILE	   *file = fopen(argv[3], "rb");

		value = malloc(100000000);
		if (file == NULL || value == NULL)
			fail("could not read %s", argv[3]);
		length = fread(value, 1, 100000000, file);
		fclose(file);
	}
	for (int i = 4; i < argc; i++)
	{
		char	   *equals = strchr(argv[i], '=');

		if (argv[i][0] == '@')
		{
			time = to_offset(argv[i] + 1);
			continue;
		}
		rd_kafka_header_add(headers, argv[i], equals ? equals - argv[i] : -1,
							equals ? equals + 1 : NULL, equals ? -1 : 0);
	}
	check_error(rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(argv[0]),
								  RD_KAFKA_V_PARTITION((int32_t) to_offset(argv[1])),
								  RD_KAFKA_V_KEY(key, key ? strlen(key) : 0),
								  RD_KAFKA_V_VALUE(value, length),
								  RD_KAFKA_V_TIMESTAMP(time),
								  RD_KAFKA_V_HEADERS(headers), RD_KAFKA_V_END), NULL);
	check_error(rd_kafka_flush(producer, TIMEOUT_MS), NULL);
	if (rd_kafka_outq_len(producer) > 0)
		fail("the record was not taken");
	rd_kafka_destroy(producer);
	free(value);
}

static void
transact(const char *bootstrap, int argc, char **argv)
{
	rd_kafka_t *producer = new_client(RD_KAFKA_PRODUCER, bootstrap, "transactional.id", argv[0]);

	check_done(rd_kafka_init_transactions(producer, TIMEOUT_MS));
	check_done(rd_kafka_begin_transaction(producer));
	for (int i = 3; i < argc; i++)
		check_error(rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(argv[0]),
									  RD_KAFKA_V_PARTITION((int32_t) to_offset(argv[1])),
									  RD_KAFKA_V_VALUE(argv[i], strlen(argv[i])),
									  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
									  RD_KAFKA_V_END), NULL);
	check_error(rd_kafka_flush(producer, TIMEOUT_MS), NULL);
	if (strcmp(argv[2], "commit") == 0)
		check_done(rd_kafka_commit_transaction(producer, TIMEOUT_MS));
	else
		check_done(rd_kafka_abort_transaction(producer, TIMEOUT_MS));
	rd_kafka_destroy(producer);
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_queue_t *queue;
	const char *command;

	if (argc < 3)
		fail("usage: kafka_admin BOOTSTRAP COMMAND [ARGUMENT...]");
	command = argv[2];
	if (rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK ||
		rd_kafka_conf_set(conf, "log_level", "0", errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK)
		fail("%s", errstr);
	client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	if (client == NULL)
		fail("%s", errstr);
	queue = rd_kafka_queue_new(client);

	if (strcmp(command, "metadata") == 0 && argc <= 4)
		print_metadata(argc > 3 ? argv[3] : NULL);
	else if (strcmp(command, "create") == 0)
		create_topic(queue, argc - 3, argv + 3);
	else if (strcmp(command, "delete") == 0 && argc == 4)
		delete_topic(queue, argv[3]);
	else if (strcmp(command, "grow") == 0 && argc == 5)
		grow_topic(queue, argv[3], argv[4]);
	else if (strcmp(command, "configure") == 0 && argc >= 4)
		configure_topic(queue, argc - 3, argv + 3);
	else if (strcmp(command, "offsets") == 0 && argc == 4)
		print_offsets(argv[3]);
	else if ((strcmp(command, "allow") == 0 || strcmp(command, "withdraw") == 0) && argc == 7)
		change_acl(queue, strcmp(command, "allow") == 0, argv + 3);
	else if (strcmp(command, "remove") == 0 && argc == 6)
		remove_records(queue, argv + 3);
	else if (strcmp(command, "committed") == 0 && argc == 6)
		print_committed(argv[1], argv + 3);
	else if (strcmp(command, "transact") == 0 && argc >= 6)
		transact(argv[1], argc - 3, argv + 3);
	else if (strcmp(command, "produce") == 0 && argc >= 7)
		produce(argv[1], argc - 3, argv + 3);
	else
		fail("no such command or wrong arguments: %s", command);

	rd_kafka_queue_destroy(queue);
	rd_kafka_destroy(client);
	return 0;
}
