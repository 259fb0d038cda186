
=pod

=head1 NAME

OutboxTest::Trouble - two databases with the same load, one of them in trouble

=head1 SYNOPSIS

  my $trouble = OutboxTest::Trouble->new($kafka, topics => [ 'wide', 'other' ]);
  $trouble->start;
  my @before = $trouble->measure($seconds, \&count);
  # ... make trouble for database "troubled" ...
  my @during = $trouble->measure($seconds, \&count);
  $trouble->report($what, \@before, \@during);
  $trouble->finish;

=head1 DESCRIPTION

For test/bench/trouble.sh, which explains the environment. The databases are
"troubled" and "calm"; in each a writer publishes to topics of its own, named
troubled_NAME and calm_NAME, with a number, 200 bytes and 1,000 keys.

=cut

package OutboxTest::Trouble;

use strict;
use warnings;

use Time::HiRes qw(time sleep);

use OutboxTest;
use Test::More;

our @databases = qw(calm troubled);

sub minutes { return $ENV{MINUTES} // 10; }

=head1 METHODS

=over

=item OutboxTest::Trouble->new($kafka, topics => [...], conf => {...})

A server with the two databases; the topics are there already.

=cut

sub new
{
	my ($class, $kafka, %options) = @_;
	my $self = bless { kafka => $kafka, %options }, $class;
	$self->{node} = new_node('trouble',
		kafka => $kafka,
		conf => {
			'shared_buffers' => '512MB', 'max_wal_size' => '8GB', 'checkpoint_timeout' => '30min',
			'fsync' => 'on', %{ $options{conf} // {} } });
	for my $database (@databases)
	{
		new_database($self->{node}, $database);
		$self->{node}->safe_psql($database, q{
			CREATE TABLE stop ();
			CREATE PROCEDURE load(topics text[], per_transaction int, pause float8) LANGUAGE plpgsql AS $$
			DECLARE
				n bigint := 0;
			BEGIN
				WHILE NOT EXISTS (SELECT FROM stop) LOOP
					PERFORM outbox.publish(t, rpad((n + i)::text, 200, ' '), key => 'k' || (n + i) % 1000)
						FROM unnest(topics) AS t, generate_series(1, per_transaction) AS i;
					n := n + per_transaction;
					COMMIT;
					PERFORM pg_sleep(pause);
				END LOOP;
			END $$});
	}
	return $self;
}

=item $trouble->start

The writers, and a while for everything to become warm.

=cut

sub start
{
	my ($self) = @_;
	my $pause = ($ENV{PACE_MS} // 5) / 1000;
	my $count = $ENV{PER_TRANSACTION} // 10;
	for my $database (@databases)
	{
		my $topics = join ', ', map { "'${database}_$_'" } @{ $self->{topics} };
		my $load = $self->{node}->background_psql($database, timeout => 120 + 60 * minutes());
		$load->query_until(qr/started/, "\\echo started\nCALL load(ARRAY[$topics], $count, $pause);\n");
		$self->{load}{$database} = $load;
	}
	for my $database (@databases)
	{
		wait_until("messages flow in $database",
			sub { relay_status($self->{node}, $database)->{published} > 1000 }, 60);
	}
	sleep 60 * minutes() / 20;
	return;
}

=item $trouble->measure($seconds, $count)

Messages per second, by database: $count->($database) says how many there are.

=cut

sub measure
{
	my ($self, $seconds, $count) = @_;
	my %at = map { $_ => [ $count->($_), time ] } @databases;
	sleep $seconds;
	return { map { $_ => ($count->($_) - $at{$_}[0]) / (time - $at{$_}[1]) } @databases };
}

=item $trouble->published($database, $topic)

What the relay counts as acknowledged of a topic.

=cut

sub published
{
	my ($self, $database, $topic) = @_;
	return $self->{node}->safe_psql($database,
		"SELECT coalesce(sum(published), 0) FROM outbox.topic_status WHERE topic = '${database}_$topic'");
}

=item $trouble->report($what, $before, $during)

Two results of measure(), as a line; returns the ratio.

=cut

sub report
{
	my ($self, $what, $before, $during) = @_;
	my %ratio = map { $_ => $during->{$_} / ($before->{$_} || 1) } @databases;
	diag(sprintf '%s: troubled %.0f/s, before %.0f/s; calm %.0f/s, before %.0f/s; ratio %.3f / %.3f = %.3f',
		$what, $during->{troubled}, $before->{troubled}, $during->{calm}, $before->{calm},
		$ratio{troubled}, $ratio{calm}, $ratio{troubled} / ($ratio{calm} || 1));
	return $ratio{troubled} / ($ratio{calm} || 1);
}

=item $trouble->stop_load, $trouble->finish

End the writers; then wait until all is delivered, and compare the numbers of
messages.

=back

=cut

sub stop_load
{
	my ($self) = @_;
	for my $database (@databases)
	{
		my $load = delete $self->{load}{$database} or next;
		$self->{node}->safe_psql($database, 'INSERT INTO stop DEFAULT VALUES');
		$load->query_safe('SELECT 1');
		$load->quit;
	}
	return;
}

sub finish
{
	my ($self) = @_;
	$self->stop_load;
	for my $database (@databases)
	{
		my $start = time;
		wait_delivered($self->{node}, $database, 600);
		diag(sprintf '%s: all delivered after %.1f s', $database, time - $start);
		my $stored = $self->{node}->safe_psql($database, 'SELECT last_value FROM outbox.message_id');
		my $arrived = 0;
		$arrived += $self->{kafka}->message_count("${database}_$_") for @{ $self->{topics} };
		cmp_ok($arrived, '>=', $stored - ($self->{given_up} // 0), "$database: as many arrived as were published, at least");
		diag("$database: " . ($arrived - $stored) . ' more than that');
	}
	$self->{node}->stop;
	return;
}

1;
