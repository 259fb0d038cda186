
=pod

=head1 NAME

Bench::Contender::Polling - a polling relay that deletes what it has sent (polling.c); polling_large: 10,000 rows a batch

=cut

package Bench::Contender::Polling;

use strict;
use warnings;

use parent -norequire, 'Bench::Contender';

# Its messages are gone when they are sent, so the relay notes their xids.
use constant TABLE => 'queue';

sub create
{
	my ($self) = @_;
	$self->make_database;
	$self->{env}->sql($self->{database}, <<"END");
CREATE TABLE @{[TABLE]} (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	event_id uuid NOT NULL DEFAULT gen_random_uuid(),
	topic text NOT NULL,
	key bytea,
	payload bytea,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
CREATE TABLE sent (event_id uuid, xid xid);
END
	$self->prepare_database;
	return;
}

sub store_statement
{
	return "INSERT INTO @{[TABLE]} (event_id, topic, key, payload) "
	  . "VALUES (event_id(i), topic, convert_to(key_of(i), 'UTF8'), convert_to(payload, 'UTF8'))";
}

sub script
{
	return "INSERT INTO @{[TABLE]} (topic, key, payload) "
	  . "VALUES (:topic, convert_to(:key::text, 'UTF8'), convert_to(:payload, 'UTF8'));";
}

sub start
{
	my ($self, $topic, $purpose) = @_;
	my $env = $self->{env};
	$self->{sent} = $purpose eq 'latency' ? "$env->{dir}/$self->{name}.sent" : undef;
	$self->{process} = $env->start("$env->{programs}/polling", '-b', $env->{bootstrap}, '-d', "dbname=$self->{database}",
		'-q', TABLE, '-h', $env->{headers}, '-s', '/postgresql/bench_relay',
		'-n', $self->{name} eq 'polling_large' ? 10000 : 1000,
		$env->producer_properties(1), (defined $self->{sent} ? ('-o', $self->{sent}) : ()));
	Bench::Environment::read_line($self->{process});
	return;
}

sub stop
{
	my ($self) = @_;
	$self->{env}->finish($self->{process}, 'TERM');
	return;
}

sub pid
{
	my ($self) = @_;
	return $self->{process}{pid};
}

sub pid_before_start
{
	return undef;
}

sub committed
{
	my ($self) = @_;
	$self->{env}->sql($self->{database}, "COPY sent FROM '$self->{sent}'");
	return $self->times_of('SELECT event_id, ' . Bench::Contender::commit_nanoseconds('xid') . ' FROM sent');
}

1;
