
# P2: exactly once into Kafka for readers of committed messages.
#
# Messages arrive, those of a transaction together, rolled back ones never; the
# setting is followed on the fly in both directions; what follows a backlog of a
# paused topic is sent.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 3) for qw(a b late);
my $node = new_node(
	'exact',
	kafka => $kafka,
	conf => { 'outbox_kafka.delivery' => 'exactly_once' });
new_database($node, 'd');

my %committed = ('isolation.level' => 'read_committed');

sub arrived
{
	my ($topic) = @_;
	return map { $_->{payload} } $kafka->consume($topic, properties => \%committed);
}

# one, in a transaction
my $id = publish($node, 'd', q{'a', 'first'::text, 'k'});
wait_published($node, 'd', $id);
is_deeply([ arrived('a') ], ['first'], 'a message arrives');
is(wait_state($node, 'd', 'idle')->{state}, 'idle', 'the relay is idle after it');

# it is a transaction of Kafka's: a record and its marker
cmp_ok($kafka->message_count('a'), '>', 1, 'there is more in the log than the message');

$node->safe_psql(
	'd', q{
	BEGIN;
	SELECT outbox.publish('a', 'gone'::text, 'k');
	ROLLBACK;
	BEGIN;
	SELECT outbox.publish(CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, i::text, i::text)
	FROM generate_series(1, 1000) AS i;
	COMMIT});
wait_delivered($node, 'd');
my @all = (arrived('a'), arrived('b'));
is(scalar(@all), 1001, 'a large transaction arrives, a rolled back one does not');

# a backlog that is passed over, larger than the window and than it takes to
# change the producer: what comes after it is sent
$node->safe_psql('d', q{SELECT outbox.pause('late')});
wait_until('late is held', sub { $node->safe_psql('d', 'SELECT count(*) FROM outbox.held_lanes') == 1 });
$node->safe_psql('d', q{
	BEGIN;
	SELECT count(outbox.publish('late', i::text, 'k')) FROM generate_series(1, 25000) AS i;
	SELECT outbox.publish('b', 'after'::text, 'k');
	COMMIT});
wait_until('what follows messages of a paused topic arrives',
	sub { grep { $_ eq 'after' } arrived('b') }, 60);
$node->safe_psql('d', q{SELECT outbox.resume('late')});
wait_delivered($node, 'd');
is(scalar(arrived('late')), 25000, 'and they do once it is resumed');

# split at the limit, larger than the window
$node->append_conf('postgresql.conf', q{
outbox_kafka.max_transaction_messages = 300
outbox_kafka.max_in_flight = 100});
$node->reload;
$node->safe_psql('d', q{SELECT count(outbox.publish('b', 'x'::text, i::text)) FROM generate_series(1, 3000) AS i});
wait_delivered($node, 'd');
is(scalar(arrived('b')), 3501, 'split at max_transaction_messages');

# the other way, and back
for my $delivery (qw(at_least_once exactly_once at_least_once exactly_once))
{
	$node->safe_psql('postgres', "ALTER SYSTEM SET outbox_kafka.delivery = '$delivery'");
	$node->reload;
	wait_published($node, 'd', publish($node, 'd', "'a', '$delivery'::text, 'k'"));
}
is(scalar(grep { /once/ } arrived('a')), 4, 'delivery is changed on the fly');
is(scalar(@{ [ arrived('a'), arrived('b') ] }), 4006, 'nothing came twice');

$node->stop;
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
unlike($log, qr/WARNING.*outbox_kafka/, 'no warning');
done_testing();
