
=pod

=head1 NAME

Bench::Contender::Bare - a plain librdkafka producer: the limit

=head1 DESCRIPTION

It has the records in its memory when it starts and sends them with the same
librdkafka properties as the relay. It has no outbox to publish to, so it takes
part in drains only; Bench::Latency has it as the floor.

=cut

package Bench::Contender::Bare;

use strict;
use warnings;

use parent -norequire, 'Bench::Contender';

sub create
{
	my ($self) = @_;
	$self->make_database;
	$self->prepare_database;
	return;
}

sub store_statement
{
	return 'NULL';
}

# The columns are those that producer.c asks for.
sub load
{
	my ($self, %options) = @_;
	my $env = $self->{env};
	my $size = $options{size} // 200;
	my ($fs, $rs) = ("E'\\x1c'", "E'\\x1e'");
	my $headers =
	  $env->{headers} eq 'plain'
	  ? "concat('id', $fs, event_id(i), $rs)"
	  : "concat('ce_specversion', $fs, '1.0', $rs, 'ce_source', $fs, '/postgresql/bench_relay', $rs, "
	  . "'ce_type', $fs, '$options{topic}', $rs, 'ce_id', $fs, event_id(i), $rs)";
	$self->{producer} = $env->start_producer($options{topic}, '-d', "dbname=$self->{database}", '-q', <<"END");
SELECT convert_to(key_of(i), 'UTF8'), convert_to(payload_of(i, $size), 'UTF8'),
	   floor(extract(epoch FROM clock_timestamp()) * 1000)::int8, NULL::int4, $headers
FROM generate_series(1, $options{rows}) AS i
END
	return;
}

# Its standard input ends: it goes.
sub start
{
	my ($self) = @_;
	close $self->{producer}{in};
	return;
}

sub wait_sent
{
	my ($self) = @_;
	$self->{result} = Bench::Environment::parse_pairs(Bench::Environment::read_line($self->{producer}));
	return;
}

sub stop
{
	my ($self) = @_;
	$self->{env}->finish($self->{producer});
	return;
}

sub own_cpu
{
	my ($self) = @_;
	return $self->{result}{cpu};
}

sub pid
{
	my ($self) = @_;
	return $self->{producer}{pid};
}

1;
