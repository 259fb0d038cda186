
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

The floor, measured just before at the same rate: from the call of a plain
producer to the same consumer, no database in between.

=cut

package Bench::Latency;

use strict;
use warnings;

use Carp;

use Bench::Report;

use constant {
	DATABASE => 'bench_latency',
	WARM_SECONDS => 5,
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
	my $topic = "floor_$rate";
	my ($sent_file, $received_file) = map { "$env->{dir}/$_" } qw(sent received);

	$env->create_topic($topic);
	my $consumer = $env->start_consumer($topic, '-f', $received_file);
	my $watch = $env->watch_machine;
	$env->producer($topic, '-r', $rate, '-s', WARM_SECONDS + $options->{seconds}, '-o', $sent_file);
	my $other = $env->other_load($watch);
	$env->finish($consumer, 'TERM');
	$env->delete_topic($topic);

	my ($sent) = read_times($sent_file);
	my ($received, $repeated) = read_times($received_file);
	return { latencies => latencies($sent, $received, earliest($sent) + WARM_SECONDS * 1e9),
		repeated => $repeated, other => $other };
}

sub measure_relay
{
	my ($env, $rate, $options) = @_;
	my $topic = "relay_$rate";
	my ($script_file, $committed_file, $received_file) = map { "$env->{dir}/$_" } qw(latency.sql committed received);
	my %pgbench = (clients => CLIENTS, rate => $rate,
		define => { topic => $topic, payload => $options->{payload}, headers => $options->{headers} // '' });

	open(my $file, '>', $script_file) or croak "$script_file: $!";
	print $file defined $options->{headers} ? $script : $script =~ s/:headers::jsonb/NULL/r;
	close $file;

	$env->create_topic($topic);
	my $consumer = $env->start_consumer($topic, '-f', $received_file);
	my $pid = $env->relay_pid(DATABASE);
	$env->pgbench(DATABASE, $script_file, %pgbench, seconds => WARM_SECONDS);

	my $since = $env->sql(DATABASE, 'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 * 1000');
	my $watch = $env->watch_machine;
	my $cpu = $env->cpu($pid);
	my $started = Time::HiRes::time();
	$env->pgbench(DATABASE, $script_file, %pgbench, seconds => $options->{seconds});
	my $cpu_percent = 100 * ($env->cpu($pid) - $cpu) / (Time::HiRes::time() - $started);
	my $other = $env->other_load($watch);

	$env->wait_empty(DATABASE);
	$env->finish($consumer, 'TERM');
	$env->sql(DATABASE, "COPY (SELECT event_id, (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::int8 * 1000
		FROM outbox.message WHERE topic = '$topic') TO '$committed_file'");
	$env->delete_topic($topic);

	my ($sent) = read_times($committed_file);
	my ($received, $repeated) = read_times($received_file);
	return { latencies => latencies($sent, $received, $since), repeated => $repeated, other => $other, cpu => $cpu_percent };
}

sub row_of
{
	my ($name, $result) = @_;
	my $sorted = $result->{latencies};
	return [ $name, scalar @$sorted, (map { sprintf '%.2f', percentile($_, $sorted) } 50, 95, 99, 99.9),
		sprintf('%.1f', $sorted->[-1]), $result->{repeated},
		defined $result->{cpu} ? sprintf('%.1f %%', $result->{cpu}) : '', sprintf('%.0f %%', $result->{other}) ];
}

sub run
{
	my ($env, $options) = @_;
	my @rows;

	$env->new_database(DATABASE);
	for my $rate (@rates)
	{
		progress("latency: floor at $rate a second");
		push @rows, row_of("floor, $rate messages/s", measure_floor($env, $rate, $options));
		progress("latency: relay at $rate transactions a second");
		push @rows, row_of("relay, $rate transactions/s", measure_relay($env, $rate, $options));
	}
	heading('Latency from commit to consumer (ms)');
	note("$options->{seconds} s each after @{[WARM_SECONDS]} s of warm-up; synchronous_commit on. "
		. 'Targets at 1,000 a second: p50 <= 1.0, p99 <= 4.');
	table([ '', 'messages', 'p50', 'p95', 'p99', 'p99.9', 'max', 'repeated', 'relay CPU', 'other load' ], @rows);
	$env->sql('postgres', "DROP DATABASE @{[DATABASE]}");
	return;
}

1;
