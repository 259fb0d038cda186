/*
 * kafka_record.c
 *	  What can be said of a record without a producer: the partition that its
 *	  key goes to, and its size.
 */
#include <string.h>

#include "kafka.h"
#include "kafka_conf.h"

int
kafka_partition_for_key(const void *key, size_t length, int partitions)
{
	/* the topic handle and the opaque pointers are for other partitioners */
	return rd_kafka_msg_partitioner_murmur2(NULL, key, length, partitions, NULL, NULL);
}

size_t
kafka_record_size(const KafkaRecord *record)
{
	/*
	 * attributes; the length, the deltas of time and offset, the lengths of
	 * key and value and the number of headers are varints
	 */
	size_t		size = 1 + 5 + 10 + 5 + 5 + 5 + 5 + record->key_length + record->value_length;
	const char *name;
	const void *value;
	size_t		value_size;

	if (record->headers == NULL)
		return size;
	for (size_t i = 0;
		 rd_kafka_header_get_all((const rd_kafka_headers_t *) record->headers, i,
								 &name, &value, &value_size) == RD_KAFKA_RESP_ERR_NO_ERROR;
		 i++)
		size += 5 + strlen(name) + 5 + value_size;
	return size;
}
