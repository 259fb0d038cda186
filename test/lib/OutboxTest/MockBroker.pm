
=pod

=head1 NAME

OutboxTest::MockBroker - a mock Kafka cluster for one test

=head1 SYNOPSIS

  my $broker = OutboxTest::MockBroker->new(brokers => 3, topics => { orders => 4 });
  $node->append_conf('postgresql.conf',
      "outbox_kafka.bootstrap_servers = '" . $broker->bootstrap . "'");
  $broker->command('error produce NOT_ENOUGH_REPLICAS 3');
  $broker->stop;

=head1 DESCRIPTION

Starts test/mockbroker/mockbroker (or what the environment variable MOCKBROKER
names), which explains its commands itself. It ends with the object, and with
the test in any case: it watches its standard input.

=cut

package OutboxTest::MockBroker;

use strict;
use warnings;

use Carp;
use File::Basename qw(dirname);
use File::Spec;
use IPC::Run;

sub program
{
	return $ENV{MOCKBROKER} if $ENV{MOCKBROKER};
	my $here = dirname(File::Spec->rel2abs(__FILE__));
	return File::Spec->catfile($here, '..', '..', 'mockbroker', 'mockbroker');
}

# new(brokers => N, topics => { name => partitions, ... }, timeout => seconds)
sub new
{
	my ($class, %args) = @_;
	my $topics = $args{topics} || {};
	my $self = bless { in => '', out => '', err => '' }, $class;
	my @command = (program(), '-e', '-b', $args{brokers} || 1,
		map { "$_:$topics->{$_}" } sort keys %$topics);

	croak "$command[0] is not built" unless -x $command[0];
	$self->{timeout} = IPC::Run::timeout($args{timeout} || 60);
	$self->{run} = IPC::Run::start(\@command, '<', \$self->{in},
		'>', \$self->{out}, '2>', \$self->{err}, $self->{timeout});
	$self->{bootstrap} = $self->_line;
	return $self;
}

# One line of its output; dies when it ends or says nothing for the timeout.
sub _line
{
	my ($self) = @_;

	$self->{timeout}->start;
	while (index($self->{out}, "\n") < 0)
	{
		$self->{run}->pumpable
		  or croak "the mock broker has ended: $self->{err}";
		$self->{run}->pump;
	}
	$self->{timeout}->reset;
	$self->{out} =~ s/^(.*)\n//;
	return $1;
}

# host:port of every broker, comma separated
sub bootstrap
{
	my ($self) = @_;
	return $self->{bootstrap};
}

# Have a command executed; dies unless it says ok.
sub command
{
	my ($self, $command) = @_;

	croak 'the mock broker is stopped' unless $self->{run};
	$self->{in} .= "$command\n";
	my $answer = $self->_line;
	croak "mock broker: $command: $answer" unless $answer eq 'ok';
	return;
}

sub stop
{
	my ($self) = @_;
	my $run = delete $self->{run} or return;

	$self->{timeout}->start;
	$run->finish;    # closes its standard input, which ends it
	$self->{timeout}->reset;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($@, $?);
	eval { $self->stop; 1 } or warn "mock broker: $@";
	return;
}

1;
