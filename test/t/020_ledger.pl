
# The promise of the extension under concurrency, undisturbed: 16 writers with
# transactions of all shapes for 30 seconds; then every committed message, and
# nothing else, is in Kafka exactly once, each aggregate's in the order of its
# versions. The comparison is proved on the same log: tampered with, it fails.
#
# OUTBOX_LEDGER_SECONDS and OUTBOX_LEDGER_SEED change the load.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kafka;
use OutboxTest::Ledger;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_node(
	'ledger',
	kafka => $kafka,
	conf => {
		'fsync' => 'on',
		'max_prepared_transactions' => 100,
		'outbox_kafka.retention' => '0',
		'outbox_kafka.segment_size' => '1MB'
	});
new_database($node, 'a');

my $ledger = OutboxTest::Ledger->new($node, 'a', $kafka);
$ledger->start(seconds => 30);
my $written = $ledger->finish;
ok($written->{ok}, 'the writers had no unexpected error');
cmp_ok($written->{"committed_$_"} // 0, '>', 0, "the load had: $_")
  for qw(plain async keyless many copy rows savepoint exceptions early_xid
  repeatable held);
cmp_ok($written->{prepared_commit}, '>', 0, 'the load had: COMMIT PREPARED');
cmp_ok($written->{prepared_rollback}, '>', 0, 'the load had: ROLLBACK PREPARED');
cmp_ok($written->{rolled_back}, '>', 0, 'the load had: ROLLBACK');

my $seen = $ledger->compare(duplicates => 0, prove => 1);
ok($seen->{ok}, 'the log equals the ledger');
is($seen->{lost}, 0, 'nothing is lost');
is($seen->{extra}, 0, 'nothing came that was not committed');
is($seen->{out_of_order}, 0, 'each aggregate arrived in order');
is($seen->{duplicates}, 0, 'nothing came twice');
is($seen->{arrived}, $written->{events}, 'as many as the writers committed');
cmp_ok($seen->{tamperings} // 0, '>=', 8, 'the comparison was put to the test');
is_deeply($seen->{tamperings_unnoticed},
	[], 'the comparison notices every tampering');

my $status = wait_state($node, 'a', 'idle');
is($status->{state}, 'idle', 'the relay is idle');
is($status->{published}, $seen->{ledger}, 'its count of published messages');

# (A starved broker may take its time: that is no error, but is told.)
unlike($status->{last_error} // '', qr/^(?!.*: no acknowledgement for).+/, 'it has seen no error');
ok(!$node->log_contains(qr/\b(?:ERROR|FATAL|PANIC):.*(?:outbox_kafka|relay)/),
	'nor does the server log name one');

$node->stop;
done_testing();
