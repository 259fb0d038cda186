# outbox_kafka
#
#   make, make install   build and install; PG_CONFIG=... picks the PostgreSQL
#   make demo            install what is needed, then show it at work
#   make test            install what is needed, then run every test; needs no
#                        PostgreSQL server and leaves the installed one alone
#   make bench           measure, side by side, over a real Kafka
#   make installcheck    regress, isolation and TAP tests of an installed build
#                        (check-regress, check-isolation, check-tap: one kind;
#                        check-tap PROVE_TESTS=test/t/010_orders.pl: one file)
#   make unit            tests of the parts that need no PostgreSQL
#   make indent-check    is the C code as pgindent would have it?

EXTENSION = outbox_kafka
MODULE_big = outbox_kafka
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA = $(wildcard sql/outbox_kafka--*.sql)
PGFILEDESC = "outbox_kafka - transactional outbox for Apache Kafka"
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers
SHLIB_LINK = -lrdkafka

# Tests, in the order in which they run. sql/ also holds the install script, so
# this list is kept by hand; test/t/001_packaging.pl compares it with the files.
REGRESS = objects publish publish_errors publish_encoding insert grants confirmation inbox
REGRESS_OPTS = --temp-instance=./tmp_check_regress --temp-config=$(srcdir)/test/regress.conf

ISOLATION = cursor_late_commit cursor_lock_order cursor_above_xmax cursor_long_writer \
	cursor_prepared cursor_subtransaction cursor_fresh_sequence cursor_chunks \
	cursor_segments cursor_bound_order cursor_empty_segment cursor_older_than_extension \
	publish_order publish_grant confirmation_race
ISOLATION_OPTS = --inputdir=$(srcdir)/test/isolation --load-extension=outbox_kafka \
	--load-extension=cursor_test --temp-instance=./tmp_check_isolation --temp-config=$(srcdir)/test/regress.conf

TAP_TESTS = 1
PROVE_TESTS ?= test/t/*.pl

UNIT_TESTS = $(patsubst %.c,%,$(wildcard test/unit/*_test.c))

EXTRA_CLEAN = results/ output_iso/ log/ tmp_check_regress/ tmp_check_isolation/ \
	regression.diffs regression.out $(UNIT_TESTS) test/unit/*.o

# What has to work before PostgreSQL's build files are there.
STANDALONE = test demo bench install-deps indent-check

ifneq ($(filter-out $(STANDALONE),$(or $(MAKECMDGOALS),all)),)
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
endif

PROVE_FLAGS += -I test/lib $(if $(OUTBOX_TEST_TOTALS),--harness OutboxTest::Harness)

# PGXS knows nothing of headers, unless PostgreSQL was built to track them.
$(OBJS) $(OBJS:.o=.bc): $(wildcard src/*.h)

check-regress:
	$(if $(REGRESS),$(pg_regress_installcheck) $(REGRESS_OPTS) $(REGRESS))

check-isolation: test-modules
	$(if $(ISOLATION),$(pg_isolation_regress_installcheck) $(ISOLATION_OPTS) $(ISOLATION))

check-tap: test-modules test-programs
	$(prove_installcheck)

installcheck: test-modules test-programs

# An extension with the cursor in it that tests can call; installs it, too.
test-modules:
	$(MAKE) --no-print-directory -C test/modules/cursor_test PG_CONFIG=$(PG_CONFIG) all install

# The real Kafka, and a stand-in for it that can be told to fail.
test-programs:
	$(MAKE) --no-print-directory -C test/kafka
	$(MAKE) --no-print-directory -C test/mockbroker

unit:
	$(MAKE) --no-print-directory -C test/unit
	$(PROVE) $(PROVE_FLAGS) --exec '' $(UNIT_TESTS)

test:
	test/run.sh

demo:
	test/install-deps.sh demo
	test/demo/demo.sh

bench:
	test/install-deps.sh bench
	test/bench/run.sh

install-deps:
	test/install-deps.sh test

indent-check:
	src/tools/indent.sh check

.PHONY: check-regress check-isolation check-tap test-modules test-programs unit $(STANDALONE)
