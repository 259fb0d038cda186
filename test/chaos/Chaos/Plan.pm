
=pod

=head1 NAME

Chaos::Plan - which fault comes when, drawn from a seed

=head1 SYNOPSIS

  my @faults = Chaos::Plan::draw(seed => 7, seconds => 60, every => 5,
      kinds => [qw(kill-relay pause-broker)]);
  # { at => 3.1, kind => 'pause-broker', pick => 0.71, seconds => 4.2, burst => 3000 }

=head1 DESCRIPTION

The same seed, length and kinds give the same plan, on any machine: nothing
else draws from this generator. What is hit at that moment (which backend, how
far the relay has come) is up to the run.

Every kind comes once before one comes again, in an order that is drawn anew
each time, so that a short run has all of them, too.

=cut

package Chaos::Plan;

use strict;
use warnings;

use Carp;
use Digest::MD5 qw(md5);

# name => what is done
our %KINDS = (
	'kill-backend' => 'kill -9 of any process of the server but its relay',
	'kill-relay' => 'kill -9 of the relay',
	'end-relay' => 'SIGTERM to the relay',
	'pause-relay' => 'SIGSTOP of the relay, SIGCONT later',
	'stop-server' => 'immediate stop of the server, start',
	'kill-server' => 'kill -9 of the postmaster, start',
	'restart-server' => 'fast stop of the server, start',
	'kill-broker' => 'kill -9 of a broker, start later',
	'restart-broker' => 'orderly stop of a broker, start later',
	'pause-broker' => 'SIGSTOP of a broker, SIGCONT later',
	'pause-kafka' => 'SIGSTOP of all brokers, SIGCONT later',
	'kill-standby' => 'kill -9 of the standby, start later',
	'promote' => 'immediate stop of the primary, promotion of its standby');

# Longest absence, in seconds; the shortest is a tenth of it.
my %ABSENCE = (
	'pause-relay' => 5,
	'kill-broker' => 8,
	'restart-broker' => 5,
	'pause-broker' => 14,
	'pause-kafka' => 6,
	'kill-standby' => 6);

=head1 FUNCTIONS

=over

=item draw(%options)

seed, seconds (length of the plan), every (mean time between two faults),
kinds (array of names). A list of faults, the earliest first: at (seconds
since the beginning), kind, pick (a number from 0 to 1 that chooses the
victim), seconds (how long it is away), burst (so many messages are published
at once just before, or 0).

=back

=cut

sub draw
{
	my (%options) = @_;
	my $drawn = 0;
	my $random = sub {
		return unpack('N', md5("$options{seed}/" . $drawn++)) / 2**32;
	};
	my @deck;
	my @faults;
	my $at = 0;

	for my $kind (@{ $options{kinds} })
	{
		croak "there is no fault \"$kind\"; there are: "
		  . join(' ', sort keys %KINDS)
		  unless $KINDS{$kind};
	}
	while (1)
	{
		$at += $options{every} * (0.3 + 1.4 * $random->());
		last if $at >= $options{seconds};
		@deck = sort @{ $options{kinds} } unless @deck;
		my ($kind) = splice @deck, int($random->() * @deck), 1;
		my $share = 0.1 + 0.9 * $random->();
		push @faults,
		  {
			at => $at,
			kind => $kind,
			pick => $random->(),
			seconds => $share * ($ABSENCE{$kind} // 0),
			burst => $random->() < 0.5 ? 500 + int(7500 * $random->()) : 0
		  };
	}
	return @faults;
}

1;
