#!/usr/bin/perl
#
# bench.pl WORK_DIRECTORY PG_CONFIG
#
# Starts the server and the broker and prints what was measured. Called by
# run.sh, which describes the environment variables; the measurements are in
# Bench/Drain.pm, Bench/Latency.pm and Bench/Publish.pm.

use strict;
use warnings;

use FindBin;

use Bench::Drain;
use Bench::Environment;
use Bench::Latency;
use Bench::Publish;
use Bench::Report;

my ($work, $pg_config) = @ARGV;
my %parts = (drain => \&Bench::Drain::run, latency => \&Bench::Latency::run, publish => \&Bench::Publish::run);
my @order = qw(drain latency publish);

sub count_of
{
	my ($name, $default) = @_;
	my $value = $ENV{$name} // $default;
	die "bench: $name must be a positive number, not \"$value\"\n" if $value !~ /^[1-9]\d*$/;
	return $value;
}

# 200 bytes of JSON
sub payload
{
	my $start = '{"order": 184467, "customer": "5f4dcc3b5aa765d61d8327deb882cf99", "note": "';
	return $start . substr('the quick brown fox jumps over the lazy dog ' x 5, 0, 198 - length $start) . '"}';
}

sub describe_machine
{
	my ($env) = @_;
	my ($model) = map { /^model name\s*:\s*(.*\S)/ ? $1 : () } lines('/proc/cpuinfo');
	my ($memory) = map { /^MemTotal:\s+(\d+)/ ? sprintf('%.0f GiB', $1 / 1048576) : () } lines('/proc/meminfo');
	my ($load) = split ' ', (lines('/proc/loadavg'))[0];
	heading('outbox_kafka benchmark');
	table(
		[ 'what', 'value' ],
		[ 'machine', "$env->{processors} processors" . ($model ? ", $model" : '') . ", $memory" ],
		[ 'load before (1 min)', $load ],
		[ 'PostgreSQL', $env->sql('postgres', q{SELECT concat(split_part(version(), ' on ', 1), ', shared_buffers ', current_setting('shared_buffers'), ', data checksums, fsync')}) ],
		[ 'Kafka', 'one broker (KRaft), -Xmx1g, loopback, 6 partitions, replication factor 1' ],
		[ 'librdkafka', $env->{librdkafka} ]);
	return;
}

sub lines
{
	my ($path) = @_;
	open(my $file, '<', $path) or return;
	return <$file>;
}

my @chosen = split /,/, $ENV{BENCH} // join ',', @order;
for my $part (@chosen)
{
	die "bench: there is no part \"$part\"; there are: @order\n" if !$parts{$part};
}
my $headers = $ENV{BENCH_HEADERS} // '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}';
my %options = (
	rows => count_of('ROWS', 1_000_000),
	runs => count_of('RUNS', 5),
	seconds => count_of('BENCH_SECONDS', 20),
	rows_per_transaction => count_of('BENCH_ROWS_PER_TRANSACTION', 1),
	checkpoint => ($ENV{BENCH_CHECKPOINT} // 'no') eq 'yes',
	headers => $headers eq 'none' ? undef : $headers,
	payload => payload());

STDOUT->autoflush(1);

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
for my $part (@order)
{
	$parts{$part}->($env, \%options) if grep { $_ eq $part } @chosen;
}
progress('done');
