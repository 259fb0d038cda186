
=pod

=head1 NAME

Bench::Publish - what publishing costs the application

=head1 DESCRIPTION

SELECT outbox.publish() against the INSERT into outbox.message that stores the
same values, one a transaction, by pgbench with prepared statements. The relay
is paused, so that only publishing is measured. Pairs of short runs, which of
the two comes first alternating; the figure is the median of the pairs' ratios.
Beside it stands the CPU time that the server took for a transaction. Two
forms of the call: bytea, where both statements get exactly the same
parameters, and jsonb, the usual one, where the INSERT converts the same
parameters as publish() does.

After that publish() by 8 clients with the relay paused and with it running, by
pairs of runs too.

=cut

package Bench::Publish;

use strict;
use warnings;

use Carp;

use Bench::Report;

use constant {
	DATABASE => 'bench_publish',
	TOPIC => 'publish',
	WARM_SECONDS => 2,
	PAIR_SECONDS => 2,
	RUN_SECONDS => 5,
};

my $set_key = "\\set key random(1, 50000)\n";

my %statements = (
	bytea => {
		publish => 'SELECT outbox.publish(:topic, :payload::bytea, :key::bytea, :headers::jsonb);',
		insert => 'INSERT INTO outbox.message (topic, key, payload, headers) VALUES (:topic, :key::bytea, :payload::bytea, :headers::jsonb);'
	},
	jsonb => {
		publish => 'SELECT outbox.publish(:topic, :payload::jsonb, :key::text, :headers::jsonb);',
		insert => q{INSERT INTO outbox.message (topic, key, payload, headers) VALUES (:topic, convert_to(:key::text, 'UTF8'), convert_to(:payload::jsonb::text, 'UTF8'), :headers::jsonb);}
	});

sub write_scripts
{
	my ($env, $options) = @_;
	my %paths;
	for my $form (keys %statements)
	{
		for my $kind (keys %{ $statements{$form} })
		{
			my $statement = $statements{$form}{$kind};
			$statement =~ s/:headers::jsonb/NULL/ if !defined $options->{headers};
			my $path = $paths{$form}{$kind} = "$env->{dir}/${kind}_$form.sql";
			open(my $file, '>', $path) or croak "$path: $!";
			print $file "$set_key$statement\n";
			close $file or croak "$path: $!";
		}
	}
	return \%paths;
}

sub define
{
	my ($options) = @_;
	return { topic => TOPIC, payload => $options->{payload}, headers => $options->{headers} // '' };
}

# Both statements must store the same.
sub check_same
{
	my ($env, $options, $form, $scripts) = @_;
	for my $kind (qw(publish insert))
	{
		$env->pgbench(DATABASE, $scripts->{$form}{$kind}, seconds => 1, define => define($options));
	}
	my $different = $env->sql(DATABASE, 'SELECT count(DISTINCT (topic, payload, headers, partition, correlation_id)) FROM outbox.message');
	croak "publish and INSERT ($form) do not store the same" if $different != 1;
	return;
}

sub measure_pairs
{
	my ($env, $options, $form, $scripts, $clients, $synchronous_commit) = @_;
	my (%rates, %cpu, @ratios, @others);
	my %pgbench = (clients => $clients, synchronous_commit => $synchronous_commit, define => define($options));

	$env->new_database(DATABASE);
	$env->pause(DATABASE);
	check_same($env, $options, $form, $scripts);
	$env->pgbench(DATABASE, $scripts->{$form}{$_}, %pgbench, seconds => WARM_SECONDS) for qw(publish insert);
	for my $pair (1 .. pairs($options))
	{
		my %rate;
		my $watch = $env->watch_machine;
		for my $kind ($pair % 2 ? qw(publish insert) : qw(insert publish))
		{
			my $run = $env->pgbench(DATABASE, $scripts->{$form}{$kind}, %pgbench, seconds => PAIR_SECONDS);
			$rate{$kind} = $run->{tps};
			push @{ $rates{$kind} }, $run->{tps};
			push @{ $cpu{$kind} }, $run->{cpu} * 1e6;
		}
		push @ratios, $rate{publish} / $rate{insert};
		push @others, $env->other_load($watch);
	}
	@ratios = sort { $a <=> $b } @ratios;
	return [ "$form, $clients client" . ($clients > 1 ? 's' : '') . ", synchronous_commit $synchronous_commit",
		group(median(@{ $rates{publish} })), group(median(@{ $rates{insert} })),
		(map { sprintf '%.3f', $_ } median(@ratios), $ratios[0], $ratios[-1]),
		sprintf('%.0f', median(@{ $cpu{publish} })), sprintf('%.0f', median(@{ $cpu{insert} })),
		sprintf('%.0f %%', median(@others)) ];
}

# More pairs than of longer runs, and an odd number.
sub pairs
{
	my ($options) = @_;
	return 2 * $options->{runs} + 1;
}

sub measure_with_relay
{
	my ($env, $options, $scripts) = @_;
	my (%rates, @ratios, @others, @cpu);
	my %pgbench = (clients => 8, define => define($options));

	$env->new_database(DATABASE);
	$env->create_topic(TOPIC);
	for my $pair (0 .. $options->{runs})
	{
		my %rate;
		my $watch = $env->watch_machine;
		for my $state ($pair % 2 ? qw(paused running) : qw(running paused))
		{
			$env->pause(DATABASE) if $state eq 'paused';
			my $pid = $env->relay_pid(DATABASE);
			my $cpu = $env->cpu($pid);
			$rate{$state} = $env->pgbench(DATABASE, $scripts->{jsonb}{publish}, %pgbench, seconds => RUN_SECONDS)->{tps};
			push @cpu, 100 * ($env->cpu($pid) - $cpu) / RUN_SECONDS if $state eq 'running' && $pair > 0;
			$env->resume_until_empty(DATABASE);
		}
		next if $pair == 0;
		push @{ $rates{$_} }, $rate{$_} for keys %rate;
		push @ratios, $rate{running} / $rate{paused};
		push @others, $env->other_load($watch);
	}
	$env->delete_topic(TOPIC);
	return [ 'jsonb, 8 clients, synchronous_commit on', group(median(@{ $rates{running} })),
		group(median(@{ $rates{paused} })), sprintf('%.3f', median(@ratios)),
		sprintf('%.0f %%', median(@cpu)), sprintf('%.0f %%', median(@others)) ];
}

sub run
{
	my ($env, $options) = @_;
	my $scripts = write_scripts($env, $options);
	my @rows;

	for my $form (sort keys %statements)
	{
		for my $clients (1, 8)
		{
			for my $synchronous_commit (qw(on off))
			{
				progress("publish: $form, $clients clients, synchronous_commit $synchronous_commit");
				push @rows, measure_pairs($env, $options, $form, $scripts, $clients, $synchronous_commit);
			}
		}
	}
	heading('outbox.publish() against INSERT INTO outbox.message (transactions/s, relay paused)');
	note(pairs($options) . " pairs of runs of @{[PAIR_SECONDS]} s; medians. Target: ratio 0.95. CPU: microseconds of the server's processes for a transaction.");
	table([ '', 'publish()', 'INSERT', 'ratio', 'lowest', 'highest', 'CPU publish()', 'CPU INSERT', 'other load' ], @rows);

	progress('publish: with the relay running and paused');
	my $row = measure_with_relay($env, $options, $scripts);
	heading('outbox.publish() while the relay sends (transactions/s)');
	note("$options->{runs} pairs of runs of @{[RUN_SECONDS]} s; medians.");
	table([ '', 'relay running', 'relay paused', 'ratio', 'relay CPU', 'other load' ], $row);
	$env->sql('postgres', "DROP DATABASE @{[DATABASE]}");
	return;
}

1;
