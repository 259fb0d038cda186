
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

Part "commit": a business transaction, which is an INSERT of an order, by itself,
with an INSERT into outbox.message in it, and with publish() in it; with the
relay paused and running. What the application gets, in transactions a second
and in latency, and what they take in WAL.

=cut

package Bench::Publish;

use strict;
use warnings;

use Carp;

use Bench::Report;

use constant {
	DATABASE => 'bench_publish',
	TOPIC => 'publish',
	HEADERS => '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}',
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
	return { topic => TOPIC, payload => $options->{payload}, headers => HEADERS };
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
	my %pgbench = (clients => $clients, synchronous_commit => $synchronous_commit, define => define($options));
	my $parameter = "$form, $clients client" . ($clients > 1 ? 's' : '') . ", synchronous_commit $synchronous_commit";

	$env->new_database(DATABASE);
	$env->pause(DATABASE);
	check_same($env, $options, $form, $scripts);
	$env->pgbench(DATABASE, $scripts->{$form}{$_}, %pgbench, seconds => WARM_SECONDS) for qw(publish insert);
	# more pairs than of longer runs, and an odd number
	for my $pair (1 .. 2 * $options->{runs} + 1)
	{
		my (%rate, %cpu);
		my $watch = $env->watch_machine;
		for my $kind ($pair % 2 ? qw(publish insert) : qw(insert publish))
		{
			my $run = $env->pgbench(DATABASE, $scripts->{$form}{$kind}, %pgbench, seconds => PAIR_SECONDS);
			$rate{$kind} = $run->{tps};
			$cpu{$kind} = $run->{cpu} * 1e6;
		}
		my $other = $env->other_load($watch);
		$env->record('publish', $_, $parameter, $pair, { tps => $rate{$_}, cpu_server => $cpu{$_}, other => $other,
			by_insert => $_ eq 'publish' ? $rate{publish} / $rate{insert} : undef }) for keys %rate;
	}
	return;
}

my %transactions = (
	'order alone' => '',
	'order and INSERT' => 'INSERT INTO outbox.message (topic, key, payload) '
	  . "VALUES (:topic, convert_to(:key::text, 'UTF8'), convert_to(:payload::jsonb::text, 'UTF8'));",
	'order and publish()' => 'SELECT outbox.publish(:topic, :payload::jsonb, :key::text);');

sub write_transactions
{
	my ($env) = @_;
	my %paths;
	for my $name (keys %transactions)
	{
		$paths{$name} = "$env->{dir}/" . ($name =~ s/\W/_/gr) . '.sql';
		open(my $file, '>', $paths{$name}) or croak "$paths{$name}: $!";
		print $file $set_key, "BEGIN;\n",
		  "INSERT INTO orders (customer, state, total) VALUES (:key, 'new', 42.50);\n",
		  "$transactions{$name}\n", "COMMIT;\n";
		close $file or croak "$paths{$name}: $!";
	}
	return \%paths;
}

sub measure_transactions
{
	my ($env, $options, $clients) = @_;
	my $scripts = write_transactions($env);
	my @names = sort keys %$scripts;

	$env->create_topic(TOPIC);
	for my $round (0 .. $options->{runs})
	{
		for my $state (qw(paused running))
		{
			for my $name (@names)
			{
				$env->new_database(DATABASE);
				$env->sql(DATABASE, 'CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, '
					. 'customer int, state text, total numeric, created_at timestamptz DEFAULT now())');
				$env->pause(DATABASE) if $state eq 'paused';
				my $watch = $env->watch_machine;
				$env->pgbench(DATABASE, $scripts->{$name}, clients => $clients, define => define($options), seconds => 1);
				my $wal = $env->wal_position;
				my $run = $env->pgbench(DATABASE, $scripts->{$name}, clients => $clients, define => define($options),
					seconds => RUN_SECONDS, log => 1);
				$wal = $env->wal_position - $wal;
				$env->record('commit', $name, "$clients client" . ($clients > 1 ? 's' : '') . ", relay $state", $round, {
					tps => $run->{tps}, wal_transaction => $wal / $run->{transactions}, other => $env->other_load($watch),
					map { ("commit_p$_" => percentile($_, $run->{latencies})) } 50, 99
				}) if $round > 0;
				$env->drop_database(DATABASE);
			}
		}
		push @names, shift @names;
	}
	$env->delete_topic(TOPIC);
	return;
}

sub run
{
	my ($env, $options) = @_;
	my $scripts = write_scripts($env, $options);

	for my $form (sort keys %statements)
	{
		for my $clients (1, 8)
		{
			for my $synchronous_commit (qw(on off))
			{
				progress("publish: $form, $clients clients, synchronous_commit $synchronous_commit");
				measure_pairs($env, $options, $form, $scripts, $clients, $synchronous_commit);
			}
		}
	}
	$env->drop_database(DATABASE);
	return;
}

sub run_commit
{
	my ($env, $options) = @_;
	for my $clients (1, 8)
	{
		progress("commit: $clients clients");
		measure_transactions($env, $options, $clients);
	}
	return;
}

1;
