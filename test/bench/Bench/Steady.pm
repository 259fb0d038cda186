
=pod

=head1 NAME

Bench::Steady - publishing and sending at the same time

=head1 DESCRIPTION

Part "steady": eight clients publish as fast as they can, one message a
transaction, into a fresh database, first without the contender, then with it,
or the other way round. What the publishers keep of their rate, whether the
contender keeps up, and what a message takes of the machine and of WAL.

Part "size": all contenders at the same time, each in its database, with a
steady rate of messages for a long time; what the databases and the server's WAL
take on disk meanwhile, and how many dead rows the tables with the messages have. In the second half a
transaction holds a snapshot in every database.

=cut

package Bench::Steady;

use strict;
use warnings;

use Carp;
use Time::HiRes qw(time sleep);

use Bench::Contender;
use Bench::Drain;
use Bench::Report;

use constant {
	CLIENTS => 8,
	WARM_SECONDS => 2,
	SAMPLES => 30,
};

sub define
{
	my ($env, $topic) = @_;
	return { topic => $topic, payload => $env->{payload} };
}

sub measure_publishers
{
	my ($env, $contender, $seconds, $running) = @_;
	my ($database, $topic) = ($contender->{database}, "steady_$contender->{name}");
	my %pgbench = (clients => CLIENTS, define => define($env, $topic));

	$contender->create;
	$env->create_topic($topic);
	$contender->start($topic, 'bulk') if $running;
	my $script = $contender->pgbench_script;
	my $warm = $env->pgbench($database, $script, %pgbench, seconds => WARM_SECONDS);
	my $wal = $env->wal_position;
	my $watch = $env->start_watch($running ? { sender => [ $contender->pid ] } : {});
	my $before = $running ? $env->records_in($topic) : 0;
	my $run = $env->pgbench($database, $script, %pgbench, seconds => $seconds, log => 1);
	my $used = $env->end_watch($watch);
	my %metrics = (tps => $run->{tps}, other => $used->{other},
		map { ("commit_p$_" => percentile($_, $run->{latencies})) } 50, 99);
	if ($running)
	{
		my $published = $warm->{transactions} + $run->{transactions};
		my $sent = $env->records_in($topic);
		$metrics{sent_rate} = ($sent - $before) / $used->{seconds};
		$metrics{behind} = $published > $sent ? $published - $sent : 0;
		$metrics{"cpu_$_"} = $used->{"cpu_$_"} * 1e6 / $run->{transactions} for qw(sender server broker machine);
		$metrics{percent_sender} = 100 * $used->{cpu_sender} / $used->{seconds};
		$contender->wait_sent($topic, $published);
		$metrics{wal} = ($env->wal_position - $wal) / $run->{transactions};
		$contender->stop;
	}
	$contender->drop;
	$env->delete_topic($topic);
	return \%metrics;
}

sub run
{
	my ($env, $options) = @_;
	my @contenders = map { Bench::Contender::make($env, $_) } grep { $_ ne 'bare' } @{ $options->{contenders} };

	Bench::Drain::warm_broker($env, $options);
	for my $round (0 .. $options->{runs})
	{
		for my $contender (@contenders)
		{
			my %metrics;
			for my $state ($round % 2 ? qw(with without) : qw(without with))
			{
				$metrics{$state} = measure_publishers($env, $contender, $options->{steady_seconds}, $state eq 'with');
			}
			my $kept = $metrics{with}{tps} / $metrics{without}{tps};
			progress(sprintf 'steady: %s, %s of %s/s, behind %s', $contender->{name}, group($metrics{with}{tps}),
				group($metrics{without}{tps}), group($metrics{with}{behind}));
			next if $round == 0;
			$env->record('steady', $contender->{name}, 'without', $round, $metrics{without});
			$env->record('steady', $contender->{name}, 'with', $round, { %{ $metrics{with} }, kept => $kept });
		}
		push @contenders, shift @contenders;
	}
	return;
}

sub sample_sizes
{
	my ($env, $contenders, $second, $parameter) = @_;
	for my $contender (@$contenders)
	{
		my ($bytes, $dead) = split /\|/, $env->sql($contender->{database},
			'SELECT pg_database_size(current_database()), '
			. q{(SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE relname ~ '^(message_[0-9]|queue|outbox)$')});
		$env->record('size', $contender->{name}, $parameter, $second, { megabytes => $bytes / 1048576, dead_rows => $dead });
	}
	my $wal = $env->sql('postgres', 'SELECT sum(size) FROM pg_ls_waldir()');
	$env->record('size', 'pg_wal', $parameter, $second, { megabytes => $wal / 1048576 });
	return;
}

sub run_size
{
	my ($env, $options) = @_;
	my $seconds = $options->{size_seconds};
	my @contenders = map { Bench::Contender::make($env, $_) } grep { !/^(bare|polling_large|debezium)$/ } @{ $options->{contenders} };

	for my $contender (@contenders)
	{
		# an hour of retention would be all there is to see
		$contender->{settings} = { retention => $options->{size_retention} };
		$contender->create;
		$env->create_topic("size_$contender->{name}");
		$contender->start("size_$contender->{name}", 'bulk');
	}
	my %parameter = (free => "no snapshot held", held => "a snapshot held");
	for my $half (qw(free held))
	{
		my @holders = $half eq 'held' ? map {
			my $holder = $env->start("$env->{bindir}/psql", '-X', '-q', '-A', '-t', '-d', $_->{database});
			print { $holder->{in} } "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT count(*) FROM pg_class;\n";
			$holder->{in}->flush;
			Bench::Environment::read_line($holder);
			$holder
		} @contenders : ();
		my @publishers = map {
			$env->start_pgbench($_->{database}, $_->pgbench_script, clients => 1, rate => $options->{size_rate},
				seconds => int($seconds / 2) || 1, define => define($env, "size_$_->{name}"))
		} @contenders;
		my $started = time;
		for my $sample (1 .. SAMPLES)
		{
			my $due = $started + $sample * $seconds / 2 / SAMPLES - time;
			sleep $due if $due > 0;
			sample_sizes($env, \@contenders, int($sample * $seconds / 2 / SAMPLES + ($half eq 'held' ? $seconds / 2 : 0)), $parameter{$half});
			progress("size: $parameter{$half}, sample $sample of " . SAMPLES) if $sample % 10 == 0;
		}
		for my $i (0 .. $#contenders)
		{
			my $run = $env->finish_pgbench($publishers[$i]);
			$env->record('size_rate', $contenders[$i]{name}, $parameter{$half}, 1, { tps => $run->{tps} });
		}
		$env->finish($_) for @holders;
	}
	for my $contender (@contenders)
	{
		$contender->stop;
		$contender->drop;
		$env->delete_topic("size_$contender->{name}");
	}
	return;
}

1;
