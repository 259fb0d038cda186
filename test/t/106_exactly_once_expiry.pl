
# P2, P4: Kafka forgets a transactional id that was not used for long. The relay,
# idle meanwhile, gets another producer id with its next message; nothing is lost
# or repeated, and nothing is taken for a conflict or a gap. So does a relay that
# starts after that.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new(
	conf => {
		'transactional.id.expiration.ms' => 3000,
		'transaction.remove.expired.transaction.cleanup.interval.ms' => 500
	});
$kafka->start;
$kafka->create_topic('t', 2);
my $node = new_node(
	'expiry',
	kafka => $kafka,
	conf => { 'outbox_kafka.delivery' => 'exactly_once' });
new_database($node, 'd');

my $number = 0;

sub publish_some
{
	my ($count) = @_;
	publish($node, 'd', "'t', '" . ++$number . "'::text, 'k'") for 1 .. $count;
	wait_delivered($node, 'd');
	return;
}

sub check
{
	my ($name) = @_;
	my @payloads = map { $_->{payload} }
	  $kafka->consume('t', properties => { 'isolation.level' => 'read_committed' });
	is("@payloads", join(' ', 1 .. $number), "$name: each once, in order");
	return;
}

# No command tells when it is forgotten; the first attempt after that fails.
publish_some(5);
my $idle = -s $node->logfile;
sleep 10;
publish_some(5);
check('forgotten while idle');
like(substr(slurp_file($node->logfile), $idle), qr/producer id|cannot send/i, 'it was forgotten: the first attempt failed');

$node->stop;
sleep 6;
$node->start;
publish_some(5);
check('forgotten when the relay starts');

is($node->safe_psql('d', 'SELECT count(*) FROM outbox.relay_conflict'), 0, 'no conflict');
unlike(slurp_file($node->logfile), qr/sent a second time/, 'no gap');
$node->stop;
done_testing();
