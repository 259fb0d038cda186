
=pod

=head1 NAME

Bench::Contender::Relay - the extension; relay_eos: with delivery = exactly_once

=cut

package Bench::Contender::Relay;

use strict;
use warnings;

use parent -norequire, 'Bench::Contender';

sub create
{
	my ($self) = @_;
	# the same records from both kinds of delivery
	my %settings = (source => '/postgresql/bench_relay', %{ $self->{settings} // {} });
	$settings{delivery} = 'exactly_once' if $self->{name} eq 'relay_eos';
	$self->{env}->new_database($self->{database}, %settings);
	$self->{env}->pause($self->{database});
	$self->prepare_database;
	return;
}

sub store_statement
{
	return 'PERFORM outbox.publish(topic, payload, key_of(i), event_id => event_id(i))';
}

sub script
{
	return 'SELECT outbox.publish(:topic, :payload::text, :key::text);';
}

sub start
{
	my ($self) = @_;
	$self->{env}->sql($self->{database}, 'SELECT outbox.resume()');
	return;
}

sub stop
{
	my ($self) = @_;
	$self->{env}->pause($self->{database});
	return;
}

sub pid
{
	my ($self) = @_;
	return $self->{env}->relay_pid($self->{database});
}

# It can say so itself, whatever the topics hold besides.
sub wait_sent
{
	my ($self) = @_;
	$self->{env}->wait_empty($self->{database});
	return;
}

sub committed
{
	my ($self) = @_;
	return $self->times_of('SELECT event_id, ' . Bench::Contender::commit_nanoseconds('xid::xid') . ' FROM outbox.message');
}

1;
