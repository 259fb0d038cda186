
# What the relay does when something goes wrong around it: an orderly shutdown
# within five seconds whatever the broker does, a broker that comes back, a
# changed address, a topic that is missing, a record that the broker refuses.
# In each case nothing is lost, each key keeps its order, and the status says
# what is true. Then what a user can do: pause, resume and wait.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_node('relay', kafka => $kafka);
new_database($node, 'a');

# Publish numbered messages of one key in one transaction each or all in one.
sub publish_numbers
{
	my ($topic, $from, $to) = @_;
	$node->safe_psql(
		'a',
		"SELECT outbox.publish('$topic', i::text, 'k')
		 FROM generate_series($from, $to) AS i");
	return;
}

# The topic's payloads in order, without those that came before.
sub first_arrivals
{
	my ($topic) = @_;
	my %seen;
	return grep { !$seen{$_}++ } map { $_->{payload} } $kafka->consume($topic);
}

sub is_complete
{
	my ($topic, $count, $name) = @_;
	my @arrived = first_arrivals($topic);
	my ($wrong) = grep { $arrived[$_] ne $_ + 1 } 0 .. $#arrived;
	is_deeply([ scalar @arrived, $wrong ], [ $count, undef ],
		"$name: all $count arrived, in order");
	my $repeated = $kafka->message_count($topic) - $count;
	diag("$name: $repeated repeated") if $repeated;
	return $repeated;
}

# pg_ctl stop -m fast, its time asserted.
sub stop_fast
{
	my ($name) = @_;
	my $began = time;
	$node->stop('fast');
	my $took = time - $began;
	cmp_ok($took, '<', 5, sprintf "%s: stopped in %.2f s", $name, $took);
	return;
}

sub set_bootstrap
{
	my ($bootstrap) = @_;
	$node->append_conf('postgresql.conf',
		"outbox_kafka.bootstrap_servers = '$bootstrap'");
	return;
}

sub count_pending
{
	return $node->safe_psql('a', 'SELECT count(*) FROM outbox.pending');
}

# ---------------------------------------------------------------------------
# Shutdown
# ---------------------------------------------------------------------------

# With a broker that answers, and more waiting than one window.
$kafka->create_topic('stop_live', 3);
publish_numbers('stop_live', 1, 30000);
stop_fast('live broker');
$node->start;
wait_delivered($node, 'a');
cmp_ok(is_complete('stop_live', 30000, 'live broker'),
	'<=', 20000, 'live broker: repeated within the bound');

# With a broker that has gone.
$kafka->create_topic('stop_dead', 3);
publish_numbers('stop_dead', 1, 100);
wait_delivered($node, 'a');
$kafka->stop_node(1);
publish_numbers('stop_dead', 101, 5000);
wait_until('the relay has taken some of them',
	sub { relay_status($node, 'a')->{in_flight} > 0 });
wait_state($node, 'a', 'connecting');
is(count_pending(), 4900, 'dead broker: they are pending');
stop_fast('dead broker');

# Start without a broker, and let it come later.
$node->start;
my $row = wait_until(
	'the status names an error',
	sub {
		my $row = relay_status($node, 'a');
		return defined $row->{last_error} && $row->{state} ne 'starting' ? $row : undef;
	},
	15);
is($row->{state}, 'connecting', 'broker away at start: the status');
diag("broker away at start: $row->{last_error}");
is(count_pending(), 4900, 'broker away at start: they are still pending');
$kafka->start_node(1);
my $back = time;
wait_delivered($node, 'a', 30);
my $took = time - $back;
cmp_ok($took, '<', 10, sprintf 'broker back: all sent %.2f s later', $took);
is_complete('stop_dead', 5000, 'dead broker');
wait_state($node, 'a', 'idle');

# Away for a while with a relay that was running. Long enough for the intervals
# between attempts to have grown.
$kafka->create_topic('away', 3);
publish_numbers('away', 1, 10);
wait_delivered($node, 'a');
$kafka->kill9(1);
publish_numbers('away', 11, 3000);
wait_state($node, 'a', 'connecting');
sleep($ENV{OUTBOX_AWAY_SECONDS} // 12);
is(relay_status($node, 'a')->{state}, 'connecting', 'broker away: status');
$kafka->start_node(1);
$back = time;
wait_delivered($node, 'a', 30);
$took = time - $back;
cmp_ok($took, '<', 10, sprintf 'broker back again: all sent %.2f s later', $took);
is(is_complete('away', 3000, 'broker away'),
	0, 'broker away: the producer is idempotent, nothing is repeated');

# With a broker that holds its connections and says nothing.
$kafka->create_topic('stop_silent', 3);
publish_numbers('stop_silent', 1, 100);
wait_delivered($node, 'a');
$kafka->pause(1);
publish_numbers('stop_silent', 101, 3000);
wait_until('the relay has taken some of them',
	sub { relay_status($node, 'a')->{in_flight} > 0 });
stop_fast('silent broker');
$node->start;
publish_numbers('stop_silent', 3001, 3100);
stop_fast('silent broker since the start');
$node->start;
$kafka->cont(1);
wait_delivered($node, 'a');
is_complete('stop_silent', 3100, 'silent broker');

# With an address that takes connections and never reads.
my $hole = IO::Socket::INET->new(
	LocalAddr => '127.0.0.1', Proto => 'tcp', Listen => 20)
  or die "could not listen: $!";
set_bootstrap('127.0.0.1:' . $hole->sockport);
$kafka->create_topic('stop_hole', 3);
$node->reload;
publish_numbers('stop_hole', 1, 100);
wait_state($node, 'a', 'connecting');
is(count_pending(), 100, 'black hole: they are pending');
stop_fast('black hole');
$node->start;
wait_state($node, 'a', 'connecting');
stop_fast('black hole since the start');
$node->start;

# ---------------------------------------------------------------------------
# SIGHUP: from the black hole to the broker
# ---------------------------------------------------------------------------

wait_state($node, 'a', 'connecting');
my $started = $node->safe_psql('a', 'SELECT pg_postmaster_start_time()');
set_bootstrap($kafka->bootstrap);
$node->reload;
my $began = time;
wait_delivered($node, 'a', 30);
$took = time - $began;
cmp_ok($took, '<', 10, sprintf 'changed address: all sent %.2f s later', $took);
is_complete('stop_hole', 100, 'changed address');
is($node->safe_psql('a', 'SELECT pg_postmaster_start_time()'),
	$started, 'changed address: the server was not restarted');
$row = wait_state($node, 'a', 'idle');
is($row->{broker}, $kafka->bootstrap, 'changed address: the status shows it');
close $hole;

# ---------------------------------------------------------------------------
# A topic that does not exist
# ---------------------------------------------------------------------------

$kafka->create_topic('known', 3);
publish_numbers('missing', 1, 500);
publish_numbers('known', 1, 10);
is(is_complete('known', 10, 'a known topic beside it'), 0, 'a known topic beside it: once each')
  if $kafka->wait_messages('known', 10, 30);
wait_until('the missing topic is held', sub {
		$node->safe_psql('a', 'SELECT topic FROM outbox.held_lanes') eq 'missing';
	}, 30);
$row = relay_status($node, 'a');
like($row->{last_error}, qr/\bmissing\b/, 'missing topic: the error names it');
diag("missing topic: $row->{last_error}");
ok(defined $row->{last_error_at}, 'missing topic: with its time');
is($node->safe_psql('a',
		q{SELECT last_error IS NOT NULL FROM outbox.topic_status
		  WHERE topic = 'missing'}),
	't', 'missing topic: topic_status has it too');
is($node->safe_psql('a',
		q{SELECT count(*) FROM outbox.pending WHERE topic = 'missing'}),
	'500', 'missing topic: nothing is lost');
publish_numbers('missing', 501, 600);
$kafka->create_topic('missing', 3);
$began = time;
wait_delivered($node, 'a', 60);
diag(sprintf 'missing topic: all sent %.2f s after it was made', time - $began);
is(is_complete('missing', 600, 'missing topic'), 0, 'missing topic: once each');
wait_state($node, 'a', 'idle');

# ---------------------------------------------------------------------------
# A record the broker refuses
# ---------------------------------------------------------------------------

# The limit is lowered after the relay has asked for it. Together they are larger
# than that: the broker refuses the batch, and one by one they get through.
$kafka->create_topic('small', 1);
publish_numbers('small', 1, 2);
wait_delivered($node, 'a', 30);
$kafka->configure_topic('small', { 'max.message.bytes' => 1000 });
publish_numbers('small', 3, 20);
$began = time;
wait_delivered($node, 'a', 30);
$took = time - $began;
cmp_ok($took, '<', 10, sprintf 'refused batch: sent one by one %.2f s later',
	$took);
# Incompressible, so that the batch stays larger than the limit; and let in by
# publishing, as if the broker had not told of it.
wait_until('the limit is known', sub {
	$node->safe_psql('a', q{SELECT max_message_bytes FROM outbox.topic_status WHERE topic = 'small'}) eq '1000' });
$node->safe_psql('a', 'DELETE FROM outbox.topic_limit');
$node->safe_psql(
	'a', q{
	SELECT outbox.publish('small', '21 ' || string_agg(md5(random()::text), ''),
						  'k')
	FROM generate_series(1, 200)});
publish_numbers('small', 22, 40);
wait_delivered($node, 'a', 60);
is($node->safe_psql('a',
		q{SELECT string_agg(DISTINCT reason, ',' ORDER BY reason), count(*) FROM outbox.parked}),
	'behind,refused|20', 'refused record: it and what follows it of its key is parked');
like($node->safe_psql('a',
		q{SELECT error FROM outbox.parked WHERE reason = 'refused'}),
	qr/too large|size/i, 'refused record: the error says why');
like($node->safe_psql('a',
		q{SELECT last_error FROM outbox.topic_status WHERE topic = 'small'}),
	qr/too large|size/i, 'refused record: so does the status of its topic');
$kafka->configure_topic('small', { 'max.message.bytes' => 1048588 });
$began = time;
is($node->safe_psql('a', q{SELECT outbox.retry('small')}), '20', 'retried');
wait_until('nothing is parked',
	sub { $node->safe_psql('a', 'SELECT count(*) FROM outbox.parked') == 0 }, 60);
diag(sprintf 'refused record: all sent %.2f s after the limit was raised',
	time - $began);
{
	no warnings 'numeric';
	is_deeply([ map { int } first_arrivals('small') ],
		[ 1 .. 40 ], 'refused record: all arrived, in order');
}
wait_state($node, 'a', 'idle');

# ---------------------------------------------------------------------------
# Pause and resume
# ---------------------------------------------------------------------------

$kafka->create_topic('pause', 1);
publish_numbers('pause', 1, 5);
wait_delivered($node, 'a');
$node->safe_psql('a', 'SELECT outbox.pause()');
wait_state($node, 'a', 'paused');
publish_numbers('pause', 6, 10);
# A message of a relay that does not pause arrives within milliseconds.
is($node->safe_psql('a',
		q{SELECT outbox.wait_published(event_id, '2 s') FROM outbox.pending
		  ORDER BY id LIMIT 1}),
	'f', 'paused: wait_published gives up');
is($kafka->message_count('pause'), 5, 'paused: nothing is sent');
is(count_pending(), 5, 'paused: it is pending');
$node->restart;
wait_state($node, 'a', 'paused');
is($kafka->message_count('pause'), 5, 'paused: also after a restart');

# An uncommitted resume does nothing.
$node->safe_psql('a', 'BEGIN; SELECT outbox.resume(); ROLLBACK');
is(relay_status($node, 'a')->{state}, 'paused', 'resume rolled back: paused');
$node->safe_psql('a', 'SELECT outbox.resume()');
wait_delivered($node, 'a', 20);
is_complete('pause', 10, 'resumed');

# ---------------------------------------------------------------------------
# wait_published
# ---------------------------------------------------------------------------

$kafka->create_topic('wait', 1);
my $id = publish($node, 'a', q{'wait', '1'::text, 'k'});
is($node->safe_psql('a', "SELECT outbox.wait_published('$id', '20 s')"),
	't', 'wait_published: true when acknowledged');
is($kafka->message_count('wait'), 1, 'wait_published: it is in Kafka then');
is($node->safe_psql('a', "SELECT outbox.wait_published('$id', '0 s')"),
	't', 'wait_published: true again');

$node->safe_psql('a', 'SELECT outbox.pause()');
wait_state($node, 'a', 'paused');
$id = publish($node, 'a', q{'wait', '2'::text, 'k'});
$began = time;
is($node->safe_psql('a', "SELECT outbox.wait_published('$id', '700 ms')"),
	'f', 'wait_published: false at the timeout');
$took = time - $began;
cmp_ok($took, '>=', 0.7, 'wait_published: not before it');
cmp_ok($took, '<', 10, 'wait_published: not long after it');

# It ends when the message goes out.
my $session = $node->background_psql('a');
my $waiter = $session->query_safe('SELECT pg_backend_pid()');
$session->query_until(qr/waiting/,
	"\\echo waiting\nSELECT 'got ' || outbox.wait_published('$id', '60 s');\n");
wait_until(
	'the session waits',
	sub {
		return $node->safe_psql('a',
			qq{SELECT state = 'active' AND wait_event_type IS NOT NULL
			   FROM pg_stat_activity WHERE pid = $waiter}) eq 't';
	},
	20);
$node->safe_psql('a', 'SELECT outbox.resume()');
like($session->query_until(qr/got/, "\n"),
	qr/got true/, 'wait_published: wakes up when it is published');
$session->quit;

is($node->safe_psql('a',
		'SELECT outbox.wait_published(gen_random_uuid(), '
		  . "'60 s') IS NULL"),
	't', 'wait_published: NULL for an unknown message');
my ($code, $stdout, $stderr) = $node->psql(
	'a', q{
	BEGIN;
	SELECT outbox.publish('wait', '3'::text, 'k') AS id \gset
	SELECT outbox.wait_published(:'id', '60 s');
	COMMIT;},
	on_error_stop => 0);
like($stderr, qr/ERROR:.*transaction that published/,
	'wait_published: an error in its own transaction');
unlike($stdout, qr/^[tf]$/m, 'wait_published: and no answer');
diag('wait_published: ' . (split /\n/, $stderr)[0]);
wait_delivered($node, 'a');
is_complete('wait', 2, 'wait_published');

ok(!$node->log_contains(qr/PANIC|TRAP|was terminated by signal/),
	'no process of the server died');
$node->stop;
done_testing();
