
# 100 messages that the broker refuses, for they have no key and the topic is
# compacted, among good ones of the same partition. Once they are found, good keys
# are to keep at least 0.9 of their rate. See test/bench/trouble.sh.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../../lib";

use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;
use OutboxTest::Trouble;

my $refused = 100;
my $kafka = OutboxTest::Kafka->new(timeout => 600);
$kafka->start;
$kafka->create_topic("$_\_one", 1, { 'cleanup.policy' => 'compact' }) for @OutboxTest::Trouble::databases;

my $trouble = OutboxTest::Trouble->new($kafka, topics => ['one']);
$trouble->{given_up} = $refused;
my $node = $trouble->{node};
my $count = sub { return $trouble->published($_[0], 'one'); };
my $seconds = 60 * OutboxTest::Trouble::minutes() / 2;

$trouble->start;
my $before = $trouble->measure($seconds, $count);

# one at a time, spread over a second or so
my $began = time;
$node->safe_psql('troubled', qq{
	CREATE PROCEDURE refuse(n int) LANGUAGE plpgsql AS \$\$
	BEGIN
		FOR i IN 1 .. n LOOP
			PERFORM outbox.publish('troubled_one', 'without a key'::text);
			COMMIT;
			PERFORM pg_sleep(0.01);
		END LOOP;
	END \$\$});
$node->safe_psql('troubled', "CALL refuse($refused)");
my $first = $trouble->measure(1, $count);
$trouble->report('while they are looked for, 1 s', $before, $first);
wait_until('all are found', sub { $node->safe_psql('troubled', q{SELECT count(*) FROM outbox.parked WHERE reason = 'refused'}) == $refused },
	1800, sub { $node->safe_psql('troubled', 'SELECT count(*) FROM outbox.parked') });
diag(sprintf 'all found after %.1f s', time - $began);
$trouble->report('refused ones found, lane still apart', $before, $trouble->measure(2, $count));
wait_until('no lane is held', sub { $node->safe_psql('troubled', 'SELECT count(*) FROM outbox.held_lanes') == 0 }, 1800,
	sub { $node->safe_psql('troubled', 'SELECT * FROM outbox.held_lanes') });
diag(sprintf 'the lane is back after %.1f s', time - $began);

# from here on, tries of what is parked included
$trouble->report('good keys', $before, $trouble->measure($seconds, $count));
is($node->safe_psql('troubled', 'SELECT count(*) FROM outbox.parked'), $refused, 'nothing but those is parked');
$trouble->finish;
done_testing();
