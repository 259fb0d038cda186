
=pod

=head1 NAME

OutboxTest - what the TAP tests of outbox_kafka share

=head1 SYNOPSIS

  use OutboxTest;
  use OutboxTest::Kafka;

  my $kafka = OutboxTest::Kafka->new;
  $kafka->start;
  $kafka->create_topic('orders', 6);
  my $node = new_node('main', kafka => $kafka,
      conf => { 'outbox_kafka.retention' => '10s' });
  new_database($node, 'a');
  my $id = publish($node, 'a', q{'orders', 'payload'::text, 'key'});
  wait_published($node, 'a', $id);
  is(($kafka->consume('orders'))[0]{partition}, murmur2_partition('key', 6));

=head1 DESCRIPTION

Helpers around PostgreSQL::Test::Cluster. Everything that waits, waits for a
condition, and on a timeout prints the relay's status row before it gives up.

=cut

package OutboxTest;

use strict;
use warnings;

use Carp;
use Exporter qw(import);
use Time::HiRes qw(time sleep);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  new_node new_database publish try_sql insist_sql kill_worker
  relay_status relay_pid wait_until wait_state wait_published wait_delivered
  murmur2 murmur2_partition
);

=head1 FUNCTIONS

=over

=item new_node($name, %options)

A PostgreSQL::Test::Cluster node with the library preloaded, started. Options:
kafka (an OutboxTest::Kafka or MockBroker object: its bootstrap becomes
outbox_kafka.bootstrap_servers), conf (hash of settings), init (hash for
init()), start (0: leave it to the caller).

=cut

sub new_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my %conf = (
		'shared_preload_libraries' => 'outbox_kafka',
		'log_statement' => 'none',
		'max_worker_processes' => 16,
		'max_prepared_transactions' => 20,
		%{ $options{conf} // {} });

	$conf{'outbox_kafka.bootstrap_servers'} //= $options{kafka}->bootstrap
	  if $options{kafka};
	$node->init(%{ $options{init} // {} });
	for my $name (sort keys %conf)
	{
		(my $value = $conf{$name}) =~ s/'/''/g;
		$node->append_conf('postgresql.conf', "$name = '$value'");
	}
	$node->start if $options{start} // 1;
	return $node;
}

=item new_database($node, $name)

CREATE DATABASE with the extension in it.

=cut

sub new_database
{
	my ($node, $name) = @_;
	$node->safe_psql('postgres', qq{CREATE DATABASE "$name"});
	$node->safe_psql($name, 'CREATE EXTENSION outbox_kafka');
	return;
}

=item publish($node, $database, $arguments)

SELECT outbox.publish(arguments) in a transaction of its own; the event id.

=cut

sub publish
{
	my ($node, $database, $arguments) = @_;
	return $node->safe_psql($database, "SELECT outbox.publish($arguments)");
}

=item try_sql($node, $database, $sql)

What a statement prints; undef if it fails. The server may be down, or go down
meanwhile: psql can be gone before it has read the statement, which
PostgreSQL::Test::Cluster's psql() dies of.

=cut

sub try_sql
{
	my ($node, $database, $sql) = @_;
	my ($code, $out) = eval { $node->psql($database, $sql) };
	return defined $code && $code == 0 ? $out : undef;
}

=item insist_sql($node, $database, $sql)

The same, again and again until it succeeds.

=cut

sub insist_sql
{
	my ($node, $database, $sql) = @_;
	my $answer;
	wait_until("the server takes: $sql", sub { defined($answer = try_sql($node, $database, $sql)) }, 60);
	return $answer;
}

=item kill_worker($node, $signal, $pid)

Returns when the process has ended and the server takes connections. After a
SIGKILL it starts anew, but knows of that only when it has seen the process end:
until then it answers as if nothing had happened.

=cut

sub kill_worker
{
	my ($node, $signal, $pid) = @_;
	kill $signal, $pid;
	wait_until("process $pid has ended", sub { !kill 0, $pid });
	insist_sql($node, 'postgres', 'SELECT 1');
	return;
}

=item relay_status($node, $database)

The row of outbox.relay_status as a hash; undef where SQL has NULL.

=cut

sub relay_status
{
	my ($node, $database) = @_;
	my %row;
	for my $line (split /\n/, $node->safe_psql($database,
			q{SELECT key, coalesce('=' || value, '')
			  FROM outbox.relay_status AS s, json_each_text(row_to_json(s))}))
	{
		my ($name, $value) = $line =~ /^(\w+)\|=?(.*)$/ or next;
		$row{$name} = $line =~ /^\w+\|=/ ? $value : undef;
	}
	return \%row;
}

=item relay_pid($node, $database)

Its process, or undef when none runs.

=cut

sub relay_pid
{
	my ($node, $database) = @_;
	return relay_status($node, $database)->{pid};
}

=item wait_until($what, $condition, $seconds, $detail)

Poll until the condition (code) is true and return its value. When the time is
over (default PG_TEST_TIMEOUT_DEFAULT), print the detail (code) and die.

=cut

sub wait_until
{
	my ($what, $condition, $seconds, $detail) = @_;
	my $deadline =
	  time + ($seconds // $PostgreSQL::Test::Utils::timeout_default);
	my $result;
	until ($result = $condition->())
	{
		if (time > $deadline)
		{
			diag($detail->()) if $detail;
			croak "timed out waiting until $what";
		}
		sleep 0.02;
	}
	return $result;
}

=item wait_state($node, $database, $state, $seconds)

Until outbox.relay_status shows that state (a pattern may be given: qr/.../).
Returns the row.

=cut

sub wait_state
{
	my ($node, $database, $state, $seconds) = @_;
	my $pattern = ref $state ? $state : qr/\A\Q$state\E\z/;
	my $row;
	return wait_until(
		"the relay of $database is $state",
		sub {
			$row = relay_status($node, $database);
			return ($row->{state} // '') =~ $pattern ? $row : undef;
		},
		$seconds,
		sub { format_status($row) });
}

=item wait_published($node, $database, @event_ids)

Until each of these committed messages is acknowledged.

=cut

sub wait_published
{
	my ($node, $database, @event_ids) = @_;
	my $seconds = $PostgreSQL::Test::Utils::timeout_default;
	for my $id (@event_ids)
	{
		my $answer = $node->safe_psql($database,
			"SELECT outbox.wait_published('$id', '$seconds s')");
		next if $answer eq 't';
		diag(format_status(relay_status($node, $database)));
		croak "message $id is not published: "
		  . ($answer eq '' ? 'it is not retained' : 'timed out');
	}
	return;
}

=item wait_delivered($node, $database, $seconds)

Until no committed message is pending.

=cut

sub wait_delivered
{
	my ($node, $database, $seconds) = @_;
	wait_until(
		"everything in $database is delivered",
		sub {
			return $node->safe_psql($database,
				'SELECT NOT EXISTS (SELECT FROM outbox.pending)') eq 't';
		},
		$seconds,
		sub { format_status(relay_status($node, $database)) });
	return;
}

sub format_status
{
	my ($row) = @_;
	return join "\n", 'outbox.relay_status:',
	  map { "  $_ = " . ($row->{$_} // 'NULL') } sort keys %$row;
}

=item murmur2($bytes)

The hash (a signed 32-bit number) by which the Java client spreads keys. Written
from its definition, independently of the extension and of librdkafka.

=item murmur2_partition($key, $partitions)

The partition the Java client gives to a key of these bytes.

=back

=cut

sub murmur2
{
	use integer;    # wraps; the masks keep it to 32 bits
	my ($bytes) = @_;
	my ($m, $mask) = (0x5bd1e995, 0xffffffff);
	my $length = length $bytes;
	my $h = (0x9747b28c ^ $length) & $mask;
	my $shift = sub {
		no integer;
		return $_[0] >> $_[1];
	};

	for my $k (unpack 'V*', substr($bytes, 0, $length & ~3))
	{
		$k = ($k * $m) & $mask;
		$k ^= $shift->($k, 24);
		$k = ($k * $m) & $mask;
		$h = (($h * $m) & $mask) ^ $k;
	}
	if (my @rest = unpack 'C*', substr($bytes, $length & ~3))
	{
		$h ^= $rest[$_] << (8 * $_) for 0 .. $#rest;
		$h = ($h * $m) & $mask;
	}
	$h ^= $shift->($h, 13);
	$h = ($h * $m) & $mask;
	$h ^= $shift->($h, 15);
	return $h > 0x7fffffff ? $h - 2**32 : $h;
}

sub murmur2_partition
{
	my ($key, $partitions) = @_;
	return (murmur2($key) & 0x7fffffff) % $partitions;
}

1;
