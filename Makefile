EXTENSION = outbox_kafka
MODULE_big = outbox_kafka
OBJS = $(patsubst %.c,%.o,$(wildcard src/*.c))
DATA = $(wildcard sql/outbox_kafka--*.sql)
PGFILEDESC = "outbox_kafka - transactional outbox for Apache Kafka"
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers
SHLIB_LINK = -lrdkafka
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
