
=pod

=head1 NAME

Bench::Contender::Debezium - Debezium with the outbox EventRouter on Kafka Connect

=head1 DESCRIPTION

debezium: all settings as they come, but for what makes it find its table, for
strings instead of JSON with a schema, and without headers about itself. debezium_tuned: large batches and
queue, a pipelined idempotent producer, and a poll interval of 10 ms; where
latency is measured 1 ms, with small batches and without lingering.

The worker of Kafka Connect is started once and stays, so that its Java machine
is warm (Bench::Connect). Each run has a connector, a publication and a
replication slot of its own. Rows stay in the table: Debezium deletes none, and
its users do that by themselves.

=cut

package Bench::Contender::Debezium;

use strict;
use warnings;

use parent -norequire, 'Bench::Contender';

use Carp;
use Time::HiRes qw(time sleep);

use Bench::Connect;

use constant START_SECONDS => 120;

my %queue = (
	bulk => { 'poll.interval.ms' => 10, 'max.batch.size' => 16384, 'max.queue.size' => 131072 },
	latency => { 'poll.interval.ms' => 1 });
my %producer = (
	'enable.idempotence' => 'true',
	'max.in.flight.requests.per.connection' => 5,
	'compression.type' => 'none');
my %producer_for = (
	bulk => { 'linger.ms' => 5, 'batch.size' => 262144, 'buffer.memory' => 134217728 },
	latency => { 'linger.ms' => 0 });

my $connectors = 0;

sub create
{
	my ($self) = @_;
	my $env = $self->{env};
	$env->{connect} //= Bench::Connect->new($env);
	$self->make_database;
	$env->sql($self->{database}, <<"END");
CREATE TABLE outbox (
	id uuid PRIMARY KEY,
	aggregatetype varchar(255) NOT NULL,
	aggregateid varchar(255) NOT NULL,
	type varchar(255) NOT NULL,
	payload text
);
CREATE PUBLICATION bench FOR TABLE outbox WITH (publish = 'insert');
END
	# what is committed from now on is sent when it starts
	$env->sql($self->{database}, "SELECT pg_create_logical_replication_slot('$self->{name}', 'pgoutput')");
	$self->prepare_database;
	return;
}

sub drop
{
	my ($self) = @_;
	$self->{env}->sql('postgres', "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '$self->{name}'");
	$self->SUPER::drop;
	return;
}

sub store_statement
{
	return "INSERT INTO outbox VALUES (event_id(i), topic, key_of(i), 'bench', payload)";
}

sub script
{
	return "INSERT INTO outbox VALUES (gen_random_uuid(), :topic, :key, 'bench', :payload);";
}

sub start
{
	my ($self, $topic, $purpose) = @_;
	my $env = $self->{env};
	my %tuning;
	if ($self->{name} eq 'debezium_tuned')
	{
		my %overrides = (%producer, %{ $producer_for{$purpose} });
		%tuning = (%{ $queue{$purpose} }, map { ("producer.override.$_" => $overrides{$_}) } keys %overrides);
	}
	# a connector that had the name before would leave its offsets behind
	$self->{connector} = "$self->{name}_" . ++$connectors;
	$env->{connect}->create($self->{connector}, {
		'connector.class' => 'io.debezium.connector.postgresql.PostgresConnector',
		'tasks.max' => 1,
		'database.hostname' => '127.0.0.1',
		'database.port' => $env->{port},
		'database.user' => 'postgres',
		'database.password' => 'none',
		'database.dbname' => $self->{database},
		'topic.prefix' => $self->{connector},
		'plugin.name' => 'pgoutput',
		'publication.name' => 'bench',
		'publication.autocreate.mode' => 'disabled',
		'slot.name' => $self->{name},
		'snapshot.mode' => 'no_data',
		'table.include.list' => 'public.outbox',
		'tombstones.on.delete' => 'false',
		# headers of its own, which the others have no use for
		'extended.headers.enabled' => 'false',
		'transforms' => 'outbox',
		'transforms.outbox.type' => 'io.debezium.transforms.outbox.EventRouter',
		'transforms.outbox.route.topic.replacement' => '${routedByValue}',
		%tuning
	});
	my $deadline = time + START_SECONDS;
	until ($env->sql('postgres', "SELECT active FROM pg_replication_slots WHERE slot_name = '$self->{name}'") eq 't')
	{
		$env->{connect}->check($self->{connector});
		croak "connector $self->{connector} does not start" if time > $deadline;
		sleep 0.1;
	}
	return;
}

sub stop
{
	my ($self) = @_;
	my $env = $self->{env};
	my $deadline = time + START_SECONDS;
	$env->{connect}->delete($self->{connector});
	until ($env->sql('postgres', "SELECT active FROM pg_replication_slots WHERE slot_name = '$self->{name}'") eq 'f')
	{
		croak "connector $self->{connector} does not end" if time > $deadline;
		sleep 0.1;
	}
	return;
}

sub pid
{
	my ($self) = @_;
	return $self->{env}{connect}->pid;
}

sub committed
{
	my ($self) = @_;
	return $self->times_of('SELECT id, ' . Bench::Contender::commit_nanoseconds('xmin') . ' FROM outbox');
}

1;
