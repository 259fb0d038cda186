#!/usr/bin/perl
#
# chaos.pl --seed N --seconds N ...: one run of the rig. Called by run.sh, which
# describes the options and provides what PostgreSQL's test modules need in the
# environment. The exit code is 0 if all holds.

use strict;
use warnings;

# The test modules take standard output away for their log.
my $report;

BEGIN
{
	open($report, '>&', \*STDOUT) or die "could not keep the output: $!";
	$report->autoflush(1);
}

use FindBin;
use lib $FindBin::RealBin, "$FindBin::RealBin/../lib";

use Getopt::Long qw(GetOptions);
use IO::Handle;
use Test::More;

use Chaos::Plan;
use Chaos::Rig;

my %options = (seed => 1, seconds => 60);
my ($only, $except, %settings);
GetOptions(
	'seed=s' => \$options{seed},
	'seconds=i' => \$options{seconds},
	'every=f' => \$options{every},
	'only=s' => \$only,
	'except=s' => \$except,
	'writers=i' => \$options{writers},
	'pace=f' => \$options{pace},
	'max-in-flight=i' => \$options{max_in_flight},
	'delivery=s' => \$options{delivery},
	'prove' => \$options{prove},
	'set=s' => \%settings) && !@ARGV
  or die "chaos: wrong options, see run.sh\n";

my %unwanted = map { $_ => 1 } split /,/, $except // '';
$options{kinds} = [
	grep { !$unwanted{$_} }
	  defined $only ? split(/,/, $only) : sort keys %Chaos::Plan::KINDS
];
delete @options{ grep { !defined $options{$_} } keys %options };

my $result = Chaos::Rig->new(
	%options,
	settings => \%settings,
	say => sub { print $report @_, "\n"; print @_, "\n" })->run;
ok($result->{ok}, 'all holds');
done_testing();
