
=pod

=head1 NAME

OutboxTest::Kcat - read Kafka topics with kcat, byte for byte

=head1 SYNOPSIS

  my @records = OutboxTest::Kcat::consume($bootstrap, 'orders.created');

  my $reader = OutboxTest::Kcat->new($bootstrap, ['a', 'b'], file => $path);
  $reader->wait_count(1000);
  my @so_far = $reader->records;
  $reader->stop;

=head1 DESCRIPTION

A record is a hash: topic, partition, offset, ts (milliseconds), key, payload,
headers (array of [name, value] in order) and header (hash, the last of equal
names). Key, payload and header values are byte strings as they are in Kafka,
undef where Kafka has null.

kcat writes a JSON object a line in which it escapes only what JSON must have
escaped, below 0x80, and copies all other bytes as they are. It is not JSON
when they are not UTF-8, so the lines are read as bytes here, not by a JSON
parser.

=cut

package OutboxTest::Kcat;

use strict;
use warnings;

use Carp;
use POSIX ();
use Time::HiRes qw(time sleep);

=head1 FUNCTIONS

=over

=item consume($bootstrap, $topic, %options)

All records up to the topic's present end, sorted by partition and offset.
Options: partition, properties (hash for librdkafka).

=cut

sub consume
{
	my ($bootstrap, $topic, %options) = @_;
	my @command = (
		command($bootstrap, $options{properties}),
		'-C', '-e', '-o', 'beginning', '-t', $topic);
	push @command, '-p', $options{partition} if defined $options{partition};

	open(my $pipe, '-|:raw', @command) or croak "could not run kcat: $!";
	my @records = map { parse_record($_) } <$pipe>;
	close $pipe or croak "kcat for $topic failed, exit code " . ($? >> 8);
	return
	  sort { $a->{partition} <=> $b->{partition} || $a->{offset} <=> $b->{offset} }
	  @records;
}

=item parse_record($line)

One line of kcat -J.

=cut

sub parse_record
{
	my ($line) = @_;
	my %record = (headers => []);

	$line =~ /\G\{/gc or croak "not a record: $line";
	while ($line =~ /\G,?"(\w+)":/gc)
	{
		my $name = $1;
		if ($line =~ /\G\[/gc)
		{
			my @list;
			until ($line =~ /\G\]/gc)
			{
				push @list, parse_value(\$line);
				$line =~ /\G,/gc;
			}
			push @{ $record{headers} }, [ splice @list, 0, 2 ] while @list;
		}
		else
		{
			$record{$name} = parse_value(\$line);
		}
	}
	$line =~ /\G\}\s*$/gc or croak "not a record: $line";
	$record{header} = { map { @$_ } @{ $record{headers} } };
	return \%record;
}

=back

=head1 METHODS

=over

=item OutboxTest::Kcat->new($bootstrap, \@topics, %options)

Start to read in the background, from the beginning, through any trouble with
the brokers. Options: file (where the
lines go), timeout (seconds for wait_count, 120), properties.

=cut

sub new
{
	my ($class, $bootstrap, $topics, %options) = @_;
	my $self = bless {
		timeout => 120,
		%options,
		owner => $$,
		read => 0,
		records => [],
		pids => []
	}, $class;

	open(my $output, '>:raw', $self->{file})
	  or croak "could not write $self->{file}: $!";
	for my $topic (@$topics)
	{
		my $pid = fork // croak "could not fork: $!";
		if ($pid == 0)
		{
			open(STDIN, '<', '/dev/null');
			open(STDOUT, '>&', $output);
			exec('setpriv', '--pdeathsig', 'KILL',
				command($bootstrap, $options{properties}),
				'-C', '-E', '-u', '-o', 'beginning', '-t', $topic)
			  or POSIX::_exit(127);
		}
		push @{ $self->{pids} }, $pid;
	}
	return $self;
}

=item $reader->records

Everything read so far, in the order in which it arrived (by topic: topics are
read side by side).

=cut

sub records
{
	my ($self) = @_;
	open(my $input, '<:raw', $self->{file})
	  or croak "could not read $self->{file}: $!";
	seek $input, $self->{read}, 0;
	while (my $line = <$input>)
	{
		last unless $line =~ /\n\z/;
		$self->{read} += length $line;
		push @{ $self->{records} }, parse_record($line);
	}
	return @{ $self->{records} };
}

=item $reader->wait_count($count, $seconds)

Wait until that many have arrived; dies when the time is over.

=cut

sub wait_count
{
	my ($self, $count, $seconds) = @_;
	my $deadline = time + ($seconds // $self->{timeout});
	my $seen;
	while (($seen = () = $self->records) < $count)
	{
		croak "$seen of $count records have arrived" if time > $deadline;
		sleep 0.05;
	}
	return;
}

=item $reader->stop

=back

=cut

sub stop
{
	my ($self) = @_;
	for my $pid (splice @{ $self->{pids} })
	{
		kill 'KILL', $pid;
		waitpid($pid, 0);
	}
	return;
}

# ---------------------------------------------------------------------------

sub command
{
	my ($bootstrap, $properties) = @_;
	my %properties = ('fetch.wait.max.ms' => 20, %{ $properties // {} });
	return ('kcat', '-q', '-J', '-b', $bootstrap,
		map { ('-X', "$_=$properties{$_}") } sort keys %properties);
}

my %unescape = (
	b => "\b", f => "\f", n => "\n", r => "\r", t => "\t",
	'"' => '"', '\\' => '\\', '/' => '/');

# The value at the position of the string: null, a number or a string. Walked
# piece by piece, since a repeated group has a bound in Perl.
sub parse_value
{
	my ($text) = @_;
	return undef if $$text =~ /\Gnull/gc;
	return $1 if $$text =~ /\G(-?\d+)/gc;
	$$text =~ /\G"/gc or croak "not a value at byte " . pos($$text);
	my @pieces;
	until ($$text =~ /\G"/gc)
	{
		if ($$text =~ /\G([^"\\]+)/gc)
		{
			push @pieces, $1;
		}
		elsif ($$text =~ /\G\\u00([0-9A-Fa-f]{2})/gc)
		{
			push @pieces, chr hex $1;
		}
		elsif ($$text =~ /\G\\(["\\\/bfnrt])/gc)
		{
			push @pieces, $unescape{$1};
		}
		else
		{
			croak "not a string at byte " . pos($$text);
		}
	}
	return join '', @pieces;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!);
	$self->stop if $self->{owner} == $$;
	return;
}

1;
