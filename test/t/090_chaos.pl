
# Everything at once, in short: 45 seconds of faults at random with a fixed
# seed, each kind at least once. Three brokers, a server and its standby,
# writers with a ledger; then nothing is lost, nothing came that was not
# committed, first arrivals are in order and what came twice is within what the
# faults explain. test/chaos/run.sh does the same for as long as one likes.
#
# OUTBOX_CHAOS_SEED and OUTBOX_CHAOS_SECONDS change the run.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib", "$FindBin::RealBin/../chaos";

use Test::More;

use Chaos::Plan;
use Chaos::Rig;

my $seconds = $ENV{OUTBOX_CHAOS_SECONDS} // 45;
my @said;
my $rig = Chaos::Rig->new(
	seed => $ENV{OUTBOX_CHAOS_SEED} // 1,
	seconds => $seconds,
	every => 3.5,
	prove => 1,
	say => sub { push @said, @_; note(@_) });
my $report = $rig->run;

my %done = map { $_->{kind} => 1 } grep { $_->{kind} } @{ $rig->{timeline} };
cmp_ok(scalar(keys %done), '>=', @{ $rig->{kinds} } / 2,
	'of the kinds of faults most came');
cmp_ok($report->{ledger}, '>', 1000, 'the load was a load');
is($report->{lost}, 0, 'nothing is lost');
is($report->{extra}, 0, 'nothing came that was not committed');
is($report->{different}, 0, 'all came as published');
is($report->{out_of_order}, 0, 'first arrivals are in order');
cmp_ok($report->{repeated}, '<=', $report->{repeated_allowed},
	'what came twice is explained by the faults');
is_deeply($report->{findings}, [], 'nothing else was found');
cmp_ok($report->{tamperings} // 0, '>=', 8, 'the comparison was put to the test');
is_deeply($report->{tamperings_unnoticed},
	[], 'the comparison notices every tampering');
diag($_) for grep { /^(?:faults|repeated|longest)/ } @said;

unless ($report->{ok})
{
	diag($_) for @said;
}
done_testing();
