
=pod

=head1 NAME

Bench::Growth - what it costs as it grows

=head1 DESCRIPTION

Drains as in Bench::Drain, of backlogs of more and more rows (part "backlog", in
transactions of 100) and of larger and larger messages (part "payload", in
transactions of 20); drains of the relay alone into more and more topics of one
partition each (part "topics", in transactions of 100); and what relays cost that
have nothing to do, in more and more databases (part "idle").

=cut

package Bench::Growth;

use strict;
use warnings;

use Carp;
use List::Util qw(max min sum);
use Time::HiRes qw(time sleep);

use Bench::Contender;
use Bench::Drain;
use Bench::Report;

# Those of the named contenders that take part.
sub chosen
{
	my ($options, @wanted) = @_;
	my %is_wanted = map { $_ => 1 } @wanted;
	return [ grep { $is_wanted{$_} } @{ $options->{contenders} } ];
}

sub run_backlog
{
	my ($env, $options) = @_;
	Bench::Drain::warm_broker($env, $options);
	for my $rows (@{ $options->{growth_rows} })
	{
		Bench::Drain::compare($env, chosen($options, qw(relay relay_eos polling debezium_tuned)),
			rows => $rows, runs => $options->{growth_runs}, per_transaction => 100,
			part => 'backlog', parameter => group($rows) . ' rows');
	}
	return;
}

sub run_payload
{
	my ($env, $options) = @_;
	Bench::Drain::warm_broker($env, $options);
	for my $size (@{ $options->{sizes} })
	{
		my $rows = max(10, min($options->{rows}, int($options->{payload_megabytes} * 1e6 / $size)));
		Bench::Drain::compare($env, chosen($options, qw(relay relay_eos bare polling debezium_tuned)),
			rows => $rows, runs => $options->{growth_runs}, per_transaction => 20, size => $size,
			part => 'payload', parameter => group($size) . ' bytes');
	}
	return;
}

# By the time until the relay says that it has sent all.
sub run_topics
{
	my ($env, $options) = @_;
	my $rows = $options->{rows};

	Bench::Drain::warm_broker($env, $options);
	for my $count (@{ $options->{topics} })
	{
		my @topics = map { $count == 1 ? 'topics' : "topics_$_" } 0 .. $count - 1;
		$env->create_topics(@topics);
		for my $round (0 .. $options->{growth_runs})
		{
			for my $name (@{ chosen($options, qw(relay relay_eos)) })
			{
				my $contender = Bench::Contender::make($env, $name);
				$contender->create;
				$contender->load(topic => 'topics', rows => $rows, topics => $count, per_transaction => 100);
				my $watch = $env->start_watch({ sender => [ $contender->pid ] });
				my $sampler = $env->start_sampler($contender->pid);
				my $started = time;
				$contender->start;
				$contender->wait_sent;
				my $rate = $rows / (time - $started);
				my $used = $env->end_watch($watch);
				my $memory = $env->finish_sampler($sampler);
				$contender->stop;
				$contender->drop;
				progress(sprintf 'topics, %s: %s, %s/s', $count, $name, group($rate));
				$env->record('topics', $name, "$count topic" . ($count > 1 ? 's' : ''), $round, {
					rate => $rate, other => $used->{other}, memory_own => $memory->{own} / 1024,
					cpu_sender => $used->{cpu_sender} * 1e6 / $rows
				}) if $round > 0;
			}
		}
		$env->delete_topics(@topics);
	}
	return;
}

# Nanoseconds on a processor, all threads of a process; and how often they slept.
sub activity
{
	my ($pid) = @_;
	my ($nanoseconds, $switches) = (0, 0);
	for my $task (glob "/proc/$pid/task/*")
	{
		open(my $schedule, '<', "$task/schedstat") or next;
		$nanoseconds += (split ' ', <$schedule> // '0')[0];
		open(my $status, '<', "$task/status") or next;
		$switches += sum(map { /^voluntary_ctxt_switches:\s+(\d+)/ ? $1 : () } <$status>) // 0;
	}
	return ($nanoseconds, $switches);
}

sub watch_idle
{
	my ($env, $pids, $seconds) = @_;
	my %before = map { $_ => [ activity($_) ] } @$pids;
	my $wal = $env->wal_position;
	my @memory = map { Bench::Environment::memory_of($_) } @$pids;
	sleep $seconds;
	$wal = $env->wal_position - $wal;
	my ($nanoseconds, $switches) = (0, 0);
	for my $pid (@$pids)
	{
		my @now = activity($pid);
		$nanoseconds += $now[0] - $before{$pid}[0];
		$switches += $now[1] - $before{$pid}[1];
	}
	return {
		cpu_ms_per_minute => $nanoseconds / 1e6 * 60 / $seconds,
		wakeups_per_minute => $switches * 60 / $seconds,
		wal_per_minute => $wal * 60 / $seconds,
		memory_pss => sum(map { $_->{pss} } @memory) / 1024,
		memory_own => sum(map { $_->{own} } @memory) / 1024
	};
}

# Each has sent something before: a relay without a topic has no connections to
# keep.
sub run_idle
{
	my ($env, $options) = @_;
	my $seconds = $options->{idle_seconds};

	$env->create_topic('idle');
	for my $count (@{ $options->{databases} })
	{
		my @names = map { "bench_idle_$_" } 1 .. $count;
		for my $name (@names)
		{
			$env->new_database($name);
			$env->sql($name, q{SELECT outbox.publish('idle', 'payload'::text, 'key')});
		}
		$env->wait_empty($_) for @names;
		progress("idle: $count databases with a relay");
		$env->record('idle', 'relay', "$count database" . ($count > 1 ? 's' : ''), 1,
			watch_idle($env, [ map { $env->relay_pid($_) } @names ], $seconds));
		$env->drop_database($_) for @names;
	}
	for my $name (grep { !/^relay|^bare|_large/ } @{ $options->{contenders} })
	{
		my $contender = Bench::Contender::make($env, $name);
		$contender->create;
		$contender->load(topic => 'idle', rows => 10);
		my $records = $env->records_in('idle');
		$contender->start('idle', 'latency');
		$contender->wait_sent('idle', $records + 10);
		progress("idle: $name");
		my $server = $env->tree_cpu($env->{postmaster});
		my $metrics = watch_idle($env, [ $contender->pid ], $seconds);
		$metrics->{server_ms_per_minute} = 1000 * ($env->tree_cpu($env->{postmaster}) - $server) * 60 / $seconds;
		$env->record('idle', $name, '1 database', 1, $metrics);
		$contender->stop;
		$contender->drop;
	}
	$env->delete_topic('idle');
	return;
}

1;
