
=pod

=head1 NAME

Bench::Drain - how fast a backlog leaves, and what memory that takes

=head1 DESCRIPTION

A run of the relay: the messages are published while the relay is paused, by
two sessions in transactions of ROWS_PER_TRANSACTION; then outbox.resume(). A
run of the plain producer: it has read the same rows from the table into its
memory, and sends them to another topic with the same librdkafka properties.
The two alternate, the first pair does not count, and the broker was warmed
before. The rate is the number of records by the time between the first and the
last append in the topic's log, which the broker notes (LogAppendTime).

A pair only counts if both topics hold the same records in the same partitions:
keys, values and headers, byte for byte, and in the pair that does not count
the timestamps too (there the topics keep the producer's). The rows are read
for the plain producer after the relay has sent them, so that the relay, too,
meets them as publishing left them.

=cut

package Bench::Drain;

use strict;
use warnings;

use Carp;
use List::Util qw(max);
use Time::HiRes qw(time sleep);

use Bench::Report;

use constant {
	DATABASE => 'bench_drain',
	SESSIONS => 2,
	WARM_RECORDS => 1_000_000,
	SAMPLE_SECONDS => 0.05,
};

# Publish from number first to last, in transactions of so many rows.
my $load_procedure = <<'END';
CREATE PROCEDURE load(topic text, headers jsonb, first int, last int, per_transaction int)
LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN first .. last LOOP
		PERFORM outbox.publish(topic, payload(i), (hashint4(i) & 65535)::text, headers);
		IF i % per_transaction = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
	COMMIT;
END $$
END

# 200 bytes of JSON, most of it incompressible
my $payload_function = <<'END';
CREATE FUNCTION payload(i int) RETURNS text LANGUAGE sql STRICT AS $$
	SELECT concat('{"order": ', lpad(i::text, 12), ', "customer": "', md5(i::text),
				  '", "note": "', left(concat(md5((-i)::text), md5(random()::text), md5(random()::text),
											  md5(random()::text)), 117), '"}')
$$
END

# What the relay makes of a row: see producer.c for the columns.
sub records_query
{
	my ($topic) = @_;
	my ($fs, $rs) = ("E'\\x1c'", "E'\\x1e'");
	return <<"END";
SELECT key, payload, floor(extract(epoch FROM created_at) * 1000)::int8, partition,
	   concat('ce_specversion', $fs, '1.0', $rs,
			  'ce_source', $fs, '/postgresql/@{[DATABASE]}', $rs,
			  'ce_type', $fs, topic, $rs,
			  (SELECT string_agg(concat(h.key, $fs, h.value, $rs), '')
			   FROM jsonb_each_text(headers) AS h),
			  'ce_id', $fs, event_id, $rs)
FROM outbox.message WHERE topic = '$topic' ORDER BY id
END
}

sub publish_backlog
{
	my ($env, $topic, $options) = @_;
	my $rows = $options->{rows};
	my $headers = defined $options->{headers} ? "'$options->{headers}'" : 'NULL';

	$env->pause(DATABASE);
	{
		local $ENV{PGOPTIONS} = '-c synchronous_commit=off';
		my @sessions = map {
			my $first = int($rows * $_ / SESSIONS) + 1;
			my $last = int($rows * ($_ + 1) / SESSIONS);
			$env->start("$env->{bindir}/psql", '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', DATABASE,
				'-c', "CALL load('$topic', $headers, $first, $last, $options->{rows_per_transaction})")
		} 0 .. SESSIONS - 1;
		$env->finish($_) for @sessions;
	}
	my $bad = $env->sql(DATABASE,
		"SELECT count(*) FROM (SELECT octet_length(payload) AS n FROM outbox.message WHERE topic = '$topic' LIMIT 1000) AS s WHERE n <> 200");
	croak "$bad payloads are not 200 bytes long" if $bad;
	$env->sql(DATABASE, 'CHECKPOINT') if $options->{checkpoint};
	return;
}

# The rate of what a topic holds, and what that is.
sub inspect_topic
{
	my ($env, $topic, $rows) = @_;
	my $found = $env->consumer($topic);
	croak "topic $topic holds $found->{records} records, not $rows" if $found->{records} != $rows;
	$found->{rate} = $rows * 1000 / max($found->{last_ms} - $found->{first_ms}, 1);
	return $found;
}

sub run_relay
{
	my ($env, $topic, $options) = @_;
	my $pid = $env->relay_pid(DATABASE);
	my $watch = $env->watch_machine;
	my $cpu = $env->cpu($pid);
	my $broker_cpu = $env->broker_cpu;

	$env->resume_until_empty(DATABASE);
	my %run = (
		cpu => $env->cpu($pid) - $cpu,
		broker_cpu => $env->broker_cpu - $broker_cpu,
		other => $env->other_load($watch));
	croak "the relay was restarted during the run" if $env->relay_pid(DATABASE) != $pid;
	return { %run, %{ inspect_topic($env, $topic, $options->{rows}) } };
}

sub run_plain
{
	my ($env, $topic, $source, $options) = @_;
	my $producer = $env->start_producer($topic, '-d', "dbname=@{[DATABASE]}", '-q', records_query($source));
	my $watch = $env->watch_machine;
	my $broker_cpu = $env->broker_cpu;
	my $result = Bench::Environment::parse_pairs($env->finish($producer));
	my %run = (
		cpu => $result->{cpu},
		broker_cpu => $env->broker_cpu - $broker_cpu,
		other => $env->other_load($watch));
	return { %run, %{ inspect_topic($env, $topic, $options->{rows}) } };
}

sub run_pair
{
	my ($env, $number, $options) = @_;
	my ($relay_topic, $plain_topic) = map { sprintf '%s_%02d', $_, $number } qw(relay plain);
	my $timestamps = $number == 0 ? 'CreateTime' : 'LogAppendTime';

	$env->create_topic($_, 'message.timestamp.type' => $timestamps) for $relay_topic, $plain_topic;
	publish_backlog($env, $relay_topic, $options);
	my $relay = run_relay($env, $relay_topic, $options);
	my $plain = run_plain($env, $plain_topic, $relay_topic, $options);
	croak "pair $number: the relay and the plain producer did not send the same"
	  if $relay->{digest} ne $plain->{digest};
	$env->delete_topic($_) for $relay_topic, $plain_topic;
	return ($relay, $plain);
}

sub row_of
{
	my ($name, $run, $rows) = @_;
	return [ $name, group($run->{rate}), sprintf('%.2f', $run->{cpu} * 1e6 / $rows),
		sprintf('%.2f', $run->{broker_cpu} * 1e6 / $rows), sprintf('%.0f %%', $run->{other}) ];
}

sub median_run
{
	my (@runs) = @_;
	return { map { my $field = $_; $field => median(map { $_->{$field} } @runs) } qw(rate cpu broker_cpu other) };
}

sub warm_broker
{
	my ($env) = @_;
	$env->create_topic('warm');
	$env->producer('warm', '-g', WARM_RECORDS) for 1 .. 2;
	$env->consumer('warm');
	$env->delete_topic('warm');
	return;
}

# The relay's memory during one more drain, sampled; in kB.
sub measure_memory
{
	my ($env, $topic, $options) = @_;
	my $pid = $env->relay_pid(DATABASE);
	my %peak;

	$env->create_topic($topic);
	publish_backlog($env, $topic, $options);
	my $waiting = $env->start("$env->{bindir}/psql", '-X', '-q', '-A', '-t', '-d', DATABASE, '-c',
		"SELECT outbox.resume()", '-c',
		"SELECT outbox.wait_published(event_id, '10 min') FROM outbox.message ORDER BY id DESC LIMIT 1");
	my $samples = 0;
	my $deadline = time + 600;
	my $done = '';
	until ($done)
	{
		my %now = (process_memory($pid, 'status'), process_memory($pid, 'smaps_rollup'));
		$peak{$_} = max($peak{$_} // 0, $now{$_}) for keys %now;
		$samples++;
		croak 'the drain does not end' if time > $deadline;

		my $readable = '';
		vec($readable, fileno($waiting->{out}), 1) = 1;
		while (select($readable, undef, undef, SAMPLE_SECONDS) > 0)
		{
			my $line = readline $waiting->{out};
			$done = 1 if !defined $line;
			last if $done || $line =~ /^t/ && ($done = 1);
		}
	}
	$env->finish($waiting);
	$env->delete_topic($topic);
	return { %peak, PrivateFile => private_file_memory($pid), samples => $samples };
}

# Pages of programs and libraries that no other process has; they change little.
sub private_file_memory
{
	my ($pid) = @_;
	my ($sum, $is_file) = (0, 0);
	open(my $file, '<', "/proc/$pid/smaps") or croak "/proc/$pid/smaps: $!";
	while (my $line = <$file>)
	{
		if ($line =~ /^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)/)
		{
			my $name = $1;
			$is_file = $name =~ m{^/} && $name !~ m{^(?:/dev/|/SYSV|/memfd:|/anon_hugepage)};
		}
		elsif ($is_file && $line =~ /^Private_(?:Clean|Dirty):\s+(\d+) kB/)
		{
			$sum += $1;
		}
	}
	close $file;
	return $sum;
}

sub process_memory
{
	my ($pid, $name) = @_;
	my %found;
	open(my $file, '<', "/proc/$pid/$name") or croak "/proc/$pid/$name: $!";
	while (my $line = <$file>)
	{
		$found{$1} = $2 if $line =~ /^(\w+):\s+(\d+) kB/;
	}
	close $file;
	return %found;
}

sub megabytes
{
	my ($kilobytes) = @_;
	return sprintf '%.1f', $kilobytes / 1024;
}

sub report_memory
{
	my ($memory) = @_;
	heading('Memory of the relay while draining (MB, highest of ' . $memory->{samples} . ' samples in one more run)');
	table(
		[ 'what', 'MB' ],
		[ 'its own: RssAnon + RssFile that is private (target 150)', megabytes($memory->{RssAnon} + $memory->{PrivateFile}) ],
		[ 'RssAnon', megabytes($memory->{RssAnon}) ],
		[ 'RssFile (programs and libraries, mostly shared with the server)', megabytes($memory->{RssFile}) ],
		[ 'RssShmem (shared_buffers it has touched; every backend has them)', megabytes($memory->{RssShmem}) ],
		[ 'Pss_Anon', megabytes($memory->{Pss_Anon}) ],
		[ 'VmHWM (all of the above)', megabytes($memory->{VmHWM}) ]);
	return;
}

sub report_rates
{
	my ($relay, $plain, $options) = @_;
	my $rows = $options->{rows};
	my $headers = 4 + ($options->{headers} // '' ? () = ($options->{headers} // '') =~ /":/g : 0);

	heading('Drain of ' . group($rows) . ' committed messages');
	note("200 bytes of JSON, a key, $headers headers; $options->{rows_per_transaction} a transaction, 6 partitions"
		  . ($options->{checkpoint} ? '; a checkpoint before each drain' : '') . '.');
	table(
		[ 'run', 'messages/s', 'CPU us/message', 'broker CPU us/message', 'other load' ],
		(map {
			(row_of('relay ' . ($_ + 1), $relay->[$_], $rows), row_of('plain producer ' . ($_ + 1), $plain->[$_], $rows))
		} 0 .. $#$relay),
		row_of('relay, median', median_run(@$relay), $rows),
		row_of('plain producer, median', median_run(@$plain), $rows));
	note(sprintf 'Ratio of the medians: %.2f (target 0.75). Median of the ratios of pairs: %.2f.',
		median(map { $_->{rate} } @$relay) / median(map { $_->{rate} } @$plain),
		median(map { $relay->[$_]{rate} / $plain->[$_]{rate} } 0 .. $#$relay));
	return;
}

sub run
{
	my ($env, $options) = @_;
	my (@relay, @plain);

	progress('drain: warming the broker');
	warm_broker($env);
	$env->new_database(DATABASE);
	$env->sql(DATABASE, $payload_function);
	$env->sql(DATABASE, $load_procedure);

	for my $number (0 .. $options->{runs})
	{
		my ($relay, $plain) = run_pair($env, $number, $options);
		if ($number == 0)
		{
			progress('drain: the pair that does not count is done');
			next;
		}
		progress(sprintf 'drain: pair %d of %d: relay %s/s, plain producer %s/s', $number, $options->{runs},
			group($relay->{rate}), group($plain->{rate}));
		push @relay, $relay;
		push @plain, $plain;
	}
	report_rates(\@relay, \@plain, $options);
	progress('drain: memory');
	report_memory(measure_memory($env, 'memory', $options));
	$env->sql('postgres', "DROP DATABASE @{[DATABASE]}");
	return;
}

1;
