
=pod

=head1 NAME

OutboxTest::Kafka - a real Apache Kafka for one test

=head1 SYNOPSIS

  my $kafka = OutboxTest::Kafka->new;              # one node, combined roles
  my $cluster = OutboxTest::Kafka->new(nodes => 3);
  $kafka->start;
  $kafka->create_topic('orders.created', 6, { 'max.message.bytes' => 20000 });
  $node->append_conf('postgresql.conf',
      "outbox_kafka.bootstrap_servers = '" . $kafka->bootstrap . "'");
  my @records = $kafka->consume('orders.created', count => 10);
  is($records[0]{key}, '42');
  $kafka->kill9(1); $kafka->start_node(1);

=head1 DESCRIPTION

Each node is one Java process that is broker and controller (KRaft), on free
loopback ports, with its data, configuration and log in a directory of its own
under the test's. Nodes die with the test, however it ends. The jars come from
test/kafka (make fetches them once).

Nodes are numbered from 1. Whatever changes a node's state waits until the
change has taken effect, and dies with the end of the node's log if it does
not within the time limit.

=cut

package OutboxTest::Kafka;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(basename dirname);
use File::Path qw(make_path);
use IO::Socket::INET;
use MIME::Base64 qw(encode_base64url);
use POSIX qw(:sys_wait_h);
use Time::HiRes qw(time sleep);

use OutboxTest::Kcat;

my $home = abs_path(dirname(__FILE__) . '/../../kafka');
my @running;    # every object with nodes, for the END block
my $owner = $$;

=head1 METHODS

=over

=item OutboxTest::Kafka->new(%options)

Options: name ('kafka'), nodes (1), heap ('512m'), timeout (seconds, 120), dir
(below the test's directory by default), conf (hash of server properties added
to every node's), java (array of options for the Java machine; by default those
that start fast; measurements give others). Nothing is started yet.

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		name => 'kafka',
		nodes => 1,
		heap => '512m',
		timeout => 120,
		conf => {},
		java => [ '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1' ],
		%options
	}, $class;

	if (!defined $self->{dir})
	{
		no warnings 'once';
		my $base = $PostgreSQL::Test::Utils::tmp_check
		  or croak "dir is needed outside of PostgreSQL::Test";
		my $test = basename($0);
		$test =~ s/\.[^.]+$//;
		$self->{dir} = abs_path($base) . "/t_${test}_$self->{name}";
	}
	system('make', '--silent', '--directory', $home, 'all') == 0
	  or croak "could not make $home";
	make_path($self->{dir});

	my $cluster_id = new_uuid();
	my @ids = (1 .. $self->{nodes});
	my @ports = free_ports(2 * @ids);
	for my $id (@ids)
	{
		$self->{node}{$id} = {
			id => $id,
			dir => "$self->{dir}/$id",
			log => "$self->{dir}/$id.log",
			port => shift @ports,
			controller_port => shift @ports
		};
	}
	my $voters = join ',',
	  map { "$_->{id}\@127.0.0.1:$_->{controller_port}" } $self->all_nodes;
	$self->prepare_node($_, $cluster_id, $voters) for $self->all_nodes;
	return $self;
}

=item $kafka->start

Start all nodes and wait until each of them serves all.

=cut

sub start
{
	my ($self) = @_;
	$self->launch($_) for $self->all_nodes;
	$self->wait_ready($_->{id}) for $self->all_nodes;
	return;
}

=item $kafka->bootstrap

=item $kafka->port($id)

Addresses of all nodes, comma separated; the port of one.

=cut

sub bootstrap
{
	my ($self) = @_;
	return join ',', map { "127.0.0.1:$_->{port}" } $self->all_nodes;
}

sub port
{
	my ($self, $id) = @_;
	return $self->{node}{$id}{port};
}

=item $kafka->start_node($id), $kafka->stop_node($id), $kafka->restart($id)

An orderly stop hands over leadership first, where there is another node.
start_node waits until the node serves and all running nodes see it.

=cut

sub start_node
{
	my ($self, $id) = @_;
	$self->launch($self->{node}{$id});
	$self->wait_ready($id);
	return;
}

sub stop_node
{
	my ($self, $id) = @_;
	$self->end_process($id, 'TERM');
	return;
}

sub restart
{
	my ($self, $id) = @_;
	$self->stop_node($id);
	$self->start_node($id);
	return;
}

=item $kafka->kill9($id), $kafka->pause($id), $kafka->cont($id)

SIGKILL, SIGSTOP and SIGCONT. After pause the node is stopped as a whole; its
connections stay open and are silent.

=cut

sub kill9
{
	my ($self, $id) = @_;
	$self->end_process($id, 'KILL');
	return;
}

sub pause
{
	my ($self, $id) = @_;
	my $pid = $self->pid($id);
	kill 'STOP', $pid;
	$self->wait_until("node $id is stopped", sub { process_state($pid) eq 'T' });
	return;
}

sub cont
{
	my ($self, $id) = @_;
	kill 'CONT', $self->pid($id);
	return;
}

=item $kafka->pid($id)

Its process, while it runs.

=cut

sub pid
{
	my ($self, $id) = @_;
	return $self->{node}{$id}{pid} // croak "node $id is not running";
}

=item $kafka->stop

End all nodes at once, hard. Called at the end of the test anyway.

=cut

sub stop
{
	my ($self) = @_;
	for my $node (grep { $_->{pid} } $self->all_nodes)
	{
		kill 'KILL', $node->{pid};
		waitpid($node->{pid}, 0);
		delete $node->{pid};
	}
	@running = grep { $_ != $self } @running;
	return;
}

=item $kafka->create_topic($name, $partitions, \%config, $replicas)

By default one partition, and as many replicas as nodes, at most three. Waits
until every running node knows a leader for each partition.

=item $kafka->delete_topic($name)

=item $kafka->grow_topic($name, $partitions)

=item $kafka->configure_topic($name, \%config)

Replaces all of the topic's configuration.

=cut

sub create_topic
{
	my ($self, $name, $partitions, $config, $replicas) = @_;
	$partitions //= 1;
	$config //= {};
	$replicas //= $self->{nodes} < 3 ? $self->{nodes} : 3;
	$self->admin('create', $name, $partitions, $replicas,
		map { "$_=$config->{$_}" } sort keys %$config);
	$self->wait_topic($name, $partitions);
	return;
}

sub delete_topic
{
	my ($self, $name) = @_;
	$self->admin('delete', $name);
	$self->wait_until(
		"topic $name is gone",
		sub {
			return !grep { /^partition \Q$name\E / } $self->admin('metadata');
		});
	return;
}

sub grow_topic
{
	my ($self, $name, $partitions) = @_;
	$self->admin('grow', $name, $partitions);
	$self->wait_topic($name, $partitions);
	return;
}

sub configure_topic
{
	my ($self, $name, $config) = @_;
	$self->admin('configure', $name,
		map { "$_=$config->{$_}" } sort keys %$config);
	return;
}

=item $kafka->partitions($topic)

One hash per partition, in order: number, leader (-1: none), replicas and
in_sync (arrays of node numbers).

=cut

sub partitions
{
	my ($self, $topic) = @_;
	return map { parse_partition($_) } $self->admin('metadata', $topic);
}

=item $kafka->offsets($topic)

Hash from partition number to [low, high]: the first offset kept and the next
one to be given out.

=cut

sub offsets
{
	my ($self, $topic) = @_;
	return { map { my ($number, @ends) = split; $number => \@ends }
		  $self->admin('offsets', $topic) };
}

=item $kafka->message_count($topic)

How many offsets the topic holds, control records of transactions included.

=cut

sub message_count
{
	my ($self, $topic) = @_;
	my $count = 0;
	$count += $_->[1] - $_->[0] for values %{ $self->offsets($topic) };
	return $count;
}

=item $kafka->wait_messages($topic, $count, $seconds)

Wait until the topic holds at least that many.

=cut

sub wait_messages
{
	my ($self, $topic, $count, $seconds) = @_;
	my $seen = 0;
	$self->wait_until(
		"$topic holds $count messages",
		sub { ($seen = $self->message_count($topic)) >= $count },
		$seconds, sub { "it holds $seen" });
	return;
}

=item $kafka->produce($topic, $partition, %options)

One record that no outbox has written. Options: key, value (bytes; without it,
or undef: none), headers (array of names and values) and time (in milliseconds;
without it, the present).

=item $kafka->transact($topic, $partition, $end, @values)

Records in a Kafka transaction that ends with commit or abort.

=item $kafka->remove_records($topic, $partition, $offset)

Delete what is before the offset, as retention would.

=item $kafka->committed($group, $topic, $partition)

The group's offset; -1001 if there is none.

=cut

sub produce
{
	my ($self, $topic, $partition, %options) = @_;
	my $file = "$self->{dir}/produce";
	my @headers = @{ $options{headers} // [] };
	my @arguments = defined $options{time} ? ("\@$options{time}") : ();
	while (@headers)
	{
		my ($name, $value) = splice @headers, 0, 2;
		push @arguments, defined $value ? "$name=$value" : $name;
	}
	write_file($file, $options{value} // '');
	$self->admin('produce', $topic, $partition, $options{key} // '-',
		defined $options{value} ? $file : '-', @arguments);
	return;
}

sub transact
{
	my ($self, $topic, $partition, $end, @values) = @_;
	$self->admin('transact', $topic, $partition, $end, @values);
	return;
}

sub remove_records
{
	my ($self, $topic, $partition, $offset) = @_;
	$self->admin('remove', $topic, $partition, $offset);
	return;
}

sub committed
{
	my ($self, $group, $topic, $partition) = @_;
	my ($offset) = $self->admin('committed', $group, $topic, $partition);
	return $offset;
}

=item $kafka->consume($topic, %options)

All records of the topic up to its present end, sorted by partition and
offset; see OutboxTest::Kcat for their form. Options: count (wait for that many
first; more may come back), timeout for it, partition (only that one),
properties (hash for librdkafka). With an isolation.level of read_committed,
transactions may take a moment to end: see wait_stable().

=cut

sub consume
{
	my ($self, $topic, %options) = @_;
	$self->wait_messages($topic, $options{count}, $options{timeout})
	  if defined $options{count};
	$self->wait_stable($topic)
	  if ($options{properties}{'isolation.level'} // '') eq 'read_committed';
	return OutboxTest::Kcat::consume($self->bootstrap, $topic, %options);
}

=item $kafka->wait_stable($topic, $seconds)

Wait until readers of committed messages get as far as others. A transaction's
end is written to each partition after its commit was answered, and until then
such a reader finds the end of the partition before it. At most 10 seconds: in a
partition without a leader it may not come.

=cut

sub wait_stable
{
	my ($self, $topic, $seconds) = @_;
	my $deadline = time + ($seconds // 10);
	my @partitions = $self->partitions($topic);
	my $end = sub {
		my ($isolation) = @_;
		my @command = (
			OutboxTest::Kcat::command($self->bootstrap, { 'isolation.level' => $isolation, log_level => 0 }),
			'-Q', map { ('-t', "$topic:$_:-1") } 0 .. $#partitions);
		open(my $pipe, '-|', @command) or croak "could not run kcat: $!";
		my %offsets = join('', <$pipe>) =~ /"partition":(\d+),"offset":(\d+)/g;
		close $pipe;
		return \%offsets;
	};
	my $last = $end->('read_uncommitted');
	while (time < $deadline)
	{
		my $stable = $end->('read_committed');
		return unless grep { ($stable->{$_} // -1) < ($last->{$_} // 0) } 0 .. $#partitions;
		sleep 0.05;
	}
	return;
}

=item $kafka->follow(\@topics, %options)

A consumer that reads along from the beginning, in the background, into a file:
an OutboxTest::Kcat object.

=cut

sub follow
{
	my ($self, $topics, %options) = @_;
	my $number = ++$self->{followers};
	return OutboxTest::Kcat->new(
		$self->bootstrap, $topics,
		file => "$self->{dir}/follow_$number.jsonl",
		timeout => $self->{timeout},
		%options);
}

=item $kafka->admin(@command)

Run kafka_admin against the running nodes; its output as a list of lines. Dies
when it fails.

=cut

sub admin
{
	my ($self, @command) = @_;
	my $bootstrap = join ',',
	  map { "127.0.0.1:$_->{port}" } grep { $_->{pid} } $self->all_nodes;
	my ($code, @lines) = run_admin($bootstrap, @command);
	croak "kafka_admin @command: @lines" if $code;
	return @lines;
}

=item $kafka->wait_until($what, $condition, $seconds, $detail)

Poll until the condition (code) is true; dies with $what, the detail (code) and
the ends of the nodes' logs when the time is over.

=back

=cut

sub wait_until
{
	my ($self, $what, $condition, $seconds, $detail) = @_;
	my $deadline = time + ($seconds // $self->{timeout});
	until ($condition->())
	{
		if (time > $deadline)
		{
			my $text = "timed out waiting until $what";
			$text .= ': ' . $detail->() if $detail;
			croak join "\n", $text, map { log_end($_) } $self->all_nodes;
		}
		sleep 0.05;
	}
	return;
}

# ---------------------------------------------------------------------------

sub all_nodes
{
	my ($self) = @_;
	return map { $self->{node}{$_} } sort { $a <=> $b } keys %{ $self->{node} };
}

# Write a node's configuration and its formatted, empty storage.
sub prepare_node
{
	my ($self, $node, $cluster_id, $voters) = @_;
	my $replicas = $self->{nodes} < 3 ? $self->{nodes} : 3;
	my %conf = (
		'process.roles' => 'broker,controller',
		'node.id' => $node->{id},
		'controller.quorum.voters' => $voters,
		'controller.listener.names' => 'CONTROLLER',
		'listeners' => "PLAINTEXT://127.0.0.1:$node->{port},"
		  . "CONTROLLER://127.0.0.1:$node->{controller_port}",
		'advertised.listeners' => "PLAINTEXT://127.0.0.1:$node->{port}",
		'log.dirs' => "$node->{dir}/data",
		'auto.create.topics.enable' => 'false',
		'default.replication.factor' => $replicas,
		'min.insync.replicas' => $replicas > 1 ? 2 : 1,
		'offsets.topic.replication.factor' => $replicas,
		'offsets.topic.num.partitions' => 4,
		'transaction.state.log.replication.factor' => $replicas,
		'transaction.state.log.min.isr' => $replicas > 1 ? 2 : 1,
		'transaction.state.log.num.partitions' => 4,
		'share.coordinator.state.topic.replication.factor' => $replicas,
		'share.coordinator.state.topic.min.isr' => 1,
		'group.initial.rebalance.delay.ms' => 0,
		%{ $self->{conf} });

	make_path("$node->{dir}/data");
	write_file("$node->{dir}/server.properties",
		map { "$_=$conf{$_}\n" } sort keys %conf);
	write_file(
		"$node->{dir}/data/meta.properties",
		"version=1\n",
		"cluster.id=$cluster_id\n",
		"node.id=$node->{id}\n",
		'directory.id=' . new_uuid() . "\n");
	system('cp', "$home/jars/formatted/bootstrap.checkpoint",
		"$node->{dir}/data/") == 0
	  or croak "could not copy the formatted storage";
	return;
}

sub launch
{
	my ($self, $node) = @_;
	croak "node $node->{id} is running" if $node->{pid};
	my @command = (
		'setpriv', '--pdeathsig', 'KILL',
		'java', "-Xms$self->{heap}", "-Xmx$self->{heap}",
		@{ $self->{java} },
		"-Dlog4j2.configurationFile=$home/log4j2.properties",
		'-cp', "$home/jars/*", 'kafka.Kafka',
		"$node->{dir}/server.properties");

	my $pid = fork // croak "could not fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null')
		  && open(STDOUT, '>>', $node->{log})
		  && open(STDERR, '>&', \*STDOUT)
		  && chdir($node->{dir})
		  && exec(@command)
		  or POSIX::_exit(127);
	}
	$node->{pid} = $pid;
	push @running, $self unless grep { $_ == $self } @running;
	return;
}

# A node is ready when it answers itself and lists every running node.
sub wait_ready
{
	my ($self, $id) = @_;
	my $node = $self->{node}{$id};
	my %wanted = map { $_->{id} => 1 } grep { $_->{pid} } $self->all_nodes;
	$self->wait_until(
		"node $id serves",
		sub {
			croak "node $id has ended\n" . log_end($node)
			  if waitpid($node->{pid}, WNOHANG) != 0;
			return 0 unless can_connect($node->{port});
			my ($code, @lines) =
			  run_admin("127.0.0.1:$node->{port}", 'metadata');
			return 0 if $code;
			my %alive = map { /^broker (\d+)$/ ? ($1 => 1) : () } @lines;
			return !grep { !$alive{$_} } keys %wanted;
		});
	return;
}

sub wait_topic
{
	my ($self, $name, $partitions) = @_;
	for my $node (grep { $_->{pid} } $self->all_nodes)
	{
		my @found;
		$self->wait_until(
			"node $node->{id} knows topic $name",
			sub {
				my ($code, @lines) =
				  run_admin("127.0.0.1:$node->{port}", 'metadata', $name);
				@found = $code ? () : map { parse_partition($_) } @lines;
				return @found == $partitions
				  && !grep { $_->{leader} < 0 } @found;
			});
	}
	return;
}

sub end_process
{
	my ($self, $id, $signal) = @_;
	my $pid = $self->pid($id);
	kill $signal, $pid;
	$self->wait_until("node $id has ended",
		sub { waitpid($pid, WNOHANG) != 0 });
	delete $self->{node}{$id}{pid};
	return;
}

sub run_admin
{
	my @command = ("$home/kafka_admin", @_);
	my $pid = open(my $pipe, '-|') // croak "could not fork: $!";
	if ($pid == 0)
	{
		open(STDERR, '>&', \*STDOUT);
		exec(@command) or POSIX::_exit(127);
	}
	chomp(my @lines = <$pipe>);
	close $pipe;
	return ($?, @lines);
}

sub parse_partition
{
	my ($line) = @_;
	my ($kind, undef, $number, $leader, $replicas, $in_sync) =
	  split / /, $line, -1;
	return unless $kind eq 'partition';
	return {
		number => $number,
		leader => $leader,
		replicas => [ split /,/, $replicas ],
		in_sync => [ split /,/, $in_sync ]
	};
}

# Ports nobody listens on, below the range the kernel gives to clients.
sub free_ports
{
	my ($count) = @_;
	my @sockets;
	while (@sockets < $count)
	{
		my $socket = IO::Socket::INET->new(
			LocalAddr => '127.0.0.1',
			LocalPort => 12000 + int(rand(18000)),
			Proto => 'tcp',
			Listen => 1);
		push @sockets, $socket if $socket;
	}
	return map { $_->sockport } @sockets;
}

sub can_connect
{
	my ($port) = @_;
	return defined IO::Socket::INET->new(
		PeerAddr => '127.0.0.1',
		PeerPort => $port,
		Proto => 'tcp');
}

# The state letter of a process, as in ps.
sub process_state
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/stat") or return '';
	my ($state) = <$file> =~ /.*\) (\S)/;
	return $state;
}

# A random UUID in the form Kafka writes them; it refuses a leading dash.
sub new_uuid
{
	my $uuid;
	do
	{
		$uuid = encode_base64url(pack('L4', map { rand(2**32) } 1 .. 4));
	} while ($uuid =~ /^-/);
	return $uuid;
}

sub write_file
{
	my ($path, @lines) = @_;
	open(my $file, '>', $path) or croak "could not write $path: $!";
	print $file @lines;
	close $file or croak "could not write $path: $!";
	return;
}

sub log_end
{
	my ($node) = @_;
	open(my $file, '<', $node->{log}) or return "node $node->{id}: no log";
	my @lines = <$file>;
	my $from = @lines > 15 ? @lines - 15 : 0;
	return join '', "--- end of $node->{log}:\n", @lines[ $from .. $#lines ];
}

END
{
	if ($$ == $owner)
	{
		local $?;
		$_->stop for @running;
	}
}

1;
