
=pod

=head1 NAME

Bench::Report - numbers and tables

=cut

package Bench::Report;

use strict;
use warnings;

use Exporter qw(import);
use List::Util qw(max);
use POSIX qw(ceil);

our @EXPORT = qw(median percentile group heading note table progress);

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	my $middle = int(@sorted / 2);
	return @sorted % 2 ? $sorted[$middle] : ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

# The smallest value that at least p percent of all do not exceed.
sub percentile
{
	my ($p, $sorted) = @_;
	return $sorted->[ max(ceil($p / 100 * @$sorted), 1) - 1 ];
}

# 1234567.8 as 1,234,568
sub group
{
	my ($number) = @_;
	my $text = sprintf '%.0f', $number;
	1 while $text =~ s/^(-?\d+)(\d{3})/$1,$2/;
	return $text;
}

sub heading
{
	my ($text) = @_;
	print "\n## $text\n\n";
	return;
}

sub note
{
	my ($text) = @_;
	print "$text\n\n";
	return;
}

# Rows of cells, the first row is the head; the first column is text.
sub table
{
	my (@rows) = @_;
	my @width;
	for my $row (@rows)
	{
		$width[$_] = max($width[$_] // 0, length $row->[$_]) for 0 .. $#$row;
	}
	my $print = sub {
		my ($row) = @_;
		print '|', join('|', map { $_ == 0
				? sprintf(' %-*s ', $width[$_], $row->[$_])
				: sprintf(' %*s ', $width[$_], $row->[$_]) } 0 .. $#$row), "|\n";
	};
	$print->(shift @rows);
	print '|', join('|', map { $_ == 0 ? '-' x ($width[$_] + 2) : '-' x ($width[$_] + 1) . ':' } 0 .. $#width), "|\n";
	$print->($_) for @rows;
	print "\n";
	return;
}

sub progress
{
	my ($text) = @_;
	print STDERR "bench: $text\n";
	return;
}

1;
