
# A broker that is an enemy: garbage, frames that are cut off, that announce too
# much, that come byte by byte, answers that make no sense, and right answers
# with some bytes changed. The relay lives, its memory stays bounded, the server
# shuts down in time, the status never says that all is well, the log gets no
# lines that the enemy wrote; and with a real broker all goes on, nothing lost.
#
# What bytes are changed follows from OUTBOX_FUZZ_SEED, which is printed;
# OUTBOX_FUZZ_ANSWERS makes a longer run. What was sent is kept beside the
# server's log, in the file mutated.sent.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::FakeBroker;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;
use PostgreSQL::Test::Utils;

my $seed = $ENV{OUTBOX_FUZZ_SEED} // 20240229;
my $answers = $ENV{OUTBOX_FUZZ_ANSWERS} // 150;
my $memory_limit = 80;    # MB more than before
diag("OUTBOX_FUZZ_SEED=$seed OUTBOX_FUZZ_ANSWERS=$answers");

my $directory = PostgreSQL::Test::Utils::tempdir();
my $broker = OutboxTest::MockBroker->new;
my $node = new_node('hostile', kafka => $broker, conf => { 'outbox_kafka.config_file' => "$directory/properties" });
write_config('');
new_database($node, 'a');

sub write_config
{
	my ($text) = @_;
	open(my $file, '>', "$directory/properties") or die "could not write: $!";
	chmod 0600, "$directory/properties";
	print $file $text;
	close $file;
	return;
}

sub random_bytes { return join '', map { chr int rand 256 } 1 .. $_[0]; }

sub publish_numbers
{
	my ($topic, $from, $to) = @_;
	$node->safe_psql('a', "SELECT outbox.publish('$topic', i::text, 'k') FROM generate_series($from, $to) AS i");
	return;
}

# Resident memory of a process now, in MB.
sub memory
{
	my ($pid) = @_;
	my ($kilobytes) = slurp_file("/proc/$pid/status") =~ /^VmRSS:\s*(\d+) kB/m;
	return $kilobytes / 1024;
}

publish_numbers('first', 1, 100);
wait_delivered($node, 'a');
my $row = wait_state($node, 'a', 'idle');
my $relay = $row->{pid};
my $server_started = $node->safe_psql('a', 'SELECT pg_postmaster_start_time()');
my $memory_before = memory($relay);

# Answer rightly until a request of that name comes; it is returned.
sub answer_until
{
	my ($connection, $name) = @_;
	while (my $request = $connection->request)
	{
		return $request if $request->{name} eq $name;
		return if $request->{name} eq 'Produce';    # nothing is acknowledged here
		$connection->send($connection->answer($request) // return) or return;
	}
	return;
}

# What a broker acknowledges is delivered, as far as anybody can tell; an enemy
# may lie about it, and no client can know. So none of these acknowledges any.

# Answer rightly but for requests of that name, whose answer's body is made by
# the code.
sub instead_of
{
	my ($name, $make) = @_;
	return sub {
		my ($connection) = @_;
		while (my $request = answer_until($connection, $name))
		{
			$connection->send($connection->frame($request, $make->($connection, $request))) or return;
			$connection->count('wrong');
		}
	};
}

sub metadata_of
{
	my ($brokers, @partitions) = @_;
	return instead_of('Metadata', sub {
		my ($connection, $request) = @_;
		$connection->{metadata_version} = $request->{version};
		return $connection->metadata([ $connection->self_as_broker, @$brokers ],
			[ map { $connection->topic($_, 0, @partitions) } $connection->topics_asked($request) ]);
	});
}

my $not_connected = qr/^(connecting|failed)$/;
my $anything_but_well = qr/^(connecting|failed|running)$/;

# Name, what it does, what has to have been counted before, and the state then.
my @enemies = (
	[ closes => sub { }, connections => 3, $not_connected ],
	[ garbage => sub { $_[0]->send(random_bytes(4096)); $_[0]->pause(60) }, connections => 3, $not_connected ],
	[ garbage_as_answer => sub { $_[0]->request; $_[0]->send(random_bytes(4096)); $_[0]->pause(60) }, connections => 3, $not_connected ],
	[ http => sub { $_[0]->request; $_[0]->send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n") }, connections => 3, $not_connected ],
	[ negative_length => sub { $_[0]->request; $_[0]->send(pack('N', 0xffffffff) . "\0" x 1000); $_[0]->pause(60) }, connections => 3, $not_connected ],
	[
		huge_length => sub {
			my ($connection) = @_;
			$connection->request;
			$connection->send(pack 'N', 0x7fffffff);
			for (1 .. 100) { $connection->send("\0" x 1_000_000) or return }
		},
		connections => 3, $not_connected
	],
	[
		as_long_as_allowed => sub {
			my ($connection) = @_;
			while (my $request = $connection->request)
			{
				$connection->send(pack('N N', 15_900_000, 999_999) . "\xff" x 15_899_996) for 1 .. 5;
			}
		},
		answers => 5, $not_connected
	],
	[ short_frames => sub { $_[0]->request; $_[0]->send(join '', map { pack('N', $_) . 'x' x $_ } 0 .. 5); $_[0]->pause(60) }, connections => 3, $not_connected ],
	[
		truncated => sub {
			my ($connection) = @_;
			my $answer = $connection->answer($connection->request);
			$connection->send(substr($answer, 0, 1 + int rand(length($answer) - 1)));
		},
		connections => 3, $not_connected
	],
	[
		unfinished => sub {
			my ($connection) = @_;
			$connection->send(substr($connection->answer($connection->request), 0, -1));
			$connection->pause(60);
		},
		answers => 1, $not_connected
	],
	[
		slow => sub {
			my ($connection) = @_;
			my $answer = $connection->answer($connection->request);
			for (split //, $answer) { $connection->send($_) or return; $connection->pause(0.15) }
		},
		answers => 10, $not_connected
	],
	[
		other_correlation => sub {
			my ($connection) = @_;
			my $request = $connection->request;
			$request->{correlation} += 4711;
			$connection->send($connection->answer($request)) for 1 .. 10;
			$connection->pause(60);
		},
		answers => 10, $not_connected
	],
	map({
		my ($name, $body) = @$_;
		[ "versions_$name" => instead_of('ApiVersions', sub { $body }), wrong => 2, $not_connected ]
	} [ none => pack('n C N C', 0, 1, 0, 0) ], [ count => pack('n C5', 0, 0xff, 0xff, 0xff, 0xff, 0x7f) ],
		[ reversed => pack('n C', 0, 4) . join('', map { pack 'n3 C', $_, 9, 1, 0 } 0, 3, 18) . pack('N C', 0, 0) ],
		[ error => pack('n C N C', 9999, 1, 0, 0) ], [ tags => pack('n C N C', 0, 1, 0, 200) . "\xff" x 50 ]),
	map({
		my ($name, $serve) = @$_;
		[ "metadata_$name" => $serve, wrong => 2, $anything_but_well ]
	} [ garbage => instead_of('Metadata', sub { random_bytes(300) }) ],
		[ empty => instead_of('Metadata', sub { '' }) ],
		[ counts => instead_of('Metadata', sub { pack 'N', 0x7ffffff0 }) ],
		[ none => instead_of('Metadata', sub { $_[0]->metadata([], []) }) ],
		[ no_partitions => metadata_of([]) ],
		[ other_topic => instead_of('Metadata', sub { $_[0]->metadata([ $_[0]->self_as_broker ], [ map { $_[0]->topic($_, 0, [ 0, 1 ]) } '', 'x' x 30000, "\xff\n\0" ]) }) ],
		[ error => instead_of('Metadata', sub { my ($c, $r) = @_; $c->metadata([ $c->self_as_broker ], [ map { $c->topic($_, 0x8000 + int rand 0x8000, [ 0, 1 ]) } $c->topics_asked($r) ]) }) ],
		[ brokers => metadata_of([ map { [ $_, "\xff\n" x 100 . $_, 70000 + $_ ] } 2 .. 40 ], [ 0, 2 ]) ],
		[ leaders => metadata_of([], map { [ $_, one_of(-1, -2, 0x7fffffff, 77) ] } 0 .. 99) ],
		[ many => metadata_of([], map { [ $_, -1 ] } 0 .. 19_999) ],
		[ too_many => metadata_of([], map { [ $_, -1 ] } 0 .. 100_000) ],
		[ numbers => metadata_of([], map { [ $_, 1 ] } 5, 5, 0x7fffffff, 1, -2147483648) ],
		[ negative => metadata_of([], [ -5, 1 ], [ -2, 1 ]) ]),
	map({
		my ($name, $serve) = @$_;
		[ "produce_$name" => $serve, wrong => 2, $anything_but_well ]
	} [ id_garbage => instead_of('InitProducerId', sub { random_bytes(30) }) ],
		[ id_negative => instead_of('InitProducerId', sub { pack 'N n N2 n', 0, 0, 0xffffffff, 0xffffffff, 0xffff }) ],
		[ id_error => instead_of('InitProducerId', sub { pack 'N n N2 n', 0, 9999, 0, 0, 0 }) ],
		[ garbage => instead_of('Produce', sub { random_bytes(60) }) ],
		[ empty => instead_of('Produce', sub { pack 'N N', 0, 0 }) ],
		[ other => instead_of('Produce', sub { pack('N', 1) . OutboxTest::FakeBroker::Connection::string("x\xff\n") . pack 'N N n N2 N2 N2 N', 1, 0x7fffffff, 3, 0, 0, 0, 0, 0, 0, 0 }) ],
		[ error => instead_of('Produce', sub { $_[0]->answer_Produce($_[1], 9999) }) ],
		[ sequence => instead_of('Produce', sub { $_[0]->answer_Produce($_[1], 45) }) ]));

sub one_of { return $_[ rand @_ ]; }

srand $seed;
my $number = 0;
for my $enemy (@enemies)
{
	my ($name, $serve, $what, $count, $state) = @$enemy;
	my $fake = OutboxTest::FakeBroker->new(
		file => "$directory/$name",
		serve => sub { my ($connection) = @_; srand $seed + $connection->number; $serve->($connection) });

	$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $fake->bootstrap . "'");
	$node->reload;
	publish_numbers($name, 1, 5);
	wait_until("$name: $count $what", sub { $fake->counted($what) >= $count }, 60, sub { explain relay_status($node, 'a') });
	my $row = {};
	wait_until("$name: a state that is true", sub { $row = relay_status($node, 'a'); $row->{state} =~ $state }, 20,
		sub { explain $row });
	is($row->{pid}, $relay, "$name: the relay lives ($row->{state}, " . ($row->{last_error} // 'no error') . ')');
	if (($row->{pid} // 0) != $relay)
	{
		$relay = wait_until('there is a relay again', sub { relay_pid($node, 'a') });
	}
	my $memory = memory($relay);
	cmp_ok($memory - $memory_before, '<', $memory_limit, sprintf '%s: %.1f MB more memory', $name, $memory - $memory_before);
	$fake->stop;
}

# ---------------------------------------------------------------------------
# Text from the other side
# ---------------------------------------------------------------------------

my $evil_text = "no\nFATAL:  outbox_kafka is compromised\r\n\xff\xfe\x1b[2J\xc3";
write_config("security.protocol=sasl_plaintext\nsasl.mechanisms=PLAIN\nsasl.username=u\nsasl.password=p\n");
my $fake = OutboxTest::FakeBroker->new(
	file => "$directory/text",
	serve => instead_of('SaslAuthenticate', sub { $_[0]->answer_SaslAuthenticate($_[1], 58, $evil_text) }));
my $log_offset = -s $node->logfile;
$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $fake->bootstrap . "'");
$node->reload;
publish_numbers('text', 1, 5);
wait_until('the login is refused', sub { (relay_status($node, 'a')->{last_error} // '') =~ /compromised/ });
my $error = $node->safe_psql('a', 'SELECT last_error FROM outbox.relay_status');
unlike($error, qr/[^ -~]/, "what a broker says is one line of ASCII: $error");
is($node->safe_psql('a', q{SELECT convert_from(convert_to(last_error, 'UTF8'), 'UTF8') = last_error FROM outbox.relay_status}),
	't', 'and valid text');
wait_until('the log has it', sub { slurp_file($node->logfile, $log_offset) =~ /compromised/ });
unlike(slurp_file($node->logfile, $log_offset), qr/^FATAL|[\xff\xfe\x1b]/m, 'in the log, too');
$fake->stop;
write_config('');

# ---------------------------------------------------------------------------
# A real broker
# ---------------------------------------------------------------------------

sub go_on_with_real_broker
{
	wait_delivered($node, 'a', 60);
	# What an enemy refused waits for its next try: now.
	$node->safe_psql('a', 'SELECT outbox.retry(topic) FROM (SELECT DISTINCT topic FROM outbox.parked) AS p');
	wait_until('nothing is parked', sub { $node->safe_psql('a', 'SELECT count(*) FROM outbox.parked') eq '0' });
	wait_state($node, 'a', 'idle');
	return;
}

$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $broker->bootstrap . "'");
$node->reload;
go_on_with_real_broker();
for my $name ((map { $_->[0] } @enemies), 'text')
{
	my @payloads = map { $_->{payload} } OutboxTest::Kcat::consume($broker->bootstrap, $name);
	is("@payloads", '1 2 3 4 5', "$name: all are there, in order, once");
}

# ---------------------------------------------------------------------------
# Right answers with some bytes changed
# ---------------------------------------------------------------------------

$fake = OutboxTest::FakeBroker->new(
	file => "$directory/mutated",
	record => 1,
	idle => 0.3,
	serve => sub {
		my ($connection) = @_;
		srand $seed + $connection->number;
		while (my $request = $connection->request)
		{
			my $answer = $connection->answer($request) // return;
			# most of what leads up to Produce has to be right
			if (rand() < ($request->{name} eq 'Produce' ? 0.5 : 0.2))
			{
				for (1 .. 1 + int rand 3)
				{
					my $at = rand() < 0.05 ? int rand 8 : 8 + int rand(length($answer) - 8);
					my $size = one_of(1, 1, 2, 4);
					substr($answer, $at, $size) = substr(
						one_of(random_bytes(4), "\0\0\0\0", "\xff\xff\xff\xff", "\x7f\xff\xff\xff", "\x80\0\0\0"), 0, $size)
					  if $at + $size <= length $answer;
				}
			}
			$connection->send($answer) or return;
		}
	});
$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $fake->bootstrap . "'");
$node->reload;
my $published = 0;
wait_until(
	"$answers answers",
	sub {
		if ($published < 5 * $fake->counted('answers') + 5)
		{
			publish_numbers('mutated', $published + 1, $published + 5);
			$published += 5;
		}
		return $fake->counted('answers') >= $answers;
	},
	300 + $answers);
my $survived = is($node->safe_psql('a', 'SELECT pg_postmaster_start_time()'), $server_started, 'changed bytes: the server has not restarted');
my $now = relay_pid($node, 'a');
is($now, $relay, 'changed bytes: the relay lives');
$survived or diag("the last of what was sent:\n" . join '', ($fake->sent)[ -10 .. -1 ]);
cmp_ok(memory($now) - $memory_before, '<', $memory_limit, sprintf 'changed bytes: %.1f MB more memory', memory($now) - $memory_before);

# ---------------------------------------------------------------------------
# Shutdown, and the real broker again
# ---------------------------------------------------------------------------

publish_numbers('mutated', $published + 1, $published + 5);
my $began = time;
$node->stop('fast');
cmp_ok(time - $began, '<', 5, sprintf 'stopped in %.2f s', time - $began);
$fake->stop;

$node->append_conf('postgresql.conf', "outbox_kafka.bootstrap_servers = '" . $broker->bootstrap . "'");
$node->start;
go_on_with_real_broker();
# Some of these an enemy has acknowledged: what came here is in order.
my @payloads = map { $_->{payload} } OutboxTest::Kcat::consume($broker->bootstrap, 'mutated');
is_deeply(\@payloads, [ sort { $a <=> $b } @payloads ], scalar(@payloads) . " of $published were left for the real broker, in order");

ok(!$node->log_contains(qr/PANIC|TRAP|was terminated by signal/), 'no process of the server died');
$node->stop;
done_testing();
