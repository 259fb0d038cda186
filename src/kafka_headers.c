/*
 * kafka_headers.c
 *	  Headers of records.
 *
 * For librdkafka a list of headers is an allocation, one for what it holds and
 * one for each header, and all are freed with the record's report; with four
 * headers that took longer than handing the record over. Nearly all records of
 * a topic have the same headers but for one. So a list of that kind is taken
 * back from the report, to serve for a later record of the topic: one header is
 * replaced then, the others stay as they are.
 *
 * Lists are taken back and used in the thread that serves the producer.
 */
#include <stdlib.h>

#include "kafka.h"
#include "kafka_headers.h"

#define FIRST_ROOM 64

KafkaHeaders *
kafka_headers_new(int expected)
{
	return (KafkaHeaders *) rd_kafka_headers_new((size_t) expected);
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

KafkaHeaders *
kafka_headers_recurring(KafkaTopic *topic, const KafkaHeaders *constant,
						const char *name, const void *value, int value_length)
{
	KafkaSpareHeaders *spare = kafka_topic_spare_headers(topic);
	KafkaHeaders *headers;

	if (spare->count == 0)
		headers = (KafkaHeaders *) rd_kafka_headers_copy((const rd_kafka_headers_t *) constant);
	else
	{
		headers = (KafkaHeaders *) spare->lists[--spare->count];
		(*spare->total)--;
		rd_kafka_header_remove((rd_kafka_headers_t *) headers, name);
	}
	kafka_headers_add(headers, name, -1, value, value_length);
	return headers;
}

void
kafka_headers_take_back(KafkaSpareHeaders *spare, const rd_kafka_message_t *message)
{
	rd_kafka_headers_t *headers;

	if (*spare->total >= KAFKA_SPARE_HEADERS_MAX)
		return;
	if (spare->count == spare->room)
	{
		int			room = spare->room > 0 ? spare->room * 2 : FIRST_ROOM;
		rd_kafka_headers_t **lists = realloc(spare->lists, (size_t) room * sizeof(*lists));

		if (lists == NULL)
			return;
		spare->lists = lists;
		spare->room = room;
	}

	/* the message is librdkafka's and not constant; it frees what is left */
	if (rd_kafka_message_detach_headers((rd_kafka_message_t *) message, &headers) !=
		RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	spare->lists[spare->count++] = headers;
	(*spare->total)++;
}

void
kafka_headers_free_spare(KafkaSpareHeaders *spare)
{
	for (int i = 0; i < spare->count; i++)
		rd_kafka_headers_destroy(spare->lists[i]);
	*spare->total -= spare->count;
	free(spare->lists);
	spare->lists = NULL;
	spare->count = 0;
	spare->room = 0;
}
