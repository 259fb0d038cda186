
# Causal order and completeness of what the relay reads: the cursor by itself,
# without a relay (test/modules/cursor_test), next to models of it that look
# right and are not.
#
# - 200,000 subtransactions are open while batches are cut: the right result,
#   at the cost of the rows there are. Writing out the range of xids that may be
#   running costs an index descent for each of them.
# - Writers of all shapes for some seconds, a reader for each variant: the
#   cursor loses nothing, repeats nothing, sends nothing that was not committed,
#   and keeps the order of each aggregate. The models' losses are printed.
#
# The isolation tests cursor_*.spec show each trap by itself.
#
# OUTBOX_CURSOR_SECONDS and OUTBOX_LEDGER_SEED change the load.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use OutboxTest;

my $seconds = $ENV{OUTBOX_CURSOR_SECONDS} // 15;

# Without the library preloaded there is no relay, and the test itself turns
# the ring of segments. Autovacuum would take xids.
my $node = new_node(
	'cursor',
	conf => {
		'shared_preload_libraries' => '',
		'autovacuum' => 'off',
		'max_prepared_transactions' => 100
	});
new_database($node, 'a');
$node->safe_psql('a', 'CREATE EXTENSION cursor_test');

# ---------------------------------------------------------------------------
# 200,000 open subtransactions
# ---------------------------------------------------------------------------

my $subtransactions = 200_000;
$node->safe_psql('a', 'CREATE TABLE work (i int)');
my $writer = $node->background_psql('a');
my $reader = $node->background_psql('a');
my @variants = qw(right expanded);

# A batch as payloads, and how many buffers that took.
sub batch
{
	my ($variant, $chunk_rows) = @_;
	my $before = $reader->query_safe('SELECT cursor_test.buffers()');
	my $sent =
	  $reader->query_safe("SELECT cursor_test.sent('$variant', $chunk_rows)");
	my $after = $reader->query_safe('SELECT cursor_test.buffers()');
	return ($sent, $after - $before);
}

$node->safe_psql('a',
	q{SELECT outbox.publish('t', 'before'::text, 'k')
	  FROM generate_series(1, 1000)});
$reader->query_safe("SELECT cursor_test.start('$_', '$_')") for @variants;
batch($_, 0) for @variants;    # catalogs are cached from here on

$writer->query_safe('BEGIN');
$writer->query_safe(
	qq{
	DO \$\$
	BEGIN
		PERFORM outbox.publish('t', 'first', 'k');
		FOR i IN 1 .. $subtransactions LOOP
			BEGIN
				INSERT INTO work VALUES (i);
				IF i % (${subtransactions} / 4) = 0 THEN
					PERFORM outbox.publish('t', 'at ' || i, 'k');
				END IF;
			EXCEPTION WHEN division_by_zero THEN
				NULL;
			END;
		END LOOP;
	END \$\$});

# This bound is the one: none of those xids is below its xmax, or listed.
my %used;
for my $variant (@variants)
{
	(my $sent, $used{$variant}) = batch($variant, 0);
	is($sent, '(none)', "$variant: the open transaction is not visible");
}
my ($running, $above) = split /\|/,
  $reader->query_safe(
	q{SELECT running, next_xid::text::bigint - xmax::text::bigint
	  FROM cursor_test.bound('right')});
is($running, '0', 'no running transaction is listed');
cmp_ok($above, '>', $subtransactions, "$above xids are above xmax");

$node->safe_psql('a', q{SELECT outbox.publish('t', 'other'::text, 'k')});
for my $variant (@variants)
{
	(my $sent, $used{$variant}) = batch($variant, 1);
	is($sent, 'other', "$variant: another's message");
}
diag("buffers for a batch with $above xids in the range: "
	  . join(', ', map { "$_ $used{$_}" } @variants));
cmp_ok($used{right}, '<', 1000, 'at the cost of the rows there are');
cmp_ok($used{expanded}, '>', $subtransactions,
	'while a list of the xids is looked up one by one');

# And now the range lies behind: the transaction is listed, its
# subtransactions have ended as far as the snapshot is concerned.
$node->safe_psql('a', q{SELECT outbox.publish('t', 'another'::text, 'k')});
(my $sent, $used{right}) = batch('right', 1);
is($sent, 'another', 'listed as running: still not visible');
cmp_ok($used{right}, '<', 1000, 'at the cost of the rows there are');

$writer->query_safe('COMMIT');
my $quarter = $subtransactions / 4;
my $all = join ' ', 'first', map { 'at ' . $_ * $quarter } 1 .. 4;
($sent, $used{right}) = batch('right', 1);
is($sent, $all, 'all of it after COMMIT, in order');
cmp_ok($used{right}, '<', 1000, 'at the cost of the rows there are');
is((batch('expanded', 0))[0], "$all another", 'the same with a list');
is((batch('right', 0))[0], '(none)', 'and only once');

# The same when the straggler is found by walking the range.
$writer->query_safe('BEGIN');
$writer->query_safe(q{SELECT outbox.publish('t', 'low id'::text, 'k')});
$writer->query_safe(
	qq{
	DO \$\$
	BEGIN
		FOR i IN 1 .. $subtransactions LOOP
			BEGIN
				INSERT INTO work VALUES (i);
			EXCEPTION WHEN division_by_zero THEN
				NULL;
			END;
		END LOOP;
	END \$\$});
is((batch('right', 0))[0], '(none)', 'a bound below 200,000 xids');
$writer->query_safe(q{SELECT outbox.publish('t', 'high id'::text, 'k')});
$writer->query_safe('COMMIT');
($sent, $used{right}) = batch('right', 0);
is($sent, 'low id high id', 'a low id and a high one of the same xid');
cmp_ok($used{right}, '<', 1000, 'at the cost of the rows there are');
$_->quit for $writer, $reader;

# ---------------------------------------------------------------------------
# A load of all shapes, a reader for each variant
# ---------------------------------------------------------------------------

my %wrong = (
	id => 'id > last',
	xmin => 'xid < xmin, in the order of (xid, id)',
	xmax => 'the next xid is xmax',
	moving => 'chunks without the bound of their batch',
	tables_first => 'empty tables are left out before the bound is taken');
my ($reader_in, $reader_out, $reader_err) = ('', '', '');
my $readers = IPC::Run::start(
	[
		'/usr/bin/python3', "$FindBin::RealBin/025_cursor_reader.py",
		'--conninfo', $node->connstr('a'),
		'right', sort keys %wrong
	],
	'<', \$reader_in,
	'>', \$reader_out,
	'2>', \$reader_err,
	IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default + $seconds));
$readers->pump until $reader_out =~ /^ready\n/ || !$readers->pumpable;
like($reader_out, qr/^ready\n/, 'the readers are ready') or diag($reader_err);

my ($written, $writers_err) = ('', '');
my $writers = IPC::Run::start(
	[
		'/usr/bin/python3', "$FindBin::RealBin/../ledger/writers.py",
		'--conninfo', $node->connstr('a'),
		'--topics', 't',
		'--writers', 8,
		'--hold', 3,
		'--seconds', $seconds,
		defined $ENV{OUTBOX_LEDGER_SEED} ? ('--seed', $ENV{OUTBOX_LEDGER_SEED}) : ()
	],
	'<', \undef,
	'>', \$written,
	'2>', \$writers_err);

# Publishing moves on through the ring meanwhile.
my $turns = 0;
while ($writers->pumpable)
{
	$turns++;
	$node->safe_psql('a',
		"UPDATE outbox.segment SET is_current = (segment = $turns % 8)");
	$writers->pump_nb;
	sleep 0.25;
}
ok($writers->finish, 'the writers had no unexpected error');
$readers->finish;
diag($writers_err, $reader_err);
(my $report = $reader_out) =~ s/^ready\n//;
my $result = decode_json($report);

is_deeply($result->{failures}, [], 'the readers had no error');
cmp_ok($result->{committed}, '>', 500, "$result->{committed} messages");
is($result->{rows} - $result->{committed},
	1000 + 8 + 1, 'every message is in the ledger');
is($result->{segments}, 8, 'in all segments');
for my $variant ('right', sort keys %wrong)
{
	my $of = $result->{variants}{$variant};
	diag(sprintf '%-12s lost %5d, duplicated %d, misordered %5d in %d batches%s',
		$variant, @$of{qw(lost duplicated misordered batches)},
		$wrong{$variant} ? ": $wrong{$variant}" : '');
}
my $right = $result->{variants}{right};
cmp_ok($right->{batches}, '>', $seconds, "$right->{batches} batches");
is($right->{sent}, $result->{committed}, 'as many as were committed');
is($right->{$_}, 0, "the cursor: none $_")
  for qw(lost duplicated uncommitted misordered);
cmp_ok($result->{variants}{id}{lost}, '>', 0, 'id > last loses messages');
cmp_ok($result->{variants}{xmin}{misordered},
	'>', 0, 'the order of xids is not the order of causes');

$node->stop;
done_testing();
