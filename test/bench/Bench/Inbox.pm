
=pod

=head1 NAME

Bench::Inbox - from Kafka into a table

=head1 DESCRIPTION

One partition's messages, each a row of a table: a subscription whose handler is
a PL/pgSQL function with one INSERT, beside a librdkafka consumer in C that sends
a prepared INSERT for each message and stores its position in the same
transaction (sink.c). Batches of both have the same size.

Both commit as the server does by default, to disk. The rate is the number of
rows by the time between the first and the last commit, the first batch not
counted. A run only counts if each message is a row once, as it was sent.

CPU time is that of the server's processes, and of the whole machine.

The rebuild: a table of as many messages as INBOX_ROWS is emptied and
inbox.seek() called in one transaction; how long it takes until the table is what
it was, and that it is.

=cut

package Bench::Inbox;

use strict;
use warnings;

use Carp;
use List::Util qw(max min);
use Time::HiRes qw(time sleep);

use Bench::Drain;
use Bench::Report;

use constant {
	TOPIC => 'bench_inbox',
	WAIT_SECONDS => 600,
	# with a flush to disk each; more would only take longer
	BATCHES => 3000,
};

my $tables = q{
	CREATE TABLE received (partition int, "offset" bigint, key bytea, payload bytea);
	CREATE TABLE received_position (position bigint);
	INSERT INTO received_position VALUES (0)};
my $handler = q{
	CREATE FUNCTION receive(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO received (partition, "offset", key, payload) VALUES (m.partition, m."offset", m.key, m.payload);
	END $$};

# Have it read the topic; what ends it.
my %contenders = (
	inbox => sub {
		my ($env, $database, $batch) = @_;
		$env->sql($database, $handler);
		$env->sql($database, "SELECT inbox.subscribe('bench', ARRAY['@{[TOPIC]}'], 'receive', batch_size => $batch)");
		return sub { $env->sql($database, q{SELECT inbox.unsubscribe('bench')}) };
	},
	sink => sub {
		my ($env, $database, $batch) = @_;
		my $process = $env->start("$env->{programs}/sink", '-b', $env->{bootstrap}, '-d', "dbname=$database",
			'-t', TOPIC, '-q', 'received', '-n', $batch, '-X', 'socket.nagle.disable=true', '-X', 'log_level=3');
		return sub { $env->finish($process, 'TERM') };
	});

# Counting is left for the end: it would take a processor's time.
sub wait_received
{
	my ($env, $name, $database, $rows) = @_;
	my $deadline = time + WAIT_SECONDS;
	while ($env->sql($database, "SELECT pg_relation_size('received') / 8192 >= $rows / 200") ne 't'
		|| $env->sql($database, 'SELECT count(*) FROM received') < $rows)
	{
		croak "$name has not received $rows messages" if time > $deadline;
		sleep 0.2;
	}
	return;
}

sub run_one
{
	my ($env, $name, $batch, $rows) = @_;
	my $database = "bench_inbox_$name";

	$env->new_database($database);
	$env->sql($database, $tables);
	my $watch = $env->start_watch;
	my $end = $contenders{$name}->($env, $database, $batch);
	wait_received($env, $name, $database, $rows);
	my $used = $env->end_watch($watch);
	$end->();

	my ($found, $distinct, $bytes) = split /\|/, $env->sql($database,
		'SELECT count(*), count(DISTINCT "offset"), sum(length(payload)) FROM received');
	croak "$name: $found rows of $distinct messages, not $rows" if $found != $rows || $distinct != $rows;
	my ($counted, $seconds) = split /\|/, $env->sql($database, q{
		WITH t AS (SELECT pg_xact_commit_timestamp(xmin) AS at FROM received)
		SELECT count(*) FILTER (WHERE at > first), extract(epoch FROM max(at) - min(at))
		FROM t, (SELECT min(at) AS first FROM t) AS f});
	$env->drop_database($database);
	return {
		rate => $counted / $seconds, other => $used->{other}, bytes => $bytes,
		cpu_server => $used->{cpu_server} * 1e6 / $rows, cpu_machine => $used->{cpu_machine} * 1e6 / $rows
	};
}

sub run
{
	my ($env, $options) = @_;
	my @names = qw(inbox sink);

	for my $batch (@{ $options->{batches} })
	{
		my $rows = min($options->{inbox_rows}, max($batch * BATCHES, 10 * $batch));
		my $parameter = group($batch) . ' a transaction';

		$env->create_topics(TOPIC);
		$env->producer(TOPIC, '-g', $rows);
		for my $round (0 .. $options->{runs})
		{
			my %metrics = map { $_ => run_one($env, $_, $batch, $rows) } @names;
			croak 'the two have not stored the same' if $metrics{inbox}{bytes} != $metrics{sink}{bytes};
			progress(sprintf 'inbox, %s: %s/s, sink %s/s%s', $parameter,
				(map { group($metrics{$_}{rate}) } qw(inbox sink)), $round == 0 ? ' (does not count)' : '');
			next if $round == 0;
			for my $name (@names)
			{
				delete $metrics{$name}{bytes};
				$env->record('inbox', $name, $parameter, $round, $metrics{$name});
			}
			@names = reverse @names;
		}
		$env->delete_topic(TOPIC);
	}
	return;
}

sub run_rebuild
{
	my ($env, $options) = @_;
	my ($database, $rows) = ('bench_rebuild', $options->{inbox_rows});
	my $digest = q{SELECT md5(string_agg(md5(concat("offset", key, payload)), '' ORDER BY "offset")) FROM received};

	$env->create_topics(TOPIC);
	$env->producer(TOPIC, '-g', $rows);
	$env->new_database($database);
	$env->sql($database, $tables);
	my $end = $contenders{inbox}->($env, $database, 1000);
	wait_received($env, 'inbox', $database, $rows);
	my $before = $env->sql($database, $digest);
	for my $round (1 .. $options->{runs})
	{
		my $watch = $env->start_watch;
		$env->sql($database, q{BEGIN; SELECT inbox.seek('bench', 'earliest'); TRUNCATE received; COMMIT});
		wait_received($env, 'inbox', $database, $rows);
		my $used = $env->end_watch($watch);
		croak 'the table is not what it was' if $env->sql($database, $digest) ne $before;
		$env->record('rebuild', 'inbox', group($rows) . ' messages', $round,
			{ seconds => $used->{seconds}, rate => $rows / $used->{seconds}, other => $used->{other} });
		progress(sprintf 'rebuild, %s messages: %.1f s', group($rows), $used->{seconds});
	}
	$end->();
	$env->drop_database($database);
	$env->delete_topic(TOPIC);
	return;
}

1;
