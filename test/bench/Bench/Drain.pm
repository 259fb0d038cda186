
=pod

=head1 NAME

Bench::Drain - how fast a backlog leaves, and what that takes

=head1 DESCRIPTION

The messages are published while the contender does not run; then it is started.
The rate is the number of records by the time between the first and the last
append in the topic's log, which the broker notes (LogAppendTime). Contenders
take turns within a round, every run with a fresh database and topic, and the
next round begins with the next contender; the first round does not count.

A run only counts if the topic holds the same records in the same partitions as
those of the other contenders: keys, values and headers, byte for byte.

CPU time is that of the sending process, of the server's other processes and of
the broker, from the start of the contender to its last record; memory is that
of the sending process, the highest of many samples in one round more.

=cut

package Bench::Drain;

use strict;
use warnings;

use Carp;
use List::Util qw(max);

use Bench::Contender;
use Bench::Report;

# One run. Options: rows, per_transaction, size, checkpoint, round, memory
# (sample it, which makes the rest worthless).
sub run_one
{
	my ($env, $contender, %options) = @_;
	# the same name for all, because ce_type has it
	my $topic = "drain_$options{round}";
	my $rows = $options{rows};
	my %metrics;

	$env->create_topic($topic);
	$contender->create;
	my $wal = $env->wal_position;
	$contender->load(topic => $topic, %options{qw(rows per_transaction size)});
	$metrics{wal_publish} = ($env->wal_position - $wal) / $rows;
	$env->sql('postgres', 'CHECKPOINT') if $options{checkpoint};

	$wal = $env->wal_position;
	my $known = $contender->pid_before_start;
	my $watch = $env->start_watch(defined $known ? { sender => [$known] } : {});
	my $sampler = $options{memory} && defined $known ? $env->start_sampler($known) : undef;
	$contender->start($topic, 'bulk');
	if (!defined $known)
	{
		$known = $contender->pid;
		$watch->{groups}{sender} = [$known];
		$watch->{cpu}{sender} = 0;
		$sampler = $env->start_sampler($known) if $options{memory};
	}
	$contender->wait_sent($topic, $rows);
	my $used = $env->end_watch($watch);
	croak "$contender->{name} was restarted during the run" if $contender->pid != $known;
	$metrics{wal_send} = ($env->wal_position - $wal) / $rows;
	my $memory = $sampler ? $env->finish_sampler($sampler) : undef;
	$contender->stop;

	my $found = $env->consumer($topic);
	croak "$contender->{name} has sent $found->{records} records, not $rows" if $found->{records} != $rows;
	$env->delete_topic($topic);
	$contender->drop;
	return { digest => $found->{digest}, metrics => { map { ("memory_$_" => $memory->{$_} / 1024) } keys %$memory } }
	  if $memory;

	my $own = $contender->own_cpu;
	$used->{cpu_sender} = $own if defined $own;
	$metrics{rate} = $rows * 1000 / max($found->{last_ms} - $found->{first_ms}, 1);
	$metrics{other} = $used->{other};
	$metrics{"cpu_$_"} = $used->{"cpu_$_"} * 1e6 / $rows for qw(sender server broker machine);
	$metrics{cpu} = $metrics{cpu_sender} + $metrics{cpu_server} + $metrics{cpu_broker};
	return { digest => $found->{digest}, metrics => \%metrics };
}

# Rounds of all contenders. Options as for run_one, and part, parameter, runs.
sub compare
{
	my ($env, $names, %options) = @_;
	my @contenders = map { Bench::Contender::make($env, $_) } @$names;
	my $rounds = $options{runs} + 1;

	for my $round (0 .. $rounds)
	{
		my $memory = $round == $rounds;
		my ($digest, $first);
		for my $contender (@contenders)
		{
			my $run = run_one($env, $contender, %options, round => $round, memory => $memory);
			$first //= $contender;
			$digest //= $run->{digest};
			croak "round $round: $contender->{name} and $first->{name} did not send the same records"
			  if $run->{digest} ne $digest;
			$env->record($options{part}, $contender->{name}, $options{parameter}, $round, $run->{metrics}) if $round > 0;
			progress(sprintf '%s, %s: %s, %s', $options{part}, $options{parameter}, $contender->{name},
				$memory ? sprintf('%.0f MB of its own', $run->{metrics}{memory_own})
				: sprintf('%s/s%s', group($run->{metrics}{rate}), $round == 0 ? ' (does not count)' : ''));
		}
		push @contenders, shift @contenders;
	}
	return;
}

sub warm_broker
{
	my ($env, $options) = @_;
	progress('warming the broker');
	$env->create_topic('warm');
	$env->producer('warm', '-g', $options->{warm_records}) for 1 .. 2;
	$env->consumer('warm');
	$env->delete_topic('warm');
	return;
}

sub run
{
	my ($env, $options) = @_;
	warm_broker($env, $options);
	compare($env, $options->{contenders}, %$options{qw(rows runs per_transaction checkpoint)},
		part => 'drain', parameter => group($options->{rows}) . ' rows');
	return;
}

1;
