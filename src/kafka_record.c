/*
 * kafka_record.c
 *	  What makes up a record and needs no producer: its headers, and the
 *	  partition that its key goes to.
 */
#include "kafka.h"
#include "kafka_conf.h"

int
kafka_partition_for_key(const void *key, size_t length, int partitions)
{
	/* the topic handle and the opaque pointers are for other partitioners */
	return rd_kafka_msg_partitioner_murmur2(NULL, key, length, partitions, NULL, NULL);
}

KafkaHeaders *
kafka_headers_new(int expected)
{
	return (KafkaHeaders *) rd_kafka_headers_new((size_t) expected);
}

KafkaHeaders *
kafka_headers_copy(const KafkaHeaders *headers)
{
	return (KafkaHeaders *) rd_kafka_headers_copy((const rd_kafka_headers_t *) headers);
}

void
kafka_headers_free(KafkaHeaders *headers)
{
	if (headers != NULL)
		rd_kafka_headers_destroy((rd_kafka_headers_t *) headers);
}

void
kafka_headers_add(KafkaHeaders *headers, const char *name, int name_length,
				  const void *value, int value_length)
{
	rd_kafka_header_add((rd_kafka_headers_t *) headers, name, name_length,
						value, value_length);
}
