
=pod

=head1 NAME

Bench::Latency - from commit to consumer

=head1 DESCRIPTION

The time from pg_xact_commit_timestamp() of the message's transaction to its
receipt in a consumer, at a given number of transactions a second (pgbench
--rate, one message each). PostgreSQL takes the commit timestamp just before it
flushes the commit record, so the flush is inside the figure; so is the
consumer's fetch. Messages and receipts are matched by event id; one that is
missing ends the benchmark, one that came twice is counted.

The floor, at the same rate: from the call of a plain producer to the same
consumer, no database in between; for exactly once from the time a record is due,
by a plain producer that sends all that is due in one Kafka transaction after the
other. Floors and contenders are measured in turn, in slices of a few seconds,
because a shared machine's speed drifts.

=cut

package Bench::Latency;

use strict;
use warnings;

use Carp;
use Time::HiRes;

use Bench::Contender;
use Bench::Drain;
use Bench::Report;

use constant {
	SLICE_SECONDS => 5,
	WARM_SECONDS => 2,
	CLIENTS => 8,
};

# As the relay has it.
my @TRANSACTIONAL = ('transactional.id=floor', 'retry.backoff.ms=2');

# event id => time in nanoseconds; how many were there more than once
sub read_times
{
	my ($path) = @_;
	my (%first, $repeated);
	open(my $file, '<', $path) or croak "$path: $!";
	while (my $line = <$file>)
	{
		my ($id, $time) = split ' ', $line;
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

sub metrics_of
{
	my ($sent, $received_file, $since) = @_;
	my ($received, $repeated) = read_times($received_file);
	my $latencies = latencies($sent, $received, $since);
	return { messages => scalar @$latencies, repeated => $repeated,
		map { ("p$_" => percentile($_, $latencies)) } 50, 95, 99 };
}

sub measure_floor
{
	my ($env, $rate, @options) = @_;
	my ($sent_file, $received_file) = map { "$env->{dir}/$_" } qw(sent received);

	my $consumer = $env->start_consumer('floor', '-f', $received_file);
	my $watch = $env->watch_machine;
	$env->producer('floor', @options, '-r', $rate, '-s', WARM_SECONDS + SLICE_SECONDS, '-o', $sent_file);
	my $other = $env->other_load($watch);
	$env->finish($consumer, 'TERM');
	my ($sent) = read_times($sent_file);
	return { %{ metrics_of($sent, $received_file, earliest($sent) + WARM_SECONDS * 1e9) }, other => $other };
}

sub measure_contender
{
	my ($env, $contender, $rate) = @_;
	my $database = $contender->{database};
	my $topic = "latency_$contender->{name}";
	my $received_file = "$env->{dir}/received";
	my %pgbench = (clients => CLIENTS, rate => $rate, define => { topic => $topic, payload => $env->{payload} });

	$contender->create;
	$env->create_topic($topic);
	my $consumer = $env->start_consumer($topic, '-f', $received_file);
	$contender->start($topic, 'latency');
	my $script = $contender->pgbench_script;
	my $warm = $env->pgbench($database, $script, %pgbench, seconds => WARM_SECONDS);

	my $since = $env->sql($database, 'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 * 1000');
	my $watch = $env->start_watch({ sender => [ $contender->pid ] });
	my $run = $env->pgbench($database, $script, %pgbench, seconds => SLICE_SECONDS);
	my $used = $env->end_watch($watch);

	$contender->wait_sent($topic, $warm->{transactions} + $run->{transactions});
	$env->finish($consumer, 'TERM');
	$contender->stop;
	my $metrics = metrics_of($contender->committed, $received_file, $since);
	$contender->drop;
	$env->delete_topic($topic);
	return { %$metrics, tps => $run->{tps}, other => $used->{other},
		map { ("percent_$_" => 100 * $used->{"cpu_$_"} / $used->{seconds}) } qw(sender server) };
}

sub run
{
	my ($env, $options) = @_;
	my @contenders = map { Bench::Contender::make($env, $_) } grep { $_ ne 'bare' } @{ $options->{contenders} };

	Bench::Drain::warm_broker($env, $options);
	$env->create_topic('floor');
	for my $rate (@{ $options->{rates} })
	{
		for my $slice (0 .. $options->{slices})
		{
			progress(sprintf 'latency: %s a second, slice %d of %d', group($rate), $slice, $options->{slices});
			my %metrics = (floor => measure_floor($env, $rate));
			$metrics{floor_eos} = measure_floor($env, $rate, '-T', map { ('-X', $_) } @TRANSACTIONAL)
			  if grep { $_->{name} eq 'relay_eos' } @contenders;
			for my $contender (@contenders)
			{
				$metrics{ $contender->{name} } = measure_contender($env, $contender, $rate);
			}
			push @contenders, shift @contenders;
			next if $slice == 0;
			$env->record('latency', $_, group($rate) . ' /s', $slice, $metrics{$_}) for keys %metrics;
		}
	}
	$env->delete_topic('floor');
	return;
}

1;
