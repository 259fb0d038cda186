
=pod

=head1 NAME

Bench::Environment - the server, the broker and the instruments of a benchmark

=head1 DESCRIPTION

One PostgreSQL server with the library preloaded and one Kafka broker, both on
loopback and both ended with the object, and what the measurements share: SQL,
the C programs, pgbench, the results, and the instruments: CPU time by groups of
processes, memory, WAL, and the time the machine spent on somebody else's work
meanwhile.

CPU times come from /proc/PID/stat, in units of 10 ms, threads included.

=cut

package Bench::Environment;

use strict;
use warnings;

use Carp;
use IO::Handle;
use POSIX qw(sysconf _SC_CLK_TCK);
use Time::HiRes qw(time sleep);

use OutboxTest::Kafka;

use constant WAIT_SECONDS => 600;

my $ticks = sysconf(_SC_CLK_TCK);

=head1 METHODS

=over

=item Bench::Environment->new(dir => ..., bindir => ..., programs => ..., %options)

Start both. Options: headers (cloudevents or plain, what every contender sends),
logical (true: wal_level = logical, and a TCP port, for Debezium),
producer_config, settings (more lines for postgresql.conf), payload (an example),
results (file that record() appends to), commit (what is measured).

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		processors => processor_count(),
		headers => 'cloudevents',
		producer_config => '',
		settings => '',
		run => POSIX::strftime('%Y-%m-%dT%H:%M:%SZ', gmtime),
		%options
	}, $class;

	$self->{owner} = $$;
	$self->{kafka} = OutboxTest::Kafka->new(
		dir => "$self->{dir}/kafka",
		heap => '1g',
		# as a broker is run, not as a test's that has to start fast
		java => [],
		conf => { 'file.delete.delay.ms' => 1000 });
	$self->{kafka}->start;
	$self->{bootstrap} = $self->{kafka}->bootstrap;
	$self->start_server;
	return $self;
}

sub start_server
{
	my ($self) = @_;
	my $data = "$self->{dir}/data";

	# A socket in our own directory. Only Debezium needs TCP; without it any port
	# will do.
	($self->{port}) = $self->{logical} ? OutboxTest::Kafka::free_ports(1) : 5432;
	$ENV{PGHOST} = $self->{dir};
	$ENV{PGUSER} = 'postgres';
	$ENV{PGPORT} = $self->{port};
	$ENV{PGOPTIONS} = '-c client_min_messages=warning';
	delete @ENV{qw(PGDATABASE PGSERVICE PGPASSWORD)};

	$self->run_quietly("$self->{bindir}/initdb", '-D', $data, '-U', 'postgres', '-A', 'trust',
		'-E', 'UTF8', '--no-locale', '--data-checksums');
	open(my $conf, '>>', "$data/postgresql.conf") or croak "postgresql.conf: $!";
	print $conf <<"END";
listen_addresses = '@{[$self->{logical} ? '127.0.0.1' : '']}'
wal_level = @{[$self->{logical} ? 'logical' : 'replica']}
unix_socket_directories = '$self->{dir}'
max_connections = 150
max_worker_processes = 80
shared_buffers = 1GB
max_wal_size = 8GB
checkpoint_timeout = 30min
track_commit_timestamp = on
shared_preload_libraries = 'outbox_kafka'
outbox_kafka.bootstrap_servers = '$self->{bootstrap}'
outbox_kafka.producer_config = '$self->{producer_config}'
outbox_kafka.headers = '$self->{headers}'
$self->{settings}
END
	close $conf or croak "postgresql.conf: $!";
	$self->run_quietly("$self->{bindir}/pg_ctl", '-D', $data, '-w', '-l', "$self->{dir}/server.log", 'start');
	open(my $file, '<', "$data/postmaster.pid") or croak "postmaster.pid: $!";
	chomp($self->{postmaster} = <$file>);
	return;
}

=item $env->stop

End everything, hard. Called when the object goes, too.

=cut

sub stop
{
	my ($self) = @_;
	return if $self->{owner} != $$;
	for my $process (values %{ $self->{background} // {} })
	{
		kill 'KILL', $process->{pid};
		waitpid $process->{pid}, 0;
	}
	delete $self->{background};
	if (delete $self->{postmaster})
	{
		system("$self->{bindir}/pg_ctl -D '$self->{dir}/data' -m immediate -w stop >/dev/null 2>&1");
	}
	(delete $self->{connect})->stop if $self->{connect};
	(delete $self->{kafka})->stop if $self->{kafka};
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	$self->stop;
	return;
}

=item $env->sql($database, $sql)

The result as psql prints it unaligned, without the last newline. Dies on an
error.

=cut

sub sql
{
	my ($self, $database, $sql) = @_;
	my $result = $self->capture("$self->{bindir}/psql", '-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1',
		'-d', $database, '-c', $sql);
	chomp $result;
	return $result;
}

=item $env->new_database($name, %settings)

A fresh database with the extension, its relay up; settings of outbox_kafka for
this database.

=item $env->drop_database($name)

=cut

sub new_database
{
	my ($self, $name, %settings) = @_;
	$self->drop_database($name);
	$self->sql('postgres', qq{CREATE DATABASE "$name"});
	$self->sql('postgres', qq{ALTER DATABASE "$name" SET outbox_kafka.$_ = '$settings{$_}'}) for sort keys %settings;
	$self->sql($name, 'CREATE EXTENSION outbox_kafka');
	$self->wait_state($name, 'idle');
	return;
}

sub drop_database
{
	my ($self, $name) = @_;
	$self->sql('postgres', qq{DROP DATABASE IF EXISTS "$name"});
	return;
}

=item $env->wait_state($database, $state)

Until outbox.relay_status shows it.

=cut

sub wait_state
{
	my ($self, $database, $state) = @_;
	my $deadline = time + WAIT_SECONDS;
	while ((my $now = $self->sql($database, 'SELECT state FROM outbox.relay_status')) ne $state)
	{
		croak "the relay of $database is $now, not $state: "
		  . $self->sql($database, 'SELECT last_error FROM outbox.relay_status')
		  if time > $deadline;
		sleep 0.1;
	}
	return;
}

=item $env->pause($database), $env->resume_until_empty($database)

Stop the relay; set it going and wait until nothing is left to send.

=cut

sub pause
{
	my ($self, $database) = @_;
	$self->sql($database, 'SELECT outbox.pause()');
	$self->wait_state($database, 'paused');
	return;
}

sub resume_until_empty
{
	my ($self, $database) = @_;
	$self->sql($database, 'SELECT outbox.resume()');
	$self->wait_empty($database);
	return;
}

sub wait_empty
{
	my ($self, $database) = @_;
	my $waited = $self->sql($database,
		"SELECT outbox.wait_published(event_id, '@{[WAIT_SECONDS]} s') FROM outbox.message ORDER BY id DESC LIMIT 1");
	croak "the last message of $database is not published" if $waited ne 't';
	$self->wait_state($database, 'idle');
	return;
}

sub relay_pid
{
	my ($self, $database) = @_;
	return $self->sql($database, 'SELECT pid FROM outbox.relay_status');
}

=item $env->create_topic($name, %config), $env->delete_topic($name)

Six partitions. Times of records are those of appending unless the
configuration says otherwise.

=item $env->create_topics(@names)

Of one partition each.

=item $env->records_in($topic)

How many it holds now; with transactions their markers, too.

=cut

sub create_topic
{
	my ($self, $name, %config) = @_;
	$self->{kafka}->create_topic($name, 6, { 'message.timestamp.type' => 'LogAppendTime', %config });
	return;
}

sub create_topics
{
	my ($self, @names) = @_;
	$self->{kafka}->admin('create', $_, 1, 1) for @names;
	$self->{kafka}->wait_topic($_, 1) for @names;
	return;
}

sub delete_topics
{
	my ($self, @names) = @_;
	$self->{kafka}->admin('delete', $_) for @names;
	return;
}

sub records_in
{
	my ($self, $topic) = @_;
	return $self->{kafka}->message_count($topic);
}

sub delete_topic
{
	my ($self, $name) = @_;
	$self->{kafka}->delete_topic($name);
	return;
}

=item $env->producer_properties($bulk)

What the relay's librdkafka has and the plain producer needs to have the same
(src/kafka_conf.c), as options of the program. bulk: as the relay has it for a
backlog, which is also what suits a plain producer of many records.

=cut

sub producer_properties
{
	my ($self, $bulk) = @_;
	my ($messages, $kilobytes, $batch) = split /\|/, $self->sql('postgres', q{
		SELECT 2 * (SELECT setting::bigint FROM pg_settings WHERE name = 'outbox_kafka.max_in_flight') + 10000,
			   2 * (SELECT setting::bigint FROM pg_settings WHERE name = 'outbox_kafka.max_in_flight_size') + 1048576,
			   least(greatest((SELECT setting::bigint FROM pg_settings WHERE name = 'outbox_kafka.max_in_flight') / 10, 1), 10000)});
	my @properties = (
		'acks=all',
		'enable.idempotence=true',
		'enable.gapless.guarantee=true',
		'message.timeout.ms=0',
		'message.max.bytes=1000000000',
		"queue.buffering.max.messages=$messages",
		"queue.buffering.max.kbytes=$kilobytes",
		'linger.ms=' . ($bulk ? 20 : 0),
		"batch.num.messages=$batch",
		'socket.nagle.disable=true',
		'socket.keepalive.enable=true',
		'reconnect.backoff.ms=50',
		'reconnect.backoff.max.ms=500',
		'retry.backoff.ms=20',
		'partitioner=murmur2_random',
		# it says that the gapless guarantee is experimental
		'log_level=3',
		map { s/^\s+|\s+$//gr } grep { /\S/ } split /;/, $self->{producer_config});
	return map { ('-X', $_) } @properties;
}

=item $env->producer($topic, @options), $env->consumer($topic, @options)

Run the program to its end; what it printed, as a hash.

=item $env->start_producer($topic, @options), $env->start_consumer($topic, @options)

Start it, and return when it has printed its first line (it has loaded its
records; it knows where the topic ends).

=cut

sub producer
{
	my ($self, $topic, @options) = @_;
	return parse_pairs($self->capture($self->producer_command($topic, @options)));
}

sub consumer
{
	my ($self, $topic, @options) = @_;
	return parse_pairs($self->capture($self->consumer_command($topic, @options)));
}

sub start_producer
{
	my ($self, $topic, @options) = @_;
	my $process = $self->start($self->producer_command($topic, '-w', @options));
	read_line($process);
	return $process;
}

sub start_consumer
{
	my ($self, $topic, @options) = @_;
	my $process = $self->start($self->consumer_command($topic, @options));
	read_line($process);
	return $process;
}

sub producer_command
{
	my ($self, $topic, @options) = @_;
	my $paced = grep { $_ eq '-r' } @options;
	return ("$self->{programs}/producer", '-b', $self->{bootstrap}, '-t', $topic,
		$self->producer_properties(!$paced), '-h', $self->{headers}, @options);
}

sub consumer_command
{
	my ($self, $topic, @options) = @_;
	return ("$self->{programs}/consumer", '-b', $self->{bootstrap}, '-t', $topic,
		'-X', 'socket.nagle.disable=true', '-X', 'log_level=3',
		'-i', $self->{headers} eq 'plain' ? 'id' : 'ce_id', @options);
}

sub parse_pairs
{
	my ($line) = @_;
	return { map { split /=/, $_, 2 } split ' ', $line };
}

=item $env->pgbench($database, $script, %options)

One run of a script file, as a hash: tps, the transactions a second;
transactions; cpu, the seconds that the server's processes used for one of them
(all of them, so only meaningful while nothing else goes on). Options: clients,
seconds, rate (transactions a second to aim at), define (hash of variables),
synchronous_commit, log (true: latencies in milliseconds, sorted, of every
twentieth transaction).

=item $env->start_pgbench($database, $script, %options), $env->finish_pgbench($process)

The same in the background; without cpu.

=cut

sub pgbench
{
	my ($self, @arguments) = @_;
	my $cpu = $self->tree_cpu($self->{postmaster});
	my $run = $self->finish_pgbench($self->start_pgbench(@arguments));
	$cpu = $self->tree_cpu($self->{postmaster}) - $cpu;
	$run->{cpu} = $cpu / $run->{transactions};
	return $run;
}

sub start_pgbench
{
	my ($self, $database, $script, %options) = @_;
	local $ENV{PGOPTIONS} = '-c synchronous_commit=' . ($options{synchronous_commit} // 'on');
	my $define = $options{define} // {};
	my $log = $options{log} ? "$self->{dir}/pgbench_" . ++$self->{pgbench_logs} : undef;
	my $process = $self->start("$self->{bindir}/pgbench", '-n', '-M', 'prepared', '-f', $script,
		'-c', $options{clients} // 1, '-j', 1, '-T', $options{seconds},
		(defined $options{rate} ? ('-R', $options{rate}) : ()),
		(defined $log ? ('-l', '--sampling-rate=0.05', '--log-prefix', $log) : ()),
		(map { ('-D', "$_=$define->{$_}") } sort keys %$define),
		$database);
	$process->{log} = $log;
	return $process;
}

sub finish_pgbench
{
	my ($self, $process) = @_;
	my $output = $self->finish($process);
	croak "pgbench: $output" if $output =~ /number of failed transactions: [1-9]/;
	my ($transactions) = $output =~ /^number of transactions actually processed: (\d+)/m or croak "pgbench: $output";
	my ($tps) = $output =~ /^tps = ([\d.]+)/m or croak "pgbench: $output";
	my @latencies;
	for my $path (defined $process->{log} ? glob "$process->{log}.*" : ())
	{
		open(my $file, '<', $path) or croak "$path: $!";
		push @latencies, map { (split)[2] / 1000 } <$file>;
		unlink $path;
	}
	return { tps => $tps, transactions => $transactions, latencies => [ sort { $a <=> $b } @latencies ] };
}

=item $env->start(@command), read_line($process), $env->finish($process, $signal)

A program in the background, with a pipe to its standard input and one from its
standard output. finish() sends the signal, or closes the input if there is
none, and returns what else it printed.

=cut

sub start
{
	my ($self, @command) = @_;
	pipe(my $in_read, my $in_write) or croak "pipe: $!";
	pipe(my $out_read, my $out_write) or croak "pipe: $!";
	my $pid = fork // croak "fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<&', $in_read)
		  && open(STDOUT, '>&', $out_write)
		  && close($in_write)
		  && close($out_read)
		  && exec('setpriv', '--pdeathsig', 'KILL', @command)
		  or POSIX::_exit(127);
	}
	close $in_read;
	close $out_write;
	my $process = { pid => $pid, in => $in_write, out => $out_read, name => $command[0] };
	$self->{background}{$pid} = $process;
	return $process;
}

sub read_line
{
	my ($process) = @_;
	my $line = readline $process->{out};
	croak "$process->{name} has ended early" if !defined $line;
	return $line;
}

sub finish
{
	my ($self, $process, $signal) = @_;
	local $/;
	kill $signal, $process->{pid} if $signal;
	close $process->{in};
	my $output = readline $process->{out};
	waitpid $process->{pid}, 0;
	delete $self->{background}{ $process->{pid} };
	croak "$process->{name} failed" if $?;
	return $output;
}

sub capture
{
	my ($self, @command) = @_;
	return $self->finish($self->start(@command)) // '';
}

sub run_quietly
{
	my ($self, @command) = @_;
	my $pid = fork // croak "fork: $!";
	if ($pid == 0)
	{
		open(STDOUT, '>>', "$self->{dir}/setup.log") && open(STDERR, '>&', \*STDOUT) && exec(@command)
		  or POSIX::_exit(127);
	}
	waitpid $pid, 0;
	if ($?)
	{
		open(my $log, '<', "$self->{dir}/setup.log") or croak "setup.log: $!";
		print STDERR <$log>;
		croak "@command failed";
	}
	return;
}

=item $env->cpu($pid)

Seconds a process has used.

=cut

sub cpu
{
	my ($self, $pid) = @_;
	my @fields = stat_fields($pid) or croak "process $pid has gone";
	return ($fields[11] + $fields[12]) / $ticks;
}

# After the command's name in parentheses: state, ppid, ...
sub stat_fields
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/stat") or return;
	my $line = <$file> // return;
	return split ' ', $line =~ s/^.*\) //r;
}

=item $env->watch_machine, $env->other_load($watch)

Which part of the machine, in percent, went to processes that are neither ours
nor our children since watch_machine. More than a few percent: the figures of
that time say little.

=item $env->start_watch($groups), $env->end_watch($watch)

The same and more, for a run of a contender, as metrics for record(): seconds,
other (percent), cpu_machine (all that the machine did, in seconds) and cpu_NAME
for the broker, the server (without what has a name of its own), and each of the
groups (name => process numbers). What the benchmark itself and the clients used
is cpu_client.

=item $env->start_sampler($pid), $env->finish_sampler($sampler)

Watch a process's memory, ten times a second; the highest of each of rss, pss
(its share of all it maps) and own (what no other process has), in kB.

=item $env->record($part, $contender, $parameter, $round, \%metrics)

A line in the results for each metric. Undefined ones are left out.

=back

=cut

sub start_watch
{
	my ($self, $groups) = @_;
	my %all = (
		client => [$$],
		broker => [ $self->{kafka}->pid(1) ],
		server => [ $self->{postmaster} ],
		%{ $groups // {} });
	$all{connect} = [ $self->{connect}->pid ] if $self->{connect};
	return { groups => \%all, time => time, machine => machine_cpu(), cpu => cpu_of_groups(\%all),
		other => $self->watch_machine };
}

sub end_watch
{
	my ($self, $watch) = @_;
	my $cpu = cpu_of_groups($watch->{groups});
	return {
		seconds => time - $watch->{time},
		cpu_machine => machine_cpu() - $watch->{machine},
		other => $self->other_load($watch->{other}),
		map { ("cpu_$_" => $cpu->{$_} - $watch->{cpu}{$_}) } keys %$cpu
	};
}

sub start_sampler
{
	my ($self, $pid) = @_;
	my $sampler = $self->start($^X, (map { "-I$_" } @INC), '-MBench::Environment',
		'-e', 'Bench::Environment::sample_memory(shift)', $pid);
	read_line($sampler);
	return $sampler;
}

sub finish_sampler
{
	my ($self, $sampler) = @_;
	return parse_pairs($self->finish($sampler));
}

# The sampler's program: until standard input ends.
sub sample_memory
{
	my ($pid) = @_;
	my %peak;
	my $readable = '';
	STDOUT->autoflush(1);
	print "ready\n";
	do
	{
		my $now = memory_of($pid);
		for my $kind (keys %$now)
		{
			$peak{$kind} = $now->{$kind} if $now->{$kind} > ($peak{$kind} // 0);
		}
		$readable = '';
		vec($readable, fileno(STDIN), 1) = 1;
	} until select($readable, undef, undef, 0.1) > 0;
	print join(' ', map { "$_=$peak{$_}" } sort keys %peak), "\n";
	return;
}

sub record
{
	my ($self, $part, $contender, $parameter, $round, $metrics) = @_;
	open(my $file, '>>', $self->{results}) or croak "$self->{results}: $!";
	for my $metric (grep { defined $metrics->{$_} } sort keys %$metrics)
	{
		print $file join("\t", $self->{run}, $part, $contender, $parameter, $round, $metric, $metrics->{$metric}), "\n";
	}
	close $file or croak "$self->{results}: $!";
	return;
}

sub watch_machine
{
	my ($self) = @_;
	return [ time, machine_cpu(), $self->tree_cpu($self->{postmaster}, $$) ];
}

sub other_load
{
	my ($self, $watch) = @_;
	my ($since, $machine, $own) = @$watch;
	my $other = (machine_cpu() - $machine) - ($self->tree_cpu($self->{postmaster}, $$) - $own);
	my $share = 100 * $other / ($self->{processors} * (time - $since));
	return $share < 0 ? 0 : $share;
}

sub machine_cpu
{
	open(my $file, '<', '/proc/stat') or croak "/proc/stat: $!";
	my (undef, $user, $nice, $system, undef, undef, $irq, $softirq, $steal) = split ' ', scalar <$file>;
	return ($user + $nice + $system + $irq + $softirq + $steal) / $ticks;
}

sub processor_count
{
	open(my $file, '<', '/proc/stat') or croak "/proc/stat: $!";
	return scalar grep { /^cpu\d/ } <$file>;
}

# Seconds used by processes and all that they started, including what has ended.
sub tree_cpu
{
	my ($self, @roots) = @_;
	my $sum = 0;
	$sum += $_ for values %{ cpu_of_groups({ all => \@roots }) };
	return $sum;
}

# The same for groups of processes: name => roots. A process belongs to the
# nearest root above it.
sub cpu_of_groups
{
	my ($groups) = @_;
	my (%group_of, %parent, %used);
	for my $name (keys %$groups)
	{
		$group_of{$_} = $name for @{ $groups->{$name} };
	}
	opendir(my $proc, '/proc') or croak "/proc: $!";
	for my $pid (grep { /^\d+$/ } readdir $proc)
	{
		my @fields = stat_fields($pid) or next;
		$parent{$pid} = $fields[1];
		$used{$pid} = $fields[11] + $fields[12] + $fields[13] + $fields[14];
	}
	closedir $proc;

	my %sum = map { $_ => 0 } keys %$groups;
	for my $pid (keys %parent)
	{
		my $ancestor = $pid;
		$ancestor = $parent{$ancestor} // 0 while $ancestor > 1 && !$group_of{$ancestor};
		$sum{ $group_of{$ancestor} } += $used{$pid} / $ticks if $ancestor > 1;
	}
	return \%sum;
}

# kB: RSS, what it has for itself (anonymous memory and files that no other
# process maps), and its share of all it maps
sub memory_of
{
	my ($pid) = @_;
	my ($rss, $pss, $own, $anonymous, $is_file) = (0) x 5;
	open(my $file, '<', "/proc/$pid/smaps") or return {};
	while (my $line = <$file>)
	{
		if ($line =~ /^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)/)
		{
			my $name = $1;
			$is_file = $name =~ m{^/} && $name !~ m{^(?:/dev/|/SYSV|/memfd:|/anon_hugepage)};
			$anonymous = $name eq '' || $name =~ /^\[/;
		}
		elsif ($line =~ /^(\w+):\s+(\d+) kB/)
		{
			$rss += $2 if $1 eq 'Rss';
			$pss += $2 if $1 eq 'Pss';
			$own += $2 if $1 eq 'Anonymous' && !$is_file && $anonymous;
			$own += $2 if $is_file && ($1 eq 'Private_Clean' || $1 eq 'Private_Dirty');
		}
	}
	close $file;
	return { rss => $rss, pss => $pss, own => $own };
}

# Bytes of WAL written so far.
sub wal_position
{
	my ($self) = @_;
	return $self->sql('postgres', q{SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')});
}

1;
