
=pod

=head1 NAME

OutboxTest::Harness - prove, with its totals in a file

=head1 DESCRIPTION

For prove --harness OutboxTest::Harness: adds lines to the file that the
environment variable OUTBOX_TEST_TOTALS names.

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
