
# Exactly once where Kafka has ACLs. A topic that the relay may describe but not
# write to ends a whole transaction, and no report says which topic it was: it is
# held all the same, the others go on, and when the right is given its messages
# follow. Each arrives once and in order. What is missing to have transactions at
# all shows as the reason, and nothing is sent.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::SecureKafka;

# what has no ACL is open here, so that each test is about its own
my $kafka = OutboxTest::SecureKafka->new(
	conf => { 'allow.everyone.if.no.acl.found' => 'true' });
$kafka->start;
$kafka->create_topic($_, 2) for qw(good other readonly);
$kafka->allow('User:relay', 'DESCRIBE', 'readonly');
my $password = 'password-' . OutboxTest::SecureKafka::random_word();
$kafka->set_password('relay', $password);

my $node = new_node(
	'acls',
	conf => {
		'outbox_kafka.delivery' => 'exactly_once',
		'outbox_kafka.config_file' => "$kafka->{dir}/relay.properties"
	});
{
	open(my $file, '>', "$kafka->{dir}/relay.properties") or die "relay.properties: $!";
	chmod 0600, "$kafka->{dir}/relay.properties";
	my %properties = (
		'security.protocol' => 'SASL_SSL',
		'ssl.ca.location' => $kafka->tls_file('ca.pem'),
		'sasl.mechanisms' => $kafka->mechanism,
		'sasl.username' => 'relay',
		'sasl.password' => $password);
	print $file map { "$_=$properties{$_}\n" } sort keys %properties;
	close $file;
}
$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $kafka->sasl_bootstrap . "'");
$node->reload;
new_database($node, 'd');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('d', $query);
}

sub publish_all
{
	my ($from, $to) = @_;
	sql("SELECT outbox.publish(t, i::text, 'k' || i % 3) FROM generate_series($from, $to) AS i,
		 unnest('{good,readonly,other}'::text[]) AS t");
	return;
}

sub check
{
	my ($topic, $count, $name) = @_;
	my (%times, %last);
	my $misordered = 0;
	for my $record ($kafka->consume($topic, properties => { 'isolation.level' => 'read_committed' }))
	{
		$times{ $record->{payload} }++;
		$misordered++ if ($last{ $record->{key} } // 0) > $record->{payload};
		$last{ $record->{key} } = $record->{payload};
	}
	is(scalar(keys %times), $count, "$name: all of $topic arrived");
	is(scalar(grep { $_ > 1 } values %times), 0, "$name: each once");
	is($misordered, 0, "$name: in order");
	return;
}

sub wait_others
{
	my ($name) = @_;
	wait_until("$name: the others have arrived", sub {
		sql(q{SELECT count(*) FROM outbox.pending WHERE topic <> 'readonly'}) == 0 }, 60,
		sub { join ' ', map { $_ // '' } %{ relay_status($node, 'd') } });
	return;
}

publish_all(1, 100);
wait_others('forbidden');
check($_, 100, 'forbidden') for qw(good other);
is(sql('SELECT topic FROM outbox.held_lanes'), 'readonly', 'the forbidden topic is held');
like(sql('SELECT error FROM outbox.held_lanes'), qr/authoriz/i, 'and the view says why');
publish_all(101, 200);
my $begin = time;
wait_others('later');
cmp_ok(time - $begin, '<', 10, 'the others do not wait for it again');
check($_, 200, 'later') for qw(good other);
is($kafka->message_count('readonly'), 0, 'nothing of it arrived');

$kafka->allow('User:relay', 'WRITE', 'readonly');
sql(q{SELECT outbox.retry('readonly')});
wait_delivered($node, 'd', 90);
check('readonly', 200, 'allowed');
check($_, 200, 'allowed') for qw(good other);
wait_until('nothing is held', sub { sql('SELECT count(*) FROM outbox.held_lanes') == 0 });

# taken away while others are written to
$kafka->withdraw('User:relay', 'WRITE', 'readonly');
publish_all(201, 300);
wait_others('taken away');
check($_, 300, 'taken away') for qw(good other);
$kafka->allow('User:relay', 'WRITE', 'readonly');
sql(q{SELECT outbox.retry('readonly')});
wait_delivered($node, 'd', 90);
check('readonly', 300, 'given back');

# what transactions themselves need
$kafka->allow('User:other', 'WRITE', 'outbox_kafka_progress');
my $pid = relay_pid($node, 'd');
kill 'TERM', $pid;
wait_until('another relay', sub { my $new = relay_pid($node, 'd'); $new && $new != $pid });
my $waiting = publish($node, 'd', q{'good', '301'::text, 'k1'});
my $status = wait_state($node, 'd', 'failed', 60);
like($status->{last_error}, qr/topic outbox_kafka_progress.*authoriz/i, 'a right that transactions need is missing: the status says which');
is(sql("SELECT outbox.status('$waiting')"), 'pending', 'and the message waits');
$kafka->withdraw('User:other', 'WRITE', 'outbox_kafka_progress');
wait_published($node, 'd', $waiting);
check('good', 301, 'the right is given');

$node->stop;
done_testing();
