
# The relay and a Kafka that trusts nobody: TLS with certificates verified both
# ways, logins with a password, credentials that change, ACLs that are missing, given,
# taken away under load and given back. When the relay may not send, the status
# says so and why; nothing is lost and each key keeps its order. And the secrets
# are in outbox_kafka.config_file and nowhere else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use IPC::Run;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::SecureKafka;
use PostgreSQL::Test::Utils;

my $kafka = OutboxTest::SecureKafka->new;
$kafka->start;
my %topics = (allowed => 3, denied => 3, readonly => 3, taken => 3);
$kafka->create_topic($_, $topics{$_}) for sort keys %topics;

my $node = new_node(
	'relay',
	conf => {
		'outbox_kafka.config_file' => $kafka->{dir} . '/relay.properties',
		'log_min_messages' => 'debug1',
		'outbox_kafka.producer_config' => 'debug=all',
	});
my $config_file = $kafka->{dir} . '/relay.properties';
my @errors;    # what sessions were told
my @secrets;   # what must not be seen anywhere
my $log_offset = 0;
my $since = '-infinity';    # errors before that are others'

# Write the file that holds the secrets, as an administrator does: whole.
sub write_config
{
	my ($mode, %properties) = @_;
	unlink "$config_file.new";
	open(my $file, '>', "$config_file.new") or die "could not write $config_file: $!";
	chmod $mode, "$config_file.new";
	print $file map { "$_=$properties{$_}\n" } sort keys %properties;
	close $file;
	rename "$config_file.new", $config_file or die "could not rename: $!";
	return;
}

# Point the relay at a listener with these properties, now.
sub connect_to
{
	my ($bootstrap, %properties) = @_;
	write_config(0600, %properties);
	$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '$bootstrap'");
	reload();
	return;
}

sub reload
{
	$log_offset = -s $node->logfile;
	$since = $node->safe_psql('a', 'SELECT clock_timestamp()');
	$node->reload;
	return;
}

sub log_since
{
	return substr(slurp_file($node->logfile), $log_offset);
}

# Publish numbered messages, each for itself, spread over five keys.
sub publish_numbers
{
	my ($topic, $from, $to) = @_;
	$node->safe_psql('a',
		join '', map { "SELECT outbox.publish('$topic', '$_', 'k' || $_ % 5);\n" } $from .. $to);
	return;
}

# All of 1 .. count is there, and first arrivals of each key are in order.
sub is_complete
{
	my ($topic, $count, $name) = @_;
	my (%seen, %last, @wrong);
	for my $record ($kafka->consume($topic))
	{
		my ($number, $key) = @$record{qw(payload key)};
		next if $seen{$number}++;
		push @wrong, $number if $number <= ($last{$key} // 0);
		$last{$key} = $number;
	}
	is_deeply(
		[ scalar(keys %seen), grep { !$seen{$_} } 1 .. $count ],
		[$count], "$name: all $count arrived, and nothing else");
	is_deeply(\@wrong, [], "$name: in the order of each key");
	return;
}

sub count_pending
{
	my ($topic) = @_;
	return $node->safe_psql('a', "SELECT count(*) FROM outbox.pending WHERE topic = '$topic'");
}

# The status row once its error matches, and the state is one that is not well.
sub wait_error
{
	my ($pattern, $name) = @_;
	my ($state, $error) = ('', '');
	wait_until(
		"the status shows $pattern",
		sub {
			($state, $error) = split /\|/, $node->safe_psql('a',
				"SELECT state, last_error FROM outbox.relay_status WHERE last_error_at > '$since'"), 2;
			return ($error // '') =~ $pattern && $state =~ /^(connecting|failed)$/;
		},
		undef,
		sub { explain relay_status($node, 'a') });
	pass("$name: $state, $error");
	return $state;
}

# The error of a topic, wherever messages of it that cannot go are kept.
sub wait_topic_error
{
	my ($topic, $name) = @_;
	my $error;
	wait_until(
		"the status of topic $topic tells the reason",
		sub {
			$error = $node->safe_psql('a',
				"SELECT last_error FROM outbox.topic_status WHERE topic = '$topic'");
			return $error =~ /authoriz/i;
		},
		60,
		sub { explain relay_status($node, 'a') });
	pass("$name: $error");
	return;
}

new_database($node, 'a');
my $server_started = $node->safe_psql('a', 'SELECT pg_postmaster_start_time()');
my %tls = ('security.protocol' => 'SSL', 'ssl.ca.location' => $kafka->tls_file('ca.pem'));
my %client = (
	'ssl.certificate.location' => $kafka->tls_file('relay.pem'),
	'ssl.key.location' => $kafka->tls_file('relay.key'),
	'ssl.key.password' => $kafka->passphrase);
push @secrets, $kafka->passphrase;

# ---------------------------------------------------------------------------
# Who has no ACL at all gets no producer id
# ---------------------------------------------------------------------------

publish_numbers('allowed', 1, 10);
connect_to($kafka->tls_bootstrap, %tls, %client);
wait_error(qr/authoriz/i, 'no ACL');
is(count_pending('allowed'), 10, 'no ACL: the messages wait');
$kafka->allow('User:CN=relay', 'WRITE', 'allowed');
wait_delivered($node, 'a');
is_complete('allowed', 10, 'TLS with both certificates verified');
wait_state($node, 'a', 'idle');

# ---------------------------------------------------------------------------
# TLS
# ---------------------------------------------------------------------------

publish_numbers('allowed', 11, 15);
wait_delivered($node, 'a');

my $wrong = 'wrong-' . $kafka->passphrase;
connect_to($kafka->tls_bootstrap, %tls, %client, 'ssl.key.password' => $wrong);
publish_numbers('allowed', 16, 20);
wait_error(qr/ssl\.key|key/, 'wrong passphrase of the key');
like(log_since(), qr/outbox_kafka cannot send: .*key/, 'wrong passphrase: the log has it');
is(count_pending('allowed'), 5, 'wrong passphrase: the messages wait');

connect_to($kafka->tls_bootstrap, %tls, %client, 'ssl.ca.location' => $kafka->tls_file('other_ca.pem'));
wait_error(qr/certificate/, 'wrong authority');
# (The client's lines are logged every ten seconds at most.)
wait_until('wrong authority: the log has it', sub { log_since() =~ /outbox_kafka client: .*certificate/ });
is(count_pending('allowed'), 5, 'wrong authority: the messages wait');

connect_to($kafka->tls_bootstrap('localhost'), %tls, %client);
wait_error(qr/certificate|host/i, 'wrong host name');
wait_until('wrong host name: the log has it', sub { log_since() =~ /outbox_kafka client: .*certificate/ });
is(count_pending('allowed'), 5, 'wrong host name: the messages wait');
is($kafka->message_count('allowed'), 15, 'nothing was sent in the meantime');

# It is the name and nothing else: not asked for, the same connection works.
# (What SQL says of it does not count: the file has the last word.)
$node->append_conf('postgresql.conf',
	"outbox_kafka.producer_config = 'debug=all; ssl.endpoint.identification.algorithm=none'");
connect_to($kafka->tls_bootstrap('localhost'), %tls, %client,
	'ssl.endpoint.identification.algorithm' => 'https');
wait_error(qr/certificate|host/i, 'wrong host name, the check turned off in SQL only');
connect_to($kafka->tls_bootstrap('localhost'), %tls, %client,
	'ssl.endpoint.identification.algorithm' => 'none');
wait_delivered($node, 'a');
is_complete('allowed', 20, 'host name not verified');
$node->append_conf('postgresql.conf', "outbox_kafka.producer_config = 'debug=all'");

# ---------------------------------------------------------------------------
# Passwords, and credentials that change
# ---------------------------------------------------------------------------

my ($first, $second) =
  map { "password-$_-" . OutboxTest::SecureKafka::random_word() } 'first', 'second';
push @secrets, $first, $second, "wrong-$first";
my $mechanism = $kafka->mechanism;
diag("logins by $mechanism");
my %login = (%tls, 'security.protocol' => 'SASL_SSL',
	'sasl.mechanisms' => $mechanism, 'sasl.username' => 'relay');
$kafka->set_password('relay', $first);
$kafka->allow('User:relay', 'WRITE', 'allowed');

connect_to($kafka->sasl_bootstrap, %login, 'sasl.password' => "wrong-$first");
publish_numbers('allowed', 21, 25);
is(wait_error(qr/authentication/i, 'wrong password'), 'failed', 'wrong password: the relay has failed');
like(log_since(), qr/outbox_kafka cannot send: .*authentication/i, 'wrong password: the log has it');
is(count_pending('allowed'), 5, 'wrong password: the messages wait');

connect_to($kafka->sasl_bootstrap, %login, 'sasl.password' => $first);
wait_delivered($node, 'a');
is_complete('allowed', 25, 'right password');

$kafka->set_password('relay', $second);
ok(!$kafka->can_log_in('relay', $first), 'rotation: the broker takes the new password only');
# The same file again is a new login with the old password.
reload();
publish_numbers('allowed', 26, 35);
wait_error(qr/authentication/i, 'rotation: the old password is refused');
connect_to($kafka->sasl_bootstrap, %login, 'sasl.password' => $second);
my $began = time;
wait_delivered($node, 'a');
cmp_ok(time - $began, '<', 10, 'rotation: a reload takes the new password from the file');
is_complete('allowed', 35, 'rotation');
is($node->safe_psql('a', 'SELECT pg_postmaster_start_time()'),
	$server_started, 'rotation: without a restart');

# ---------------------------------------------------------------------------
# The file's permissions
# ---------------------------------------------------------------------------

chmod 0644, $config_file;
reload();
publish_numbers('allowed', 36, 40);
wait_error(qr/permissions/, 'a file that everybody can read');
connect_to($kafka->sasl_bootstrap, %login, 'sasl.password' => $second);
wait_delivered($node, 'a');
is_complete('allowed', 40, 'a private file again');

# ---------------------------------------------------------------------------
# ACLs
# ---------------------------------------------------------------------------

# No ACL for the topic: it looks as if it were not there. With DESCRIBE alone
# the broker tells of the topic and refuses the messages.
$kafka->allow('User:relay', 'DESCRIBE', 'readonly');
publish_numbers('denied', 1, 20);
wait_topic_error('denied', 'denied topic');
is(count_pending('denied'), 20, 'denied topic: its messages wait');
publish_numbers('allowed', 41, 45);
publish_numbers('denied', 21, 25);
$kafka->allow('User:relay', 'WRITE', 'denied');
wait_delivered($node, 'a', 120);
is_complete('denied', 25, 'denied topic, then allowed');
is_complete('allowed', 45, 'an allowed topic beside a denied one');

publish_numbers('readonly', 1, 20);
wait_topic_error('readonly', 'topic that may only be described');
is(count_pending('readonly'), 20, 'topic that may only be described: its messages wait');
is($kafka->message_count('readonly'), 0, 'topic that may only be described: nothing was written');
$kafka->allow('User:relay', 'WRITE', 'readonly');
wait_delivered($node, 'a', 120);
is_complete('readonly', 20, 'topic that may only be described, then written');

# How large messages may be it is not allowed to ask: it says so once, and all
# goes on. With DESCRIBE_CONFIGS it is told; and what it is told no more counts
# no more.
sub limit_of
{
	my ($topic) = @_;
	return $node->safe_psql('a', "SELECT max_message_bytes FROM outbox.topic_status WHERE topic = '$topic'");
}
wait_until('limits: the log says that it may not ask', sub { log_since() =~ /not allowed to ask for max.message.bytes of topic/ });
is(scalar(() = log_since() =~ /not allowed to ask for max.message.bytes/g), 1, 'limits: once');
is(limit_of('readonly'), '', 'limits: not known');
$kafka->allow('User:relay', 'DESCRIBE_CONFIGS', 'readonly');
reload();
wait_until('limits: known', sub { limit_of('readonly') eq '1048588' });
is(limit_of('allowed'), '', 'limits: of that topic only');
$kafka->withdraw('User:relay', 'DESCRIBE_CONFIGS', 'readonly');
reload();
wait_until('limits: known no more', sub { limit_of('readonly') eq '' });
publish_numbers('readonly', 21, 25);
wait_delivered($node, 'a', 120);
is_complete('readonly', 25, 'limits: it goes on without them');

# Taken away under load, and given back.
$kafka->allow('User:relay', 'WRITE', 'taken');
my $count = 4000;
my $load_output = '';
my $load = IPC::Run::start(
	[ 'psql', '-X', '-q', '-d', $node->connstr('a'), '-c', qq{
		DO \$\$ BEGIN
			FOR i IN 1 .. $count LOOP
				PERFORM outbox.publish('taken', i::text, 'k' || i % 5);
				COMMIT;
				PERFORM pg_sleep(0.001);
			END LOOP;
		END \$\$} ],
	'<', '/dev/null', '>&', \$load_output);
$kafka->wait_messages('taken', 200);
$kafka->withdraw('User:relay', 'WRITE', 'taken');
wait_topic_error('taken', 'ACL taken away under load');
my $reached = $kafka->message_count('taken');
cmp_ok($reached, '<', $count, "ACL taken away under load: after $reached messages");
$kafka->allow('User:relay', 'WRITE', 'taken');
$load->finish or die "the load has failed: $load_output";
wait_delivered($node, 'a', 120);
is_complete('taken', $count, 'ACL given back');
my $repeated = $kafka->message_count('taken') - $count;
diag("ACL taken away under load: $repeated repeated") if $repeated;
wait_state($node, 'a', 'idle', 60);

# ---------------------------------------------------------------------------
# Secrets
# ---------------------------------------------------------------------------

# A password where it does not belong: refused, and not repeated.
my $misplaced = 'misplaced-' . OutboxTest::SecureKafka::random_word();
for my $property ('sasl.password', 'ssl.key.password', 'linger.ms', 'no.such.property')
{
	my ($code, undef, $stderr) = $node->psql('a',
		"SET log_min_error_statement = panic;
		 SET outbox_kafka.producer_config = 'acks=all; $property=$misplaced'");
	isnt($code, 0, "producer_config with $property is refused");
	like($stderr, qr/DETAIL:.*$property/, "$property: the error names the property");
	push @errors, $stderr;
}
push @secrets, $misplaced;
# The same by the file of settings: the reload goes on without it.
$node->append_conf('postgresql.conf', "outbox_kafka.producer_config = 'sasl.password=$misplaced'");
$log_offset = -s $node->logfile;
$node->reload;
wait_until('the reload is over', sub { log_since() =~ /producer_config/ });
unlike(slurp_file($node->logfile), qr/\Q$misplaced\E/, 'a password in postgresql.conf is not logged');
$node->append_conf('postgresql.conf', "outbox_kafka.producer_config = 'debug=all'");
$node->reload;

$node->safe_psql('a', q{CREATE ROLE monitor LOGIN IN ROLE pg_monitor; CREATE ROLE nobody LOGIN});
for my $setting ('producer_config', 'config_file')
{
	my (undef, undef, $stderr) =
	  $node->psql('a', "SET ROLE nobody; SHOW outbox_kafka.$setting");
	like($stderr, qr/ERROR:.*(must be superuser|permission denied|privileges)/,
		"an ordinary user does not see $setting");
	push @errors, $stderr;
}

# Everything that SQL shows: settings, activity, and all of schema outbox.
my @queries = (
	'SELECT * FROM pg_settings', 'SHOW ALL', 'SELECT * FROM pg_stat_activity',
	map { "SELECT * FROM $_" } split /\n/,
	$node->safe_psql('a',
		q{SELECT c.oid::regclass FROM pg_class AS c
		  WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v')}));
cmp_ok(scalar @queries, '>', 15, 'there is something to look at');
my %places = (
	'server log' => slurp_file($node->logfile),
	'errors' => join("\n", @errors),
	map { $_ => $node->safe_psql('a', $_) } @queries);
for my $process (glob '/proc/[0-9]*')
{
	open(my $file, '<', "$process/cmdline") or next;
	my $line = <$file> // '';
	$places{"title of process $process"} = $line if $line =~ /^postgres/;
}
cmp_ok(scalar(grep { /^title/ } keys %places), '>', 4, 'processes too');
cmp_ok(length $places{'server log'}, '>', 10000, 'the server log says a lot');
for my $secret (@secrets)
{
	my @found = sort grep { index($places{$_}, $secret) >= 0 } keys %places;
	(my $name = $secret) =~ s/-[a-z]{16}$//;
	is_deeply(\@found, [], "$name appears nowhere");
}
ok(index(slurp_file($config_file), $second) >= 0, 'but in the file, where it is looked for in vain otherwise');

ok(!$node->log_contains(qr/PANIC|TRAP|was terminated by signal/), 'no process of the server died');
$node->stop;
done_testing();
