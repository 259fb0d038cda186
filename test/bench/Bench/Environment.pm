
=pod

=head1 NAME

Bench::Environment - the server, the broker and the instruments of a benchmark

=head1 DESCRIPTION

One PostgreSQL server with the library preloaded and one Kafka broker, both on
loopback and both ended with the object, and what the measurements share: SQL,
the C programs, pgbench, the CPU time of processes, and the time the machine
spent on somebody else's work meanwhile.

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

=item Bench::Environment->new(dir => ..., bindir => ..., programs => ..., settings => ...)

Start both. settings: more lines for postgresql.conf.

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = bless { processors => processor_count(), %options }, $class;

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

	# a socket in our own directory and no TCP, so that any port will do
	$ENV{PGHOST} = $self->{dir};
	$ENV{PGUSER} = 'postgres';
	$ENV{PGPORT} = 5432;
	delete @ENV{qw(PGDATABASE PGOPTIONS PGSERVICE PGPASSWORD)};

	$self->run_quietly("$self->{bindir}/initdb", '-D', $data, '-U', 'postgres', '-A', 'trust',
		'-E', 'UTF8', '--no-locale', '--data-checksums');
	open(my $conf, '>>', "$data/postgresql.conf") or croak "postgresql.conf: $!";
	print $conf <<"END";
listen_addresses = ''
unix_socket_directories = '$self->{dir}'
max_connections = 50
shared_buffers = 1GB
max_wal_size = 8GB
checkpoint_timeout = 30min
track_commit_timestamp = on
shared_preload_libraries = 'outbox_kafka'
outbox_kafka.bootstrap_servers = '$self->{bootstrap}'
outbox_kafka.producer_config = '$self->{producer_config}'
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

=item $env->new_database($name)

A fresh database with the extension, its relay up.

=cut

sub new_database
{
	my ($self, $name) = @_;
	$self->sql('postgres', qq{DROP DATABASE "$name"})
	  if $self->sql('postgres', "SELECT count(*) FROM pg_database WHERE datname = '$name'");
	$self->sql('postgres', qq{CREATE DATABASE "$name"});
	$self->sql($name, 'CREATE EXTENSION outbox_kafka');
	$self->wait_state($name, 'idle');
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

Six partitions.

=cut

sub create_topic
{
	my ($self, $name, %config) = @_;
	$self->{kafka}->create_topic($name, 6, \%config);
	return;
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
	my ($messages, $kilobytes) = split /\|/, $self->sql('postgres', q{
		SELECT 2 * (SELECT setting::bigint FROM pg_settings WHERE name = 'outbox_kafka.max_in_flight') + 10000,
			   2 * (SELECT setting::bigint FROM pg_settings WHERE name = 'outbox_kafka.max_in_flight_size') + 1048576});
	my @properties = (
		'acks=all',
		'enable.idempotence=true',
		'enable.gapless.guarantee=true',
		'message.timeout.ms=0',
		'message.max.bytes=1000000000',
		"queue.buffering.max.messages=$messages",
		"queue.buffering.max.kbytes=$kilobytes",
		'linger.ms=' . ($bulk ? 5 : 0),
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
		$self->producer_properties(!$paced), @options);
}

sub consumer_command
{
	my ($self, $topic, @options) = @_;
	return ("$self->{programs}/consumer", '-b', $self->{bootstrap}, '-t', $topic,
		'-X', 'socket.nagle.disable=true', '-X', 'log_level=3', @options);
}

sub parse_pairs
{
	my ($line) = @_;
	return { map { split /=/, $_, 2 } split ' ', $line };
}

=item $env->pgbench($database, $script, %options)

One run of a script file: a hash with tps, the transactions a second, and cpu,
the seconds that the server's processes used for one of them (all of them, so
only meaningful while nothing else goes on). Options: clients, seconds, rate
(transactions a second to aim at), define (hash of variables),
synchronous_commit.

=cut

sub pgbench
{
	my ($self, $database, $script, %options) = @_;
	local $ENV{PGOPTIONS} = '-c synchronous_commit=' . ($options{synchronous_commit} // 'on');
	my $define = $options{define} // {};
	my $cpu = $self->tree_cpu($self->{postmaster});
	my $output = $self->capture("$self->{bindir}/pgbench", '-n', '-M', 'prepared', '-f', $script,
		'-c', $options{clients} // 1, '-j', 1, '-T', $options{seconds},
		(defined $options{rate} ? ('-R', $options{rate}) : ()),
		(map { ('-D', "$_=$define->{$_}") } sort keys %$define),
		$database);
	croak "pgbench: $output" if $output =~ /number of failed transactions: [1-9]/;
	$cpu = $self->tree_cpu($self->{postmaster}) - $cpu;
	my ($transactions) = $output =~ /^number of transactions actually processed: (\d+)/m or croak "pgbench: $output";
	my ($tps) = $output =~ /^tps = ([\d.]+)/m or croak "pgbench: $output";
	return { tps => $tps, cpu => $cpu / $transactions };
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
		  && exec(@command)
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

sub broker_cpu
{
	my ($self) = @_;
	return $self->cpu($self->{kafka}->pid(1));
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

=back

=cut

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
	my %is_root = map { $_ => 1 } @roots;
	my %parent;
	my %used;
	opendir(my $proc, '/proc') or croak "/proc: $!";
	for my $pid (grep { /^\d+$/ } readdir $proc)
	{
		my @fields = stat_fields($pid) or next;
		$parent{$pid} = $fields[1];
		$used{$pid} = $fields[11] + $fields[12] + $fields[13] + $fields[14];
	}
	closedir $proc;

	my $sum = 0;
	for my $pid (keys %parent)
	{
		my $ancestor = $pid;
		$ancestor = $parent{$ancestor} // 0 while $ancestor > 1 && !$is_root{$ancestor};
		$sum += $used{$pid} if $ancestor > 1;
	}
	return $sum / $ticks;
}

1;
