
=pod

=head1 NAME

Chaos::Brokers - a Kafka cluster whose nodes go away and come back

=head1 DESCRIPTION

Nothing here waits: a node that is to come back is put on a list, heal() brings
back what is due. So other faults happen while a broker is away. At most two of
three are away at the same time, unless all are paused.

=cut

package Chaos::Brokers;

use strict;
use warnings;

use POSIX qw(:sys_wait_h);
use Time::HiRes qw(time);

use OutboxTest::Kafka;

=head1 METHODS

=over

=item Chaos::Brokers->new(%options)

Started, with three nodes. Options: most (how many may be away at the same time,
unless all are, 2), and those of OutboxTest::Kafka.

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = bless { away => {}, most => delete $options{most} // 2 }, $class;
	$self->{kafka} = OutboxTest::Kafka->new(
		nodes => 3,
		heap => '256m',
		%options,
		conf => {
			'broker.session.timeout.ms' => 5000,
			'broker.heartbeat.interval.ms' => 1000,
			'unclean.leader.election.enable' => 'false',
			%{ $options{conf} // {} }
		});
	$self->{kafka}->start;
	return $self;
}

sub kafka
{
	my ($self) = @_;
	return $self->{kafka};
}

=item $brokers->take($kind, $pick, $seconds)

kill-broker, restart-broker, pause-broker or pause-kafka; what was done, or
undef when too many are away already.

=cut

sub take
{
	my ($self, $kind, $pick, $seconds) = @_;
	my $kafka = $self->{kafka};
	my @here = grep { !$self->{away}{$_} } 1 .. 3;
	my $all = $kind eq 'pause-kafka';
	return undef if $all ? @here < 3 : @here <= 3 - $self->{most};

	my @victims = $all ? @here : $here[ int($pick * @here) ];
	for my $id (@victims)
	{
		my $pid = $kafka->pid($id);
		if ($kind eq 'kill-broker')
		{
			$kafka->kill9($id);
		}
		else
		{
			kill $kind eq 'restart-broker' ? 'TERM' : 'STOP', $pid;
		}
		$self->{away}{$id} = {
			kind => $kind,
			until => time + $seconds,
			patience => time + $seconds + 10
		};
	}
	return sprintf 'node %s for %.1f s', join(' and ', @victims), $seconds;
}

=item $brokers->heal($all)

Bring back the nodes whose time has come, or all. A list of what was done.

=cut

sub heal
{
	my ($self, $all) = @_;
	my $kafka = $self->{kafka};
	my @done;

	for my $id (sort keys %{ $self->{away} })
	{
		my $away = $self->{away}{$id};
		next if !$all && time < $away->{until};
		if ($away->{kind} =~ /^pause/)
		{
			$kafka->cont($id);
			push @done, "node $id goes on";
		}
		else
		{
			next unless $self->has_ended($id, $all || time > $away->{patience});
			$kafka->launch($kafka->{node}{$id});
			push @done, "node $id is started";
		}
		delete $self->{away}{$id};
	}
	return @done;
}

# An orderly stop takes its time, and longer while the others are away.
sub has_ended
{
	my ($self, $id, $insist) = @_;
	my $node = $self->{kafka}{node}{$id};
	return 1 unless $node->{pid};
	if (waitpid($node->{pid}, WNOHANG) == 0)
	{
		return 0 unless $insist;
		kill 'KILL', $node->{pid};
		waitpid($node->{pid}, 0);
	}
	delete $node->{pid};
	return 1;
}

=item $brokers->find_dead

Nodes that ended although nobody asked them to; they are started again.

=cut

sub find_dead
{
	my ($self) = @_;
	my @dead;
	for my $id (grep { !$self->{away}{$_} } 1 .. 3)
	{
		my $node = $self->{kafka}{node}{$id};
		next if waitpid($node->{pid}, WNOHANG) == 0;
		delete $node->{pid};
		push @dead, $id;
		$self->{kafka}->launch($node);
	}
	return @dead;
}

=item $brokers->recover

All are back and serve.

=back

=cut

sub recover
{
	my ($self) = @_;
	$self->heal(1);
	$self->{kafka}->wait_ready($_) for 1 .. 3;
	return;
}

1;
