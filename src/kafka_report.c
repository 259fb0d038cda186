/*
 * kafka_report.c
 *	  What a delivery report says.
 *
 * Where a batch was refused and a later one of its partition then accepted,
 * librdkafka takes the earlier one for written, too: a broker that checks
 * sequence numbers would not have accepted the later one otherwise. Such a
 * success has no offset, and is not taken for one here: not every broker may
 * check, and sending again is what at least once is for.
 */
#include "kafka_error.h"
#include "kafka_report.h"

void
kafka_report_read(const rd_kafka_message_t *message, KafkaDelivery *delivery)
{
	rd_kafka_resp_err_t code = message->err;

	if (code == RD_KAFKA_RESP_ERR_NO_ERROR && message->offset < 0)
		code = RD_KAFKA_RESP_ERR__NO_OFFSET;
	delivery->tag = (uint64_t) (uintptr_t) message->_private;
	delivery->partition = message->partition;
	delivery->offset = message->offset;
	delivery->code = code;
	delivery->class = (code == RD_KAFKA_RESP_ERR_NO_ERROR) ?
		KAFKA_ERROR_NONE : kafka_classify(code, FROM_REPORT);
}
