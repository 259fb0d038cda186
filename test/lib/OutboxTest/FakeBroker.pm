
=pod

=head1 NAME

OutboxTest::FakeBroker - something that answers at a broker's address

=head1 SYNOPSIS

  my $fake = OutboxTest::FakeBroker->new(
      file => $path,
      serve => sub {
          my ($connection) = @_;
          while (my $request = $connection->request)
          {
              my $answer = $connection->answer($request);
              $connection->send(substr($answer, 0, 10));
          }
      });
  # outbox_kafka.bootstrap_servers = $fake->bootstrap
  $fake->counted('connections'); $fake->stop;

=head1 DESCRIPTION

A server for tests in which the broker is an enemy. Each connection is a process
of its own that runs the code given as serve; the connection ends with it.

Enough of Kafka's protocol is here to lead a producer up to its acknowledgements:
ApiVersions, Metadata, InitProducerId, Produce, SaslHandshake and
SaslAuthenticate. What serve sends instead of the right answer is up to the test.

=cut

package OutboxTest::FakeBroker;

use strict;
use warnings;

use Carp;
use Fcntl;
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes ();

=head1 METHODS OF THE BROKER

=over

=item OutboxTest::FakeBroker->new(%options)

Options: serve (code, gets a connection), file (prefix of the files in which it
counts), record (keep what is sent, in hexadecimal, a line per frame, in the
file named FILE.sent), idle (end a connection on which nothing comes for so many
seconds).

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = bless { owner => $$, %options }, $class;

	unlink glob "$self->{file}.*";
	$self->{listener} = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1', Proto => 'tcp', Listen => 50)
	  or croak "could not listen: $!";
	$self->{port} = $self->{listener}->sockport;
	$self->{pid} = fork // croak "could not fork: $!";
	if ($self->{pid} == 0)
	{
		setpgrp;
		$self->accept_connections;
		POSIX::_exit(0);
	}
	close delete $self->{listener};
	return $self;
}

=item $fake->bootstrap

=item $fake->counted($what)

How many "connections" were made, how many "answers" were sent, and whatever
serve counts itself by $connection->count($what).

=item $fake->sent

What was sent, if it is recorded.

=item $fake->stop

=back

=cut

sub bootstrap { return "127.0.0.1:$_[0]{port}"; }
sub counted { return -s "$_[0]{file}.$_[1]" // 0; }

sub sent
{
	my ($self) = @_;
	open(my $file, '<', "$self->{file}.sent") or return;
	return <$file>;
}

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;
	kill 'KILL', -$pid;
	kill 'KILL', $pid;
	waitpid($pid, 0);
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!);
	$self->stop if $self->{owner} == $$;
	return;
}

sub count
{
	my ($self, $what) = @_;
	sysopen(my $file, "$self->{file}.$what", O_WRONLY | O_CREAT | O_APPEND) or return;
	syswrite $file, '.';
	return;
}

# Until the test ends, or ends us.
sub accept_connections
{
	my ($self) = @_;
	my $number = 0;
	my $test = getppid;

	$SIG{CHLD} = 'IGNORE';
	$SIG{PIPE} = 'IGNORE';
	$SIG{ALRM} = sub { kill 'KILL', -$$ if getppid != $test; alarm 1; };
	alarm 1;
	for (;;)
	{
		my $socket = $self->{listener}->accept or next;
		$number++;
		$self->count('connections');
		my $pid = fork // next;
		if ($pid == 0)
		{
			alarm 0;
			my $connection = bless {
				broker => $self, socket => $socket, number => $number, offsets => {}
			}, 'OutboxTest::FakeBroker::Connection';
			eval { $self->{serve}->($connection); };
			shutdown $socket, 2;
			POSIX::_exit(0);
		}
		close $socket;
	}
}

=head1 METHODS OF A CONNECTION

=over

=item $connection->number

Counted from 1.

=item $connection->request

The next request: a hash of key, version, correlation and body. Undef at the
end.

=item $connection->answer($request)

The right answer, framed.

=item $connection->frame($request, $body)

=item $connection->send($bytes)

False when the other end is gone.

=item $connection->pause($seconds)

=item $connection->count($what)

=back

=cut

package OutboxTest::FakeBroker::Connection;

my %names = (0 => 'Produce', 3 => 'Metadata', 17 => 'SaslHandshake', 18 => 'ApiVersions', 22 => 'InitProducerId', 36 => 'SaslAuthenticate');

sub number { return $_[0]{number}; }
sub count { return $_[0]{broker}->count($_[1]); }
sub pause { Time::HiRes::sleep($_[1]); return; }

sub receive
{
	my ($self, $length) = @_;
	my $bytes = '';
	while (length $bytes < $length)
	{
		my $idle = $self->{broker}{idle};
		return if $idle && !IO::Select->new($self->{socket})->can_read($idle);
		my $n = sysread $self->{socket}, $bytes, $length - length $bytes, length $bytes;
		return unless $n;
	}
	return $bytes;
}

sub request
{
	my ($self) = @_;
	my $length = unpack 'N', $self->receive(4) // return;
	my $bytes = $self->receive($length) // return;
	my ($key, $version, $correlation, $client) = unpack 'n n N n', $bytes;
	my $body = substr($bytes, 10 + ($client == 0xffff ? 0 : $client));
	return {
		key => $key, name => $names{$key} // "request $key", version => $version,
		correlation => $correlation, body => $body };
}

sub frame
{
	my ($self, $request, $body) = @_;
	return pack('N N', 4 + length $body, $request->{correlation}) . $body;
}

sub send
{
	my ($self, $bytes) = @_;
	my $broker = $self->{broker};
	if ($broker->{record} && sysopen(my $file, "$broker->{file}.sent",
			Fcntl::O_WRONLY | Fcntl::O_CREAT | Fcntl::O_APPEND))
	{
		syswrite $file, "$self->{number} " . unpack('H*', $bytes) . "\n";
	}
	for (my $sent = 0; $sent < length $bytes;)
	{
		$sent += syswrite($self->{socket}, $bytes, length($bytes) - $sent, $sent) || return 0;
	}
	$broker->count('answers');
	return 1;
}

sub string { return pack 'n/a*', $_[0]; }

sub answer
{
	my ($self, $request) = @_;
	my $make = $self->can("answer_$request->{name}") or return;
	return $self->frame($request, $make->($self, $request));
}

# What is offered: [key, lowest version, highest].
sub offered
{
	return ([ 0, 3, 7 ], [ 1, 4, 10 ], [ 2, 1, 2 ], [ 3, 1, 2 ], [ 10, 0, 0 ],
		[ 17, 0, 1 ], [ 18, 0, 3 ], [ 22, 0, 0 ], [ 36, 0, 0 ]);
}

sub answer_ApiVersions
{
	my ($self, $request) = @_;
	my @keys = offered();
	return pack 'n N (a6)*', 0, scalar @keys, map { pack 'n3', @$_ } @keys
	  if $request->{version} < 3;
	return pack('n C', 0, 1 + @keys)
	  . join('', map { pack 'n3 C', @$_, 0 } @keys) . pack('N C', 0, 0);
}

# Topics that a Metadata request names.
sub topics_asked
{
	my ($self, $request) = @_;
	my ($count, $rest) = unpack 'N a*', $request->{body};
	return if $count == 0xffffffff;
	return unpack '(n/a)' . $count, $rest;
}

sub metadata
{
	my ($self, $brokers, $topics) = @_;
	my $version = $self->{metadata_version} // 2;
	return pack('N', scalar @$brokers)
	  . join('', map { pack('N', $_->[0]) . string($_->[1]) . pack('N n', $_->[2], 0xffff) } @$brokers)
	  . ($version >= 2 ? string('fake') : '') . pack('N', $brokers->[0] ? $brokers->[0][0] : 0)
	  . pack('N', scalar @$topics) . join '', @$topics;
}

# A topic as Metadata tells of it; partitions are [number, leader, error].
sub topic
{
	my ($self, $name, $error, @partitions) = @_;
	return pack('n', $error) . string($name) . pack('C N', 0, scalar @partitions)
	  . join '', map { pack 'n N N N N N N', $_->[2] // 0, $_->[0], $_->[1], 1, $_->[1], 1, $_->[1] } @partitions;
}

sub self_as_broker
{
	my ($self) = @_;
	return [ 1, '127.0.0.1', $self->{broker}{port} ];
}

sub answer_Metadata
{
	my ($self, $request) = @_;
	local $self->{metadata_version} = $request->{version};
	return $self->metadata([ $self->self_as_broker ],
		[ map { $self->topic($_, 0, [ 0, 1 ], [ 1, 1 ]) } $self->topics_asked($request) ]);
}

sub answer_InitProducerId
{
	return pack 'N n N2 n', 0, 0, 0, 4711, 0;
}

# Topics, partitions and how many records of a Produce request: all
# acknowledged, whatever they are.
sub answer_Produce
{
	my ($self, $request, $error) = @_;
	my $body = $request->{body};
	my $pos = 2;    # no transactional id
	$pos += 6;
	my $ntopics = unpack 'N', substr($body, $pos, 4);
	$pos += 4;
	my @answers;
	for (1 .. $ntopics)
	{
		my $topic = unpack 'n/a', substr($body, $pos);
		$pos += 2 + length $topic;
		my $count = unpack 'N', substr($body, $pos, 4);
		$pos += 4;
		my @partitions;
		for (1 .. $count)
		{
			my ($partition, $length) = unpack 'N N', substr($body, $pos, 8);
			my $records = unpack 'N', substr($body, $pos + 8 + 57, 4);
			$pos += 8 + $length;
			my $offset = $self->{offsets}{"$topic $partition"} // 0;
			$self->{offsets}{"$topic $partition"} += $records;
			push @partitions, pack 'N n N2 N2', $partition, $error // 0, 0, $offset, 0xffffffff, 0xffffffff;
			$partitions[-1] .= pack 'N2', 0, 0 if $request->{version} >= 5;
		}
		push @answers, string($topic) . pack('N', $count) . join '', @partitions;
	}
	return pack('N', $ntopics) . join('', @answers) . pack 'N', 0;
}

sub answer_SaslHandshake
{
	return pack('n N', 0, 3) . string('PLAIN') . string('SCRAM-SHA-256') . string('SCRAM-SHA-512');
}

sub answer_SaslAuthenticate
{
	my ($self, $request, $error, $message, $bytes) = @_;
	return pack('n', $error // 0)
	  . (defined $message ? string($message) : pack 'n', 0xffff)
	  . pack 'N/a*', $bytes // '';
}

1;
