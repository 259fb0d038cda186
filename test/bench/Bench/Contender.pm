
=pod

=head1 NAME

Bench::Contender - one way from a committed row to a Kafka record

=head1 SYNOPSIS

  my $contender = Bench::Contender::make($env, 'polling');
  $contender->create;
  $contender->load(topic => 'orders', rows => 1000000, per_transaction => 1);
  $contender->start('orders', 'bulk');
  $contender->wait_sent('orders', 1000000);
  $contender->stop;
  $contender->drop;

=head1 DESCRIPTION

Every contender has a database of its own, made anew for each run, with the
table that it reads; what is published into it depends on the number of the
message alone (see functions_sql()), so that all contenders have to send the
same records: key, 200 bytes of JSON or another length, and the event id in a
header.

=cut

package Bench::Contender;

use strict;
use warnings;

use Carp;
use Time::HiRes qw(time sleep);

use constant {
	SESSIONS => 2,
	WAIT_SECONDS => 3600,
	POLL_SECONDS => 0.25,
};

my %class_of = (
	relay => 'Relay',
	relay_eos => 'Relay',
	bare => 'Bare',
	polling => 'Polling',
	polling_large => 'Polling',
	debezium => 'Debezium',
	debezium_tuned => 'Debezium');

# What a message's number makes of it.
my $functions = <<'END';
CREATE FUNCTION event_id(i int) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
	SELECT md5(concat('event', i))::uuid
$$;
CREATE FUNCTION key_of(i int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$
	SELECT (hashint4(i) & 65535)::text
$$;
CREATE FUNCTION note_of(i int, length int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$
	SELECT left(CASE WHEN length <= 128
				THEN concat(md5((-i)::text), md5(concat(i, 'a')), md5(concat(i, 'b')), md5(concat(i, 'c')))
				ELSE (SELECT string_agg(md5(concat(i, '.', n)), '' ORDER BY n) FROM generate_series(1, length / 32 + 1) AS n)
				END, length)
$$;
CREATE FUNCTION payload_of(i int, size int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$
	SELECT concat('{"order": ', lpad(i::text, 12), ', "customer": "', md5(i::text),
				  '", "note": "', note_of(i, size - 83), '"}')
$$;
CREATE FUNCTION topic_of(topic text, i int, topics int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$
	SELECT CASE WHEN topics = 1 THEN topic ELSE concat(topic, '_', i % topics) END
$$;
END

=head1 FUNCTIONS

=over

=item Bench::Contender::make($env, $name)

The contender of that name.

=item Bench::Contender::names()

All there are.

=cut

sub make
{
	my ($env, $name) = @_;
	my $class = $class_of{$name} // croak "there is no contender \"$name\"";
	$class = "Bench::Contender::$class";
	(my $file = "$class.pm") =~ s{::}{/}g;
	require $file;
	return $class->new(env => $env, name => $name, database => "bench_$name");
}

sub names
{
	my @names = sort keys %class_of;
	return @names;
}

sub new
{
	my ($class, %fields) = @_;
	return bless \%fields, $class;
}

# Its database, without a table.
sub make_database
{
	my ($self) = @_;
	$self->drop;
	$self->{env}->sql('postgres', "CREATE DATABASE $self->{database}");
	return;
}

sub drop
{
	my ($self) = @_;
	$self->{env}->drop_database($self->{database});
	return;
}

=back

=head1 METHODS

What a contender has to have of its own:

=over

=item create, drop

Its database with nothing in it, and its end.

=item store_statement

SQL that stores message number "i" for the topic "topic" of the payload
"payload" (variables of PL/pgSQL).

=item script

The same for pgbench, with :topic, :payload and :key.

=item start($topic, $purpose), stop

Begin to send, and end. purpose: "bulk" or "latency", for those that have to be
told. After stop it may be started again.

=item pid

The process that sends.

=item committed

After stop: the event ids of what was sent, and the wall-clock time of their
commits in nanoseconds, as a hash.

=cut

# Functions and procedure that fill a database.
sub prepare_database
{
	my ($self) = @_;
	$self->{env}->sql($self->{database}, $functions . <<"END");
CREATE PROCEDURE load(topic_name text, first int, last int, per_transaction int, size int, topics int)
LANGUAGE plpgsql AS \$\$
DECLARE
	topic text;
	payload text;
BEGIN
	FOR i IN first .. last LOOP
		topic := topic_of(topic_name, i, topics);
		payload := payload_of(i, size);
		@{[$self->store_statement]};
		IF i % per_transaction = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
	COMMIT;
END \$\$
END
	return;
}

=item load(topic => ..., rows => ..., per_transaction => 1, size => 200, topics => 1)

Publish the messages from number 1 on, in two sessions. With several topics they
are called topic_0, topic_1, and so on.

=cut

sub load
{
	my ($self, %options) = @_;
	my $env = $self->{env};
	my ($rows, $per_transaction) = ($options{rows}, $options{per_transaction} // 1);
	local $ENV{PGOPTIONS} = '-c synchronous_commit=off';
	my @sessions = map {
		my $first = int($rows * $_ / SESSIONS) + 1;
		my $last = int($rows * ($_ + 1) / SESSIONS);
		$env->start("$env->{bindir}/psql", '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $self->{database}, '-c',
			"CALL load('$options{topic}', $first, $last, $per_transaction, "
			. ($options{size} // 200) . ', ' . ($options{topics} // 1) . ')')
	} 0 .. SESSIONS - 1;
	$env->finish($_) for @sessions;
	return;
}

=item wait_sent($topic, $count)

Until the topic holds that many records. Looks four times a second, so it takes
a little longer than the sending.

=cut

sub wait_sent
{
	my ($self, $topic, $count) = @_;
	my $deadline = time + WAIT_SECONDS;
	my $seen;
	while (($seen = $self->{env}->records_in($topic)) < $count)
	{
		croak "$self->{name} has sent $seen of $count" if time > $deadline;
		sleep POLL_SECONDS;
	}
	return;
}

=item pid_before_start

Its process if there is one before start, else undef.

=item own_cpu

After wait_sent: the seconds of CPU time the sending took, if the contender
measures that itself, else undef.

=item pgbench_script

The path of a file with script().

=back

=cut

sub pid_before_start
{
	my ($self) = @_;
	return $self->pid;
}

sub own_cpu
{
	return undef;
}

sub pgbench_script
{
	my ($self) = @_;
	my $path = "$self->{env}{dir}/$self->{name}.sql";
	open(my $file, '>', $path) or croak "$path: $!";
	print $file "\\set key random(1, 50000)\n", $self->script, "\n";
	close $file or croak "$path: $!";
	return $path;
}

# SQL for a time of commit as nanoseconds.
sub commit_nanoseconds
{
	my ($xid) = @_;
	return "(extract(epoch FROM pg_xact_commit_timestamp($xid)) * 1000000)::int8 * 1000";
}

# The lines "id<TAB>nanoseconds" of a query as a hash.
sub times_of
{
	my ($self, $query) = @_;
	my %times = map { split /\|/ } split /\n/, $self->{env}->sql($self->{database}, $query);
	return \%times;
}

1;
