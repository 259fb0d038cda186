
=pod

=head1 NAME

OutboxTest::Harness - prove, several tests side by side, with totals in a file

=head1 DESCRIPTION

For prove --harness OutboxTest::Harness. Tests wait for servers most of the time,
so OUTBOX_TEST_JOBS of them (2) run side by side, but for those that measure time
or processor time, or load the machine by themselves: these come first, one after
the other. Two of them look for a minute at what is nearly idle, and disturb
nobody: they share that minute.

Adds lines to the file that the environment variable OUTBOX_TEST_TOTALS names.

  count PASSED FAILED
  failed FILE

Skipped tests count as neither. A test file that fails in another way than by
its tests (it died, or ran another number of tests than planned) counts as one
more failure.

=cut

package OutboxTest::Harness;

use strict;
use warnings;

use parent 'TAP::Harness';

my @ALONE = ('020', '021', [ '022', '023' ], '080', '090');

sub rule
{
	my ($tests) = @_;
	return { par => [ map { rule($_) } @$tests ] } if ref $tests;
	return { seq => "test/t/$tests*.pl" };
}

sub new
{
	my ($class, $arguments) = @_;
	return $class->SUPER::new(
		{
			jobs => $ENV{OUTBOX_TEST_JOBS} // 2,
			rules => { seq => [ (map { rule($_) } @ALONE), { par => '**' } ] },
			%$arguments
		});
}

sub summary
{
	my ($self, $aggregate, @rest) = @_;
	my ($passed, $failed, @failed_files) = (0, 0);

	for my $name ($aggregate->descriptions)
	{
		my ($parser) = $aggregate->parsers($name);
		$passed += $parser->passed - $parser->skipped;
		$failed += $parser->failed || ($parser->has_problems ? 1 : 0);
		push @failed_files, $name if $parser->has_problems;
	}
	open(my $file, '>>', $ENV{OUTBOX_TEST_TOTALS})
	  or die "could not write $ENV{OUTBOX_TEST_TOTALS}: $!";
	print $file "count $passed $failed\n";
	print $file "failed $_\n" for @failed_files;
	close $file;
	return $self->SUPER::summary($aggregate, @rest);
}

1;
