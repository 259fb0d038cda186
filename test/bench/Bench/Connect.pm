
=pod

=head1 NAME

Bench::Connect - a worker of Kafka Connect, with Debezium in it

=head1 DESCRIPTION

One worker in distributed mode, as it is run. The jars come from
test/bench/connect, where make fetches them once.

=cut

package Bench::Connect;

use strict;
use warnings;

use Carp;
use HTTP::Tiny;
use JSON::PP;
use POSIX qw(:sys_wait_h);
use Time::HiRes qw(time sleep);

use OutboxTest::Kafka;

use constant { START_SECONDS => 180, HEAP => '2g' };

=head1 METHODS

=over

=item Bench::Connect->new($env)

Start it and wait until it answers.

=cut

sub new
{
	my ($class, $env) = @_;
	my ($port) = OutboxTest::Kafka::free_ports(1);
	my $self = bless { env => $env, port => $port, log => "$env->{dir}/connect.log" }, $class;
	my $home = "$env->{programs}/connect";
	my %conf = (
		'bootstrap.servers' => $env->{bootstrap},
		'group.id' => 'bench',
		'listeners' => "http://127.0.0.1:$port",
		'key.converter' => 'org.apache.kafka.connect.storage.StringConverter',
		'value.converter' => 'org.apache.kafka.connect.storage.StringConverter',
		'connector.client.config.override.policy' => 'All',
		'offset.flush.interval.ms' => 10000,
		'plugin.discovery' => 'service_load',
		(map { ("$_.storage.topic" => "connect_$_", "$_.storage.replication.factor" => 1) } qw(config offset status)));

	my $path = "$env->{dir}/connect.properties";
	open(my $file, '>', $path) or croak "$path: $!";
	print $file "$_=$conf{$_}\n" for sort keys %conf;
	close $file or croak "$path: $!";

	my $pid = fork // croak "fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null')
		  && open(STDOUT, '>>', $self->{log})
		  && open(STDERR, '>&', \*STDOUT)
		  && exec('setpriv', '--pdeathsig', 'KILL', 'java', '-Xms256m', '-Xmx' . HEAP, '-XX:+UseG1GC',
			"-Dlog4j2.configurationFile=$home/log4j2.properties", '-cp', "$home/jars/*",
			'org.apache.kafka.connect.cli.ConnectDistributed', $path)
		  or POSIX::_exit(127);
	}
	$self->{pid} = $pid;
	$self->{http} = HTTP::Tiny->new(timeout => 60);
	my $deadline = time + START_SECONDS;
	until ($self->{http}->get("http://127.0.0.1:$port/connectors")->{success})
	{
		croak "Kafka Connect has ended\n" . $self->log_end if waitpid($pid, WNOHANG) != 0;
		croak "Kafka Connect does not answer\n" . $self->log_end if time > $deadline;
		sleep 0.2;
	}
	return $self;
}

sub pid
{
	my ($self) = @_;
	return $self->{pid};
}

sub stop
{
	my ($self) = @_;
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

=item $connect->create($name, \%config), $connect->delete($name)

=item $connect->check($name)

Dies if the connector or its task has failed.

=back

=cut

sub create
{
	my ($self, $name, $config) = @_;
	$self->request('PUT', "/connectors/$name/config", encode_json($config));
	return;
}

sub delete
{
	my ($self, $name) = @_;
	$self->request('DELETE', "/connectors/$name");
	return;
}

sub check
{
	my ($self, $name) = @_;
	my $answer = $self->{http}->get("http://127.0.0.1:$self->{port}/connectors/$name/status");
	croak "connector $name has failed: $answer->{content}\n" . $self->log_end
	  if $answer->{success} && $answer->{content} =~ /"FAILED"/;
	return;
}

# 409: the worker is being rebalanced.
sub request
{
	my ($self, $method, $path, $content) = @_;
	my $deadline = time + START_SECONDS;
	for (;;)
	{
		my $answer = $self->{http}->request($method, "http://127.0.0.1:$self->{port}$path",
			defined $content ? { headers => { 'content-type' => 'application/json' }, content => $content } : {});
		return if $answer->{success};
		croak "$method $path: $answer->{status} $answer->{content}\n" . $self->log_end
		  if $answer->{status} != 409 || time > $deadline;
		sleep 0.2;
	}
	return;
}

sub log_end
{
	my ($self) = @_;
	open(my $file, '<', $self->{log}) or return "no log";
	my @lines = <$file>;
	my $from = @lines > 20 ? @lines - 20 : 0;
	return join '', "--- end of $self->{log}:\n", @lines[ $from .. $#lines ];
}

1;
