
=pod

=head1 NAME

Chaos::Server - a PostgreSQL primary, and if wanted a synchronous standby

=head1 DESCRIPTION

Two ports; conninfo() names both and takes the one that can be written to, so
clients follow a promotion by connecting again. After a promotion the old
primary is thrown away, and a new standby takes its port.

The standby is synchronous as soon as it has caught up, and not before: until
then nobody waits for it. It counts as fit for promotion from that moment on,
when everything that was committed without it has reached it. A transaction
that waits for the standby is not visible before the standby has it, so no
message of it can be sent that a promotion would take back; one that does not
wait (synchronous_commit = off or local) can, unless the relay itself waits
(outbox_kafka.wait_for_standby). guarded() says whether it does.

=cut

package Chaos::Server;

use strict;
use warnings;

use Carp;
use File::Path qw(rmtree);
use Time::HiRes qw(time sleep);

use Chaos::Process;
use OutboxTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

=head1 METHODS

=over

=item Chaos::Server->new(kafka => $kafka, standby => $wanted, conf => \%conf)

Started, with the extension in the database a.

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		database => 'a',
		made => 1,
		standby_wanted => $options{standby},
		slowest_stop => 0,
		slowest_orphan => 0,
		logs => []
	}, $class;

	$self->{primary} = new_node(
		'pg1',
		kafka => $options{kafka},
		init => { allows_streaming => 1 },
		conf => {
			'restart_after_crash' => 'on',
			'fsync' => 'on',
			'shared_buffers' => '32MB',
			'max_connections' => 80,
			'max_prepared_transactions' => 100,
			'max_wal_size' => '1GB',
			'wal_keep_size' => '512MB',
			'wal_receiver_status_interval' => '1s',
			'wal_retrieve_retry_interval' => '200ms',
			'synchronous_standby_names' => '',
			%{ $options{conf} // {} }
		});
	$self->note_log($self->{primary});
	new_database($self->{primary}, $self->{database});

	my $guard = $self->query(
		q{SELECT count(*) FROM pg_settings WHERE name = 'outbox_kafka.wait_for_standby'});
	$self->{guarded} = $guard ? 1 : 0;
	if ($self->{standby_wanted})
	{
		if ($guard)
		{
			$self->{primary}->append_conf('postgresql.conf',
				'outbox_kafka.wait_for_standby = on');
			$self->{primary}->reload;
		}
		$self->{other_port} = PostgreSQL::Test::Cluster::get_free_port();
		$self->renew_standby or croak 'no standby could be made';
	}
	return $self;
}

sub primary  { my ($self) = @_; return $self->{primary}; }
# After a promotion without a new standby yet, nothing is sent: that is what
# wait_for_standby promises. At the end the relay is let go. True if that was needed.
sub release_guard
{
	my ($self) = @_;
	return 0 if !$self->{guarded} || !$self->{standby_wanted} || $self->{standby};
	$self->{primary}->append_conf('postgresql.conf', 'outbox_kafka.wait_for_standby = off');
	$self->{primary}->reload;
	return 1;
}

sub database { my ($self) = @_; return $self->{database}; }
sub guarded  { my ($self) = @_; return $self->{guarded}; }

=item $server->logs

The log files of all servers there have been.

=cut

sub logs { my ($self) = @_; return @{ $self->{logs} }; }

sub note_log
{
	my ($self, $node) = @_;
	push @{ $self->{logs} }, $node->logfile;
	return;
}

=item $server->conninfo

For libpq: whichever of the two takes writes.

=cut

sub conninfo
{
	my ($self) = @_;
	my $host = $self->{primary}->host;
	my @ports = ($self->{primary}->port, $self->{other_port} // ());
	return join(' ',
		'host=' . join(',', ($host) x @ports),
		'port=' . join(',', @ports),
		"dbname=$self->{database}",
		'connect_timeout=5',
		'target_session_attrs=read-write');
}

=item $server->query($sql)

Its result at the primary, or undef.

=cut

sub query
{
	my ($self, $sql, $node) = @_;
	my ($code, $result) =
	  ($node // $self->{primary})->psql($self->{database}, $sql, timeout => 20,
		timed_out => \my $late);
	return defined $code && $code == 0 && !$late ? $result : undef;
}

=item $server->ensure($seconds)

The server takes connections; it is started if it has ended. True if it does.

=cut

sub ensure
{
	my ($self, $seconds) = @_;
	my $deadline = time + ($seconds // 90);
	until (defined $self->query('SELECT 1'))
	{
		return 0 if time > $deadline;
		$self->start unless Chaos::Process::postmaster_of($self->{primary}->data_dir);
		sleep 0.1;
	}
	return 1;
}

=item $server->processes

Those of the primary; empty while it does not run.

=item $server->relay

The relay's, or undef.

=cut

sub processes
{
	my ($self) = @_;
	my $postmaster =
	  Chaos::Process::postmaster_of($self->{primary}->data_dir) or return;
	return Chaos::Process::children_of($postmaster);
}

sub relay
{
	my ($self) = @_;
	my ($relay) = grep { $_->{title} =~ /outbox_kafka relay/ } $self->processes;
	return $relay;
}

=item $server->signal($signal, $process)

To one of its processes; false when that is gone.

=cut

sub signal
{
	my ($self, $signal, $process) = @_;
	return Chaos::Process::signal_child($signal, $process,
		$self->{primary}->data_dir);
}

=item $server->stop($mode)

Returns the seconds it took.

=cut

sub stop
{
	my ($self, $mode) = @_;
	my $began = time;
	$self->{primary}->stop($mode, fail_ok => 1);
	my $took = time - $began;
	$self->{slowest_stop} = $took if $took > $self->{slowest_stop};
	return $took;
}

# A server can fail to start when it is hit while it starts: tried again.
sub start
{
	my ($self, $node) = @_;
	$node //= $self->{primary};
	for my $try (1 .. 5)
	{
		$node->{_pid} = undef;
		last if $node->start(fail_ok => 1);
		sleep 0.5;
	}
	return;
}

=item $server->kill_postmaster

SIGKILL, then wait until its processes have noticed. Returns the titles of
those that had not after 20 seconds; they are killed.

=cut

sub kill_postmaster
{
	my ($self) = @_;
	my $node = $self->{primary};
	my $postmaster = Chaos::Process::postmaster_of($node->data_dir) or return;
	my @orphans = Chaos::Process::children_of($postmaster);
	my $began = time;

	$node->{_pid} = $postmaster;
	$node->kill9;
	while (@orphans = grep { Chaos::Process::is_alive($_) } @orphans)
	{
		last if time > $began + 20;
		sleep 0.02;
	}
	my $took = time - $began;
	$self->{slowest_orphan} = $took if $took > $self->{slowest_orphan};
	kill 'KILL', $_->{pid} for @orphans;
	return map { $_->{title} } @orphans;
}

=item $server->kill_standby

SIGKILL of its postmaster. False: there is none.

=item $server->wake_standby

Start it again.

=cut

sub kill_standby
{
	my ($self) = @_;
	my $node = $self->{standby} or return 0;
	my $postmaster = Chaos::Process::postmaster_of($node->data_dir) or return 0;
	my @orphans = Chaos::Process::children_of($postmaster);

	$node->{_pid} = $postmaster;
	$node->kill9;
	my $deadline = time + 20;
	while (@orphans = grep { Chaos::Process::is_alive($_) } @orphans)
	{
		last if time > $deadline;
		sleep 0.02;
	}
	return 1;
}

sub wake_standby
{
	my ($self) = @_;
	$self->start($self->{standby});
	return;
}

=item $server->can_promote

Whether a promotion may come now. A crash ends the wait for the standby of the
transactions that were in it, and they become visible: unless the relay waits
itself, the standby must have caught up since.

=cut

sub can_promote
{
	my ($self) = @_;
	return 0 unless $self->{standby};
	return 1 if $self->{guarded};
	my $lsn = $self->query('SELECT pg_current_wal_insert_lsn()') // return 0;
	my $deadline = time + 10;
	while (time < $deadline)
	{
		my $fit = $self->query(
			qq{SELECT count(*) > 0 FROM pg_stat_replication
			   WHERE sync_state = 'sync' AND flush_lsn >= '$lsn'});
		return 1 if ($fit // '') eq 't';
		sleep 0.1;
	}
	return 0;
}

=item $server->promote

Immediate stop of the primary, promotion of the standby. Returns the time of
the last transaction that the standby knows of, in seconds since the epoch:
progress that was written later is lost with the primary.

=cut

sub promote
{
	my ($self) = @_;
	my ($old, $new) = @$self{qw(primary standby)};

	$old->stop('immediate', fail_ok => 1);

	# It has replayed what it got when it looks for more; the last bytes can be
	# a part of a record, so positions do not tell.
	wait_until(
		'the standby has replayed what it got',
		sub {
			return ($self->query(
					q{SELECT bool_or(wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval'))
						AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')
					  FROM pg_stat_activity WHERE backend_type = 'startup'}, $new) // '') eq 't';
		},
		60);
	my $known = $self->query(
		'SELECT extract(epoch FROM pg_last_xact_replay_timestamp())', $new);
	$new->promote;
	$self->{primary} = $new;
	$self->{standby} = undef;
	$self->{other_port} = $old->port;
	$old->clean_node;
	return $known;
}

=item $server->renew_standby

Make a standby if there is none, and wait for it from when it has caught up.
False: not this time.

=back

=cut

sub renew_standby
{
	my ($self) = @_;
	my $primary = $self->{primary};
	return 1 if !$self->{standby_wanted} || $self->{standby};

	my $name = 'pg' . ($self->{made} + 1);
	my $backup = $primary->backup_dir . "/$name";
	rmtree($backup);
	system_log('pg_basebackup', '-D', $backup, '-h', $primary->host, '-p',
		$primary->port, '--checkpoint', 'fast', '--no-sync') == 0
	  or return 0;

	$self->{made}++;
	my $standby =
	  PostgreSQL::Test::Cluster->new($name, port => $self->{other_port});
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	rmtree($backup);
	$standby->append_conf('postgresql.conf', q{synchronous_standby_names = ''});
	$standby->start;
	$self->note_log($standby);
	$self->{standby} = $standby;

	$primary->append_conf('postgresql.conf', q{synchronous_standby_names = '*'});
	$primary->reload;
	my $lsn = $self->query('SELECT pg_current_wal_insert_lsn()') // return 0;
	wait_until(
		'the standby has caught up',
		sub {
			return ($self->query(
					qq{SELECT count(*) > 0 FROM pg_stat_replication
					   WHERE sync_state = 'sync' AND flush_lsn >= '$lsn'}) // '') eq 't';
		},
		60);
	return 1;
}

1;
