# What holds for the files of the project: versions agree, the tests on disk
# are the tests that run, and the dependencies of the C files go where they
# may.

use strict;
use warnings;

use File::Basename qw(basename);
use JSON::PP;
use Test::More;

sub slurp
{
	my ($path) = @_;
	open(my $file, '<', $path) or die "could not read $path: $!";
	local $/;
	return scalar <$file>;
}

# Words of a variable of the Makefile.
sub make_variable
{
	my ($name) = @_;
	my ($value) = slurp('Makefile') =~ /^\Q$name\E *= *((?:.*\\\n)*.*)$/m
	  or die "no $name in Makefile";
	$value =~ s/\\\n//g;
	return split ' ', $value;
}

# Every file that a file of src/ includes from there, directly or not.
sub included
{
	my ($path, $seen) = @_;
	$seen //= {};
	for my $name (slurp($path) =~ /^#include "([\w.]+)"/mg)
	{
		next if !-e "src/$name" || $seen->{$name}++;
		included("src/$name", $seen);
	}
	return $seen;
}

my @sources = glob 'src/*.c';
my @files = (@sources, glob 'src/*.h');
cmp_ok(scalar @sources, '>', 10, 'the sources are here');

subtest 'versions' => sub {
	my $meta = decode_json(slurp('META.json'));
	my ($version) = slurp('outbox_kafka.control') =~ /^default_version = '(.*)'$/m;
	my $provides = $meta->{provides}{outbox_kafka};

	is($meta->{version}, $version, 'META.json and control file');
	is($provides->{version}, $version, 'what META.json provides');
	ok(-e $provides->{file}, 'the script that META.json names exists');
	ok(-e $provides->{docfile}, 'the text that META.json names exists');
	like(
		slurp('CHANGELOG.md'),
		qr/^## \[?\Q$version\E\b/m,
		'the change log has this version');

	# A fresh install is the base script and every step to the version.
	my (%base, %step);
	for my $script (map { basename($_) } glob 'sql/outbox_kafka--*.sql')
	{
		if ($script =~ /^outbox_kafka--([\d.]+)--([\d.]+)\.sql$/) { $step{$1} = $2; }
		elsif ($script =~ /^outbox_kafka--([\d.]+)\.sql$/) { $base{$1} = 1; }
		else { fail("unexpected script $script"); }
	}
	is(scalar keys %base, 1, 'one base script');
	my ($reached) = keys %base;
	$reached = $step{$reached} while $step{$reached};
	is($reached, $version, 'the scripts lead to the version');
};

subtest 'SQL and C name the same functions' => sub {
	my %sql = map { $_ => 1 }
	  map { slurp($_) =~ /'MODULE_PATHNAME', '(\w+)'/g } glob 'sql/outbox_kafka--*.sql';
	my %c = map { $_ => 1 } map { slurp($_) =~ /^PG_FUNCTION_INFO_V1\((\w+)\)/mg } @sources;
	is_deeply([ sort keys %c ], [ sort keys %sql ], 'functions');
};

subtest 'every test runs' => sub {
	my @regress = map { basename($_, '.sql') }
	  grep { !/outbox_kafka--/ } glob 'sql/*.sql';
	my @isolation =
	  map { basename($_, '.spec') } glob 'test/isolation/specs/*.spec';
	is_deeply([ sort(make_variable('REGRESS')) ], [ sort @regress ], 'regress');
	is_deeply([ sort(make_variable('ISOLATION')) ], [ sort @isolation ], 'isolation');
	for (make_variable('REGRESS'))
	{
		ok(-e "expected/$_.out", "regress $_ has an expected output");
	}
	for (make_variable('ISOLATION'))
	{
		ok(-e "test/isolation/expected/$_.out", "isolation $_ has an expected output");
		ok(!-e "expected/$_.out", "no regress test is called $_, too");
	}
};

subtest 'form of the C files' => sub {
	for my $path (@files)
	{
		my $text = slurp($path);
		my $name = basename($path);
		my $lines = $text =~ tr/\n//;
		like($text, qr{\A/\*\n \* \Q$name\E\n \*\t  \S.*\n}, "$name starts with what it is for");
		cmp_ok($lines, '<=', 700, "$name has $lines lines");
		unlike($text, qr/\bPG_VERSION_NUM\b/, "$name asks for no version")
		  unless $name eq 'compat.h';
		unlike($text, qr/[ \t]+$/m, "$name has no blanks at line ends");
	}
};

subtest 'dependencies of the C files' => sub {
	for my $path (@files)
	{
		my $name = basename($path);
		my $text = slurp($path);
		my %includes = map { $_ => 1 } $text =~ /^#include ["<]([^">]+)[">]/mg;

		if ($name =~ /^kafka/)
		{
			ok(!$includes{'postgres.h'}, "$name knows nothing of PostgreSQL");
		}
		else
		{
			ok(!grep({ /rdkafka/ } keys %includes), "$name does not know librdkafka");
			unlike($text, qr/\brd_kafka_/, "$name does not call librdkafka");
		}
		if ($name =~ /\.c$/ && $name !~ /^kafka/)
		{
			my ($first) = $text =~ /^#include ["<]([^">]+)[">]/m;
			is($first, 'postgres.h', "$name includes postgres.h first");
		}
		ok(!$includes{'postgres.h'}, "$name leaves postgres.h to the C files")
		  if $name =~ /\.h$/;
		for my $main (qw(launcher relay inbox))
		{
			next if $name =~ /^(\Q$main\E|outbox_kafka)\.c$/;
			ok(!$includes{"$main.h"}, "$name does not include $main.h");
		}
	}

	# A backend that only publishes must not be able to start a thread.
	for my $path (grep { m{/(publish|message|wakeup|uuid7|segment_choice|control)\w*\.c$} } @sources)
	{
		my @kafka = grep { /^kafka/ } sort keys %{ included($path) };
		is("@kafka", '', basename($path) . ' is free of Kafka');
	}
};

done_testing();
