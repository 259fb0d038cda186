
=pod

=head1 NAME

Bench::Latency - from commit to consumer

=head1 DESCRIPTION

The time from pg_xact_commit_timestamp() of the message's transaction to its
receipt in a consumer, at a given number of transactions a second (pgbench
--rate, one message each). PostgreSQL takes the commit timestamp just before it
flushes the commit record, so the flush is inside the figure; so is the
consumer's fetch. Messages and receipts are matched by ce_id; one that is
missing ends the benchmark, one that came twice is counted.

The floor, at the same rate: from the call of a plain producer to the same
consumer, no database in between. Floor and relay are measured in turn, in
slices of a few seconds, because a shared machine's speed drifts; of each
figure the median of the slices is shown, so that a slice during which the
machine was busy elsewhere does not decide. The worst slice is shown beside it.

=cut

package Bench::Latency;

use strict;
use warnings;

use Carp;
use List::Util qw(max min sum);
use Time::HiRes;

use Bench::Report;

use constant {
	DATABASE => 'bench_latency',
	SLICE_SECONDS => 5,
	WARM_SECONDS => 2,
	WARM_RECORDS => 300_000,
	CLIENTS => 4,
};

my @rates = (100, 1000);

my $script = <<'END';
\set key random(1, 50000)
SELECT outbox.publish(:topic, :payload::jsonb, :key::text, :headers::jsonb);
END

# event id => time in nanoseconds; how many were there more than once
sub read_times
{
	my ($path) = @_;
	my (%first, $repeated);
	open(my $file, '<', $path) or croak "$path: $!";
	while (<$file>)
	{
		my ($id, $time) = split;
		$repeated++ if exists $first{$id};
		$first{$id} //= $time;
	}
	close $file;
	return (\%first, $repeated // 0);
}

# Milliseconds, sorted, of everything sent from since (nanoseconds) on.
sub latencies
{
	my ($sent, $received, $since) = @_;
	my @result;
	for my $id (grep { $sent->{$_} >= $since } keys %$sent)
	{
		croak "message $id did not arrive" if !defined $received->{$id};
		push @result, ($received->{$id} - $sent->{$id}) / 1e6;
	}
	croak 'nothing was sent' if !@result;
	return [ sort { $a <=> $b } @result ];
}

sub earliest
{
	my ($times) = @_;
	my $earliest;
	for my $time (values %$times)
	{
		$earliest = $time if !defined $earliest || $time < $earliest;
	}
	return $earliest;
}

sub measure_floor
{
	my ($env, $rate, $options) = @_;
	my ($sent_file, $received_file) = map { "$env->{dir}/$_" } qw(sent received);

	my $consumer = $env->start_consumer('floor', '-f', $received_file);
	my $watch = $env->watch_machine;
	$env->producer('floor', '-r', $rate, '-s', WARM_SECONDS + SLICE_SECONDS, '-o', $sent_file);
	my $other = $env->other_load($watch);
	$env->finish($consumer, 'TERM');

	my ($sent) = read_times($sent_file);
	my ($received, $repeated) = read_times($received_file);
	return { latencies => latencies($sent, $received, earliest($sent) + WARM_SECONDS * 1e9),
		repeated => $repeated, other => $other };
}

sub measure_relay
{
	my ($env, $rate, $options) = @_;
	my ($script_file, $committed_file, $received_file) = map { "$env->{dir}/$_" } qw(latency.sql committed received);
	my %pgbench = (clients => CLIENTS, rate => $rate,
		define => { topic => 'relay', payload => $options->{payload}, headers => $options->{headers} // '' });

	open(my $file, '>', $script_file) or croak "$script_file: $!";
	print $file defined $options->{headers} ? $script : $script =~ s/:headers::jsonb/NULL/r;
	close $file;

	my $consumer = $env->start_consumer('relay', '-f', $received_file);
	my $pid = $env->relay_pid(DATABASE);
	$env->pgbench(DATABASE, $script_file, %pgbench, seconds => WARM_SECONDS);

	my $since = $env->sql(DATABASE, 'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 * 1000');
	my $watch = $env->watch_machine;
	my $cpu = $env->cpu($pid);
	my $started = Time::HiRes::time();
	$env->pgbench(DATABASE, $script_file, %pgbench, seconds => SLICE_SECONDS);
	my $cpu_percent = 100 * ($env->cpu($pid) - $cpu) / (Time::HiRes::time() - $started);
	my $other = $env->other_load($watch);

	$env->wait_empty(DATABASE);
	$env->finish($consumer, 'TERM');
	$env->sql(DATABASE, "COPY (SELECT event_id, nanoseconds FROM outbox.message,
			LATERAL (SELECT (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::int8 * 1000) t(nanoseconds)
		WHERE nanoseconds >= $since) TO '$committed_file'");

	my ($sent) = read_times($committed_file);
	my ($received, $repeated) = read_times($received_file);
	return { latencies => latencies($sent, $received, $since), repeated => $repeated, other => $other, cpu => $cpu_percent };
}

# One row for all slices of a kind.
sub row_of
{
	my ($name, @slices) = @_;
	my @cells = ($name, sum(map { scalar @{ $_->{latencies} } } @slices));
	for my $p (50, 95, 99)
	{
		my @values = map { percentile($p, $_->{latencies}) } @slices;
		push @cells, sprintf '%.2f (%.2f..%.2f)', median(@values), min(@values), max(@values);
	}
	my @cpu = map { $_->{cpu} // () } @slices;
	return [ @cells, sum(map { $_->{repeated} } @slices),
		@cpu ? sprintf('%.1f %%', median(@cpu)) : '',
		sprintf('%.0f %%', median(map { $_->{other} } @slices)) ];
}

sub run
{
	my ($env, $options) = @_;
	my $slices = max(1, int($options->{seconds} / SLICE_SECONDS));
	my @rows;

	$env->new_database(DATABASE);
	$env->create_topic($_) for qw(floor relay);

	# a broker that has not run long enough compiles while it is measured
	progress('latency: warming the broker');
	$env->producer('floor', '-g', WARM_RECORDS);
	$env->consumer('floor');
	for my $rate (@rates)
	{
		my (@floor, @relay);
		for my $slice (1 .. $slices)
		{
			progress("latency: $rate a second, slice $slice of $slices");
			push @floor, measure_floor($env, $rate, $options);
			push @relay, measure_relay($env, $rate, $options);
		}
		push @rows, row_of("floor, $rate messages/s", @floor), row_of("relay, $rate transactions/s", @relay);
	}
	heading('Latency from commit to consumer (ms)');
	note("Medians of $slices slices of @{[SLICE_SECONDS]} s each, floor and relay in turn (in brackets the best and the worst slice); "
		. 'synchronous_commit on. Targets at 1,000 a second: p50 <= 1.0, p99 <= 4.');
	table([ '', 'messages', 'p50', 'p95', 'p99', 'repeated', 'relay CPU', 'other load' ], @rows);
	$env->delete_topic($_) for qw(floor relay);
	$env->sql('postgres', "DROP DATABASE @{[DATABASE]}");
	return;
}

1;
