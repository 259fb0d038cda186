#!/usr/bin/perl
#
# bench.pl WORK_DIRECTORY PG_CONFIG
#
# Starts the server and the broker and measures; what it finds goes to
# results.tsv in the work directory (report.pl makes tables and plots of it).
# Called by run.sh, which describes the environment variables; each module in
# Bench/ says how its part is measured.

use strict;
use warnings;

use FindBin;

use Bench::Contender;
use Bench::Drain;
use Bench::Environment;
use Bench::Growth;
use Bench::Inbox;
use Bench::Latency;
use Bench::Publish;
use Bench::Report;
use Bench::Steady;

my ($work, $pg_config) = @ARGV;
my @parts = (
	[ drain => \&Bench::Drain::run ],
	[ latency => \&Bench::Latency::run ],
	[ steady => \&Bench::Steady::run ],
	[ publish => \&Bench::Publish::run ],
	[ commit => \&Bench::Publish::run_commit ],
	[ inbox => \&Bench::Inbox::run ],
	[ rebuild => \&Bench::Inbox::run_rebuild ],
	[ size => \&Bench::Steady::run_size ],
	[ backlog => \&Bench::Growth::run_backlog ],
	[ payload => \&Bench::Growth::run_payload ],
	[ topics => \&Bench::Growth::run_topics ],
	[ idle => \&Bench::Growth::run_idle ]);

# Sizes: as they are meant, and for a quick look at whether all runs.
my $quick = ($ENV{QUICK} // 'no') eq 'yes';

sub setting
{
	my ($name, $full, $small) = @_;
	return $ENV{$name} // ($quick ? $small : $full);
}

sub count_of
{
	my ($name, $full, $small) = @_;
	my $value = setting($name, $full, $small);
	die "bench: $name must be a positive number, not \"$value\"\n" if $value !~ /^[1-9]\d*$/;
	return $value;
}

sub counts_of
{
	my ($name, $full, $small) = @_;
	my @values = split /[ ,]+/, setting($name, $full, $small);
	for my $value (@values)
	{
		die "bench: $name must be positive numbers, not \"$value\"\n" if $value !~ /^[1-9]\d*$/;
	}
	return \@values;
}

# 200 bytes of JSON
sub payload
{
	my $start = '{"order": 184467, "customer": "5f4dcc3b5aa765d61d8327deb882cf99", "note": "';
	return $start . substr('the quick brown fox jumps over the lazy dog ' x 5, 0, 198 - length $start) . '"}';
}

sub lines
{
	my ($path) = @_;
	open(my $file, '<', $path) or return;
	return <$file>;
}

sub describe_machine
{
	my ($env) = @_;
	my ($model) = map { /^model name\s*:\s*(.*\S)/ ? $1 : () } lines('/proc/cpuinfo');
	my ($memory) = map { /^MemTotal:\s+(\d+)/ ? sprintf('%.0f GiB', $1 / 1048576) : () } lines('/proc/meminfo');
	my ($load) = split ' ', (lines('/proc/loadavg'))[0];
	my ($version) = map { /<kafka\.version>(.*)</ ? $1 : () } lines("$FindBin::Bin/../kafka/pom.xml");
	my ($debezium) = map { /<debezium\.version>(.*)</ ? $1 : () } lines("$FindBin::Bin/connect/pom.xml");
	my ($java) = `java -version 2>&1` =~ /Runtime Environment.*\(build (\S+)\)/;
	chomp(my $kernel = `uname -sr`);
	my @facts = (
		[ 'commit', $ENV{BENCH_COMMIT} // '' ],
		[ 'machine', "$env->{processors} processors" . ($model ? ", $model" : '') . ", $memory, $kernel" ],
		[ 'load before (1 min)', $load ],
		[ 'PostgreSQL', $env->sql('postgres', q{SELECT concat(split_part(version(), ' on ', 1), ', shared_buffers ', current_setting('shared_buffers'), ', wal_level ', current_setting('wal_level'), ', data checksums, fsync')}) ],
		[ 'Kafka', "$version, one broker (KRaft), -Xmx1g, loopback, 6 partitions, replication factor 1, Java $java" ],
		[ 'librdkafka', $env->{librdkafka} ],
		($env->{logical} ? [ 'Debezium', "$debezium on Kafka Connect $version, one worker, -Xmx2g" ] : ()),
		[ 'records', "key, 200 bytes of JSON, headers $env->{headers}" ]);
	$env->record('machine', $_->[0], '', 1, { text => $_->[1] }) for @facts;
	progress("$_->[0]: $_->[1]") for @facts;
	return;
}

my %is_part = map { $_->[0] => 1 } @parts;
my @chosen = split /[ ,]+/, $ENV{BENCH} // 'drain,latency,steady,publish,commit';
@chosen = map { $_->[0] } @parts if "@chosen" eq 'all';
for my $part (@chosen)
{
	die "bench: there is no part \"$part\"; there are: @{[map { $_->[0] } @parts]}\n" if !$is_part{$part};
}
my %is_contender = map { $_ => 1 } Bench::Contender::names();
my @contenders = split /[ ,]+/, $ENV{CONTENDERS} // 'relay bare polling debezium debezium_tuned';
for my $name (@contenders)
{
	die "bench: there is no contender \"$name\"; there are: @{[Bench::Contender::names()]}\n" if !$is_contender{$name};
}
my $headers = $ENV{BENCH_HEADERS} // 'plain';
die "bench: BENCH_HEADERS is plain or cloudevents, not \"$headers\"\n" if $headers !~ /^(plain|cloudevents)$/;
my $debezium = grep { /^debezium/ } @contenders;
die "bench: Debezium's EventRouter sends plain headers only\n" if $debezium && $headers ne 'plain';

my %options = (
	contenders => \@contenders,
	rows => count_of('ROWS', 1_000_000, 20_000),
	runs => count_of('RUNS', 5, 1),
	rates => counts_of('RATES', '100 1000 5000', '100 1000'),
	slices => count_of('SLICES', 6, 1),
	steady_seconds => count_of('STEADY_SECONDS', 20, 3),
	size_seconds => count_of('SIZE_SECONDS', 3600, 20),
	size_rate => count_of('SIZE_RATE', 500, 200),
	size_retention => setting('SIZE_RETENTION', '5min', '5s'),
	growth_rows => counts_of('GROWTH_ROWS', '100000 1000000 10000000', '10000 20000'),
	growth_runs => count_of('GROWTH_RUNS', 2, 1),
	topics => counts_of('TOPICS', '1 10 100 1000', '1 10'),
	sizes => counts_of('SIZES', '200 1000 10000 900000', '200 1000 10000 900000'),
	payload_megabytes => count_of('PAYLOAD_MEGABYTES', 1000, 20),
	batches => counts_of('BATCHES', '1 10 100 1000 10000', '1 100'),
	inbox_rows => count_of('INBOX_ROWS', 500_000, 10_000),
	databases => counts_of('DATABASES', '1 64', '1 4'),
	idle_seconds => count_of('IDLE_SECONDS', 300, 10),
	warm_records => count_of('WARM_RECORDS', 1_000_000, 50_000),
	per_transaction => count_of('BENCH_ROWS_PER_TRANSACTION', 1, 1),
	checkpoint => ($ENV{BENCH_CHECKPOINT} // 'no') eq 'yes',
	payload => payload());

# A second signal must not cut short what the first one started.
sub ignore_signals
{
	$SIG{$_} = 'IGNORE' for qw(INT TERM HUP);
	return;
}
$SIG{$_} = sub { ignore_signals(); progress("ended by SIG$_[0]"); exit 1 } for qw(INT TERM HUP);
chomp(my $bindir = `'$pg_config' --bindir`);

our $env = Bench::Environment->new(
	dir => $work,
	bindir => $bindir,
	programs => $FindBin::Bin,
	results => "$work/results.tsv",
	headers => $headers,
	logical => $debezium,
	payload => payload(),
	producer_config => $ENV{BENCH_PRODUCER_CONFIG} // '',
	settings => $ENV{BENCH_SETTINGS} // '');

END
{
	ignore_signals();
	local $?;
	$env->stop if $env;
}

chomp($env->{librdkafka} = `'$FindBin::Bin/consumer' -V`);
describe_machine($env);
for my $part (@parts)
{
	my ($name, $run) = @$part;
	next if !grep { $_ eq $name } @chosen;
	my $started = time;
	$run->($env, \%options);
	progress(sprintf '%s took %d s', $name, time - $started);
}
progress('done');
