
=pod

=head1 NAME

Chaos::Rig - load, faults at random, and the comparison afterwards

=head1 SYNOPSIS

  my $rig = Chaos::Rig->new(seed => 7, seconds => 60, say => sub { print @_, "\n" });
  my $report = $rig->run;
  is($report->{lost}, 0);

=head1 DESCRIPTION

Three Kafka brokers, a PostgreSQL server and its standby, the writers of
test/ledger, and the faults of Chaos::Plan. When the time is over everything is
brought back, the writers end, the relay sends what is left, and every event of
the ledger is looked for in Kafka.

Topics ledger_0 to ledger_2 have three replicas of which two must have a
message, ledger_3 has one: its partitions have no leader while their broker is
away. Brokers stamp records when they append them, so the log itself says when
what arrived.

What is allowed to arrive twice is counted as the documentation does: for each
end of the relay the messages in flight and as many whose progress was not
flushed (2 x max_in_flight); after a promotion also what was acknowledged after
the last transaction that the standby knew of; and the messages that a producer
had in flight when it was made anew, which the server's log says.

With delivery => 'exactly_once' nothing may arrive twice at a reader of
committed messages, and no relay may have found a position in Kafka that it does
not know. No partition is without a leader then: all topics have three replicas,
and one broker is away at a time (or all). Kafka forgets to end a transaction
where there is no leader, see README.

=cut

package Chaos::Rig;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use IPC::Run;
use JSON::PP;
use Time::HiRes qw(time sleep);

use Chaos::Brokers;
use Chaos::Plan;
use Chaos::Process;
use Chaos::Server;
use OutboxTest;
use OutboxTest::Ledger;
use PostgreSQL::Test::Utils;

my $home = abs_path(dirname(__FILE__) . '/..');

# Faults after which another relay starts.
my %ENDS_RELAY = map { $_ => 1 }
  qw(kill-backend kill-relay end-relay stop-server kill-server restart-server promote);

# A relay's own memory, never more: 32 MB may be in flight.
our $MEMORY_BOUND_MB = 200;

=head1 METHODS

=over

=item Chaos::Rig->new(%options)

seed, seconds, every (mean seconds between faults, 6), kinds (array; all),
writers (16), pace (mean pause of a writer between transactions in seconds,
0.1), max_in_flight (500), delivery (at_least_once), prove (also show that the comparison notices each
tampering), say (called with each line for the reader), settings (hash, further
settings of the server).

=cut

sub new
{
	my ($class, %options) = @_;
	return bless {
		seed => 1,
		seconds => 60,
		every => 6,
		kinds => [ sort keys %Chaos::Plan::KINDS ],
		writers => 16,
		pace => 0.1,
		max_in_flight => 500,
		delivery => 'at_least_once',
		settings => {},
		say => sub { },
		%options,
		exact => ($options{delivery} // '') eq 'exactly_once',
		timeline => [],
		findings => [],
		bursts => [],
		memory_kb => 0
	}, $class;
}

=item $rig->run

Everything; the report as a hash: lost, extra, different, out_of_order,
repeated, repeated_allowed, findings (array of text), ok and more.

=back

=cut

sub run
{
	my ($self) = @_;
	my @plan = Chaos::Plan::draw(map { $_ => $self->{$_} } qw(seed seconds every kinds));

	$SIG{$_} = sub { die "ended by SIG$_[0]\n" } for qw(INT TERM HUP);
	Chaos::Process::start_guard($PostgreSQL::Test::Utils::tmp_check);
	$self->{say}->(sprintf 'seed %s, %d s, %s, a fault every %g s on average: %s',
		$self->{seed}, $self->{seconds}, $self->{delivery}, $self->{every},
		join ' ', @{ $self->{kinds} });

	$self->set_up;
	$self->{began} = time;
	$self->load;
	$self->play(@plan);
	$self->note_event('the faults are over');
	$self->{ended} = time;
	$self->recover;
	return $self->judge;
}

sub set_up
{
	my ($self) = @_;
	# a transaction cannot end before Kafka knows which broker is away
	$self->{brokers} = Chaos::Brokers->new(
		$self->{exact}
		? (most => 1, conf => { 'broker.session.timeout.ms' => 2500, 'broker.heartbeat.interval.ms' => 500 })
		: ());
	$self->{kafka} = $self->{brokers}->kafka;
	$self->{server} = Chaos::Server->new(
		kafka => $self->{kafka},
		standby => scalar(grep { /^(?:promote|kill-standby)$/ } @{ $self->{kinds} }),
		conf => {
			'outbox_kafka.delivery' => $self->{delivery},
			'outbox_kafka.max_transaction_messages' => 2000,
			'outbox_kafka.max_in_flight' => $self->{max_in_flight},
			'outbox_kafka.retention' => '0',
			'outbox_kafka.segment_size' => '1MB',
			%{ $self->{settings} }
		});
	$self->{ledger} = OutboxTest::Ledger->new(
		$self->{server}->primary,
		$self->{server}->database,
		$self->{kafka},
		conninfo => $self->{server}->conninfo,
		topic_config => { 'message.timestamp.type' => 'LogAppendTime' },
		$self->{exact} ? () : (single_replica => ['ledger_3']));
	return;
}

# An asynchronous commit can be undone by a promotion: only a relay that waits
# for the standby may be given some.
sub load
{
	my ($self) = @_;
	my $server = $self->{server};
	my $async = $server->guarded || !$server->{standby_wanted};

	local @ENV{qw(OUTBOX_LEDGER_SECONDS OUTBOX_LEDGER_SEED)};
	delete @ENV{qw(OUTBOX_LEDGER_SECONDS OUTBOX_LEDGER_SEED)};
	$self->{ledger}->start(
		seconds => $self->{seconds},
		seed => $self->{seed},
		writers => $self->{writers},
		pace => $self->{pace},
		open => 1,
		$async ? () : (without => 'async'));
	wait_until('the writers have begun',
		sub { ($server->query(q{SELECT count(*) FROM ledger.event}) // 0) > 0 });
	return;
}

# A line of the story, at a time since the beginning.
sub note_event
{
	my ($self, $text, %more) = @_;
	my $now = time;
	push @{ $self->{timeline} }, { time => $now, text => $text, %more };
	$self->{say}->(sprintf '%8.1f  %s', $now - $self->{began}, $text);
	return;
}

sub find
{
	my ($self, $text) = @_;
	push @{ $self->{findings} }, $text;
	$self->note_event("FINDING: $text");
	return;
}

sub play
{
	my ($self, @plan) = @_;
	my $end = $self->{began} + $self->{seconds};

	while (time < $end)
	{
		$self->tend;
		if (@plan && time >= $self->{began} + $plan[0]{at})
		{
			my $fault = shift @plan;
			$self->burst($fault->{burst}) if $fault->{burst};
			$self->strike($fault);
		}
		sleep 0.05;
	}
	return;
}

# What goes on beside the faults.
sub tend
{
	my ($self) = @_;
	my $server = $self->{server};

	$self->note_event($_) for $self->{brokers}->heal;
	$self->find("broker $_ ended by itself") for $self->{brokers}->find_dead;
	if ($self->{stopped} && time >= $self->{stopped}{until})
	{
		$self->wake_relay;
	}
	if ($self->{standby_back} && time >= $self->{standby_back})
	{
		$self->wake_standby;
	}
	if (!Chaos::Process::postmaster_of($server->primary->data_dir))
	{
		$self->note_event('the server has ended, it is started');
		$server->start;
	}
	if (time >= ($self->{look_at} // 0))
	{
		$self->measure_memory;
		$self->reap_bursts;
		if ($server->{standby_wanted} && !$server->{standby} && $server->ensure(20))
		{
			$self->note_event('there is a standby again')
			  if $server->renew_standby;
		}
		$self->{look_at} = time + 1;
	}
	if (time >= ($self->{ask_at} // 0))
	{
		$self->ask_relay;
		$self->{ask_at} = time + 5;
	}
	return;
}

# When nothing was published since the last look, what the relay says of it.
sub ask_relay
{
	my ($self) = @_;
	my $answer = $self->{server}->query(
		q{SELECT concat_ws(', ', published || ' published', state, in_flight || ' in flight',
			'last error ' || extract(epoch FROM clock_timestamp() - last_error_at)::int || ' s ago: ' || last_error)
		  FROM outbox.relay_status}) // return;
	my ($published) = $answer =~ /^(\d+) published/ or return;
	$self->note_event("nothing published for 5 s: $answer")
	  if defined $self->{published} && $self->{published} == $published;
	$self->{published} = $published;
	return;
}

# How many are under way.
sub reap_bursts
{
	my ($self) = @_;
	my @left;
	for my $run (@{ $self->{bursts} })
	{
		if ($run->pumpable)
		{
			push @left, $run;
		}
		else
		{
			$run->finish;
		}
	}
	$self->{bursts} = \@left;
	return scalar @left;
}

# So many messages in one transaction, mostly without a key so that the writers
# are not kept waiting. The fault comes when it is committed and the relay's
# window full; but nobody waits long, the server may well be gone.
sub burst
{
	my ($self, $count) = @_;
	my $sql = qq{SELECT count(ledger.publish(CASE WHEN i % 20 = 0 THEN 500 + i / 20 END,
			'ledger_' || i % 4, 'burst', 'text', 2)) FROM generate_series(1, $count) AS i};
	push @{ $self->{bursts} },
	  IPC::Run::start(
		[
			'setpriv', '--pdeathsig', 'KILL',
			'psql', '-X', '-q', '-d', $self->{server}->conninfo, '-c', $sql
		],
		'<', '/dev/null',
		'>', '/dev/null',
		'2>', '/dev/null');
	my $deadline = time + 3;
	while ($self->reap_bursts && time < $deadline)
	{
		sleep 0.01;
	}
	return;
}

sub wake_relay
{
	my ($self) = @_;
	my $stopped = delete $self->{stopped} or return;
	$self->note_event('the relay goes on')
	  if $self->{server}->signal('CONT', $stopped->{process});
	return;
}

sub strike
{
	my ($self, $fault) = @_;
	my $kind = $fault->{kind};
	my $now = time;
	my $done;

	if ($kind =~ /broker|kafka/)
	{
		$done = $self->{brokers}->take($kind, $fault->{pick}, $fault->{seconds});
	}
	else
	{
		# a stop of the server would wait for a relay that cannot answer
		$self->wake_relay unless $kind eq 'kill-backend';
		(my $method = "do_$kind") =~ tr/-/_/;
		$done = $self->$method($fault);
	}
	if (!defined $done)
	{
		$self->note_event("$kind: not possible now");
		return;
	}
	my $text = $done eq '' ? $kind : "$kind: $done";
	$text .= sprintf ', %d messages just before', $fault->{burst} if $fault->{burst};
	$text .= sprintf ', took %.1f s', time - $now if time - $now > 0.5;
	$self->note_event(
		$text,
		kind => $kind,
		time => $now,
		ends_relay => $ENDS_RELAY{$kind} ? JSON::PP::true : JSON::PP::false,
		defined $self->{known} && !$self->{exact} ? (known => $self->{known}) : ());
	delete $self->{known};
	return;
}

sub do_kill_backend
{
	my ($self, $fault) = @_;
	my @victims = sort { $a->{pid} <=> $b->{pid} }
	  grep { $_->{title} !~ /outbox_kafka relay/ } $self->{server}->processes
	  or return undef;
	my $victim = $victims[ int($fault->{pick} * @victims) ];
	return $self->{server}->signal('KILL', $victim) ? $victim->{title} : undef;
}

sub signal_relay
{
	my ($self, $signal) = @_;
	my $relay = $self->{server}->relay or return undef;
	return $self->{server}->signal($signal, $relay) ? $relay : undef;
}

sub do_kill_relay
{
	my ($self) = @_;
	return $self->signal_relay('KILL') ? '' : undef;
}

sub do_end_relay
{
	my ($self) = @_;
	return $self->signal_relay('TERM') ? '' : undef;
}

sub do_pause_relay
{
	my ($self, $fault) = @_;
	my $relay = $self->signal_relay('STOP') or return undef;
	$self->{stopped} = { process => $relay, until => time + $fault->{seconds} };
	return sprintf 'for %.1f s', $fault->{seconds};
}

sub do_stop_server
{
	my ($self) = @_;
	return undef unless $self->{server}->processes;
	$self->{server}->stop('immediate');
	$self->{server}->start;
	return '';
}

sub do_restart_server
{
	my ($self) = @_;
	return undef unless $self->{server}->ensure(60);
	my $took = $self->{server}->stop('fast');
	$self->{server}->start;
	return sprintf 'stopped after %.1f s', $took;
}

sub do_kill_server
{
	my ($self) = @_;
	return undef unless $self->{server}->processes;
	my @orphans = $self->{server}->kill_postmaster;
	$self->find("it outlived the postmaster by 20 s: $_") for @orphans;
	$self->{server}->start;
	return '';
}

sub do_kill_standby
{
	my ($self, $fault) = @_;
	return undef unless $self->{server}->kill_standby;
	$self->{standby_back} = time + $fault->{seconds};
	return sprintf 'for %.1f s', $fault->{seconds};
}

sub wake_standby
{
	my ($self) = @_;
	return unless delete $self->{standby_back};
	$self->note_event('the standby is started');
	$self->{server}->wake_standby;
	return;
}

sub do_promote
{
	my ($self) = @_;
	my $server = $self->{server};
	$self->wake_standby;
	return undef unless $server->{standby} && $server->ensure(60) && $server->can_promote;
	my $known = $server->promote;
	$self->{known} = $known ? $known + 0 : time - 60;
	$self->{ledger}{node} = $server->primary;
	return $server->primary->name;
}

sub measure_memory
{
	my ($self) = @_;
	my $relay = $self->{server}->relay or return;
	open(my $file, '<', "/proc/$relay->{pid}/status") or return;
	my ($kb) = map { /^RssAnon:\s+(\d+)/ ? $1 : () } <$file>;
	$self->{memory_kb} = $kb if defined $kb && $kb > $self->{memory_kb};
	return;
}

sub recover
{
	my ($self) = @_;
	$self->wake_relay;
	$self->wake_standby;
	$self->{brokers}->recover;
	$self->{server}->ensure or croak 'the server does not take connections';
	$self->{say}->('without a standby in the end: the relay need not wait for one')
	  if $self->{server}->release_guard;
	wait_until('the bursts are over', sub { !$self->reap_bursts }, 120);
	$self->{written} = $self->{ledger}->finish;
	$self->find('the writers had an unexpected error')
	  unless $self->{written}{ok};
	$self->measure_memory;
	return;
}

# What a refused message is parked for is a finding here, where none deserves
# it; it comes through all the same when it is tried again.
sub empty_parked
{
	my ($self) = @_;
	my $server = $self->{server};
	my $parked = $server->query(
		q{SELECT count(*) || ', for instance: ' || coalesce(min(error), '') FROM outbox.parked});
	return if !defined $parked || $parked =~ /^0,/;
	$self->find("messages are parked: $parked");
	wait_until(
		'nothing is parked',
		sub {
			$server->query('SELECT count(outbox.retry(topic)) FROM (SELECT DISTINCT topic FROM outbox.parked) AS t');
			sleep 0.5;
			return ($server->query('SELECT count(*) FROM outbox.parked') // '') eq '0';
		},
		120);
	return;
}

sub judge
{
	my ($self) = @_;
	my $ledger = $self->{ledger};

	$self->empty_parked;
	my @losses = $self->read_logs;
	my $ends = grep { $_->{ends_relay} } @{ $self->{timeline} };
	my $allowed = 2 * $self->{max_in_flight} * $ends;
	$allowed += $_ for @losses;
	$allowed = 0 if $self->{exact};

	wait_delivered($ledger->{node}, $ledger->{database}, 300);
	$self->note_event('all is delivered');
	$self->{files} = $ledger->fetch;
	my $details = $self->analyse($allowed);
	my $seen = $ledger->hold_against(
		duplicates => $details->{allowed},
		prove => $self->{prove});

	my %report = (
		%$seen,
		details => $details,
		written => $self->{written},
		repeated => $seen->{duplicates},
		repeated_allowed => $details->{allowed},
		memory_mb => $self->{memory_kb} / 1024,
		slowest_stop => $self->{server}{slowest_stop},
		slowest_orphan => $self->{server}{slowest_orphan},
		producers_lost => scalar @losses,
		guarded => $self->{server}->guarded);
	$self->find(sprintf 'the relay had %.0f MB of memory of its own', $report{memory_mb})
	  if $report{memory_mb} > $MEMORY_BOUND_MB;
	$self->find("at $_->{at} s more had come twice ($_->{repeated}) than the faults until then explain ($_->{allowed})")
	  for @{ $details->{too_many} };
	$self->find('the comparison does not hold') unless $seen->{ok};
	$report{findings} = $self->{findings};
	$report{ok} = $seen->{ok} && !@{ $self->{findings} };
	$self->tell(\%report);
	return \%report;
}

# Crashes that nobody asked for, and errors that end the relay or the launcher,
# are findings. Returns, for each producer that was made anew, how many messages
# it had in flight.
sub read_logs
{
	my ($self) = @_;
	my @losses;
	my %words;
	for my $name ($self->{server}->logs)
	{
		my %error;    # the last one of each process
		open(my $file, '<', $name) or croak "could not read $name: $!";
		while (my $line = <$file>)
		{
			my ($pid) = $line =~ /^\S+ \S+ \S+ \[(\d+)\]/ or next;
			push @losses, $1
			  if $line =~ /closes a producer with (\d+) messages/;
			$words{$1}++
			  if $line =~ /(PANIC: .*|TRAP: .*|was terminated by signal (?!9\b|3\b)\d+.*)/;
			$words{$1}++
			  if $self->{exact} && $line =~ /WARNING: +outbox_kafka: (Kafka knows a later position.*|Kafka does not know.*)/;
			if ($line =~ /(?:ERROR|FATAL): +(.*)/)
			{
				$error{$pid} = $1;
			}
			elsif ($line =~ /CONTEXT: +outbox_kafka (?:relay|launcher)/
				&& defined(my $text = delete $error{$pid}))
			{
				$words{$text}++
				  unless $text =~ /^terminating background worker/;
			}
		}
	}
	$self->find("$words{$_} x in a server's log: $_") for sort keys %words;
	return @losses;
}

sub analyse
{
	my ($self, $allowed) = @_;
	my $file = "$self->{files}{base}.timeline";
	open(my $output, '>', $file) or croak "could not write $file: $!";
	print $output JSON::PP->new->canonical->encode(
		{
			began => $self->{began},
			ended => $self->{ended},
			max_in_flight => $self->{exact} ? 0 : $self->{max_in_flight},
			allowed => $allowed,
			events => $self->{timeline}
		});
	close $output or croak "could not write $file: $!";
	my ($text, $error) = ('', '');
	IPC::Run::run(
		[
			'/usr/bin/python3', "$home/analyse.py",
			'--ledger', $self->{files}{ledger},
			'--log', $self->{files}{log},
			'--timeline', $file
		],
		'<', \undef,
		'>', \$text,
		'2>', \$error)
	  or croak "analyse.py failed: $error";
	return decode_json($text);
}

sub tell
{
	my ($self, $report) = @_;
	my $details = $report->{details};
	my $say = $self->{say};
	my %faults;
	$faults{ $_->{kind} }++ for grep { $_->{kind} } @{ $self->{timeline} };

	$say->('');
	$say->(sprintf 'faults      %s',
		join ', ', map { "$_ $faults{$_}" } sort keys %faults);
	$say->(sprintf 'events      %s',
		join ', ', map { "$_ $details->{kinds}{$_}" } sort keys %{ $details->{kinds} });
	$say->(sprintf 'writers     %s',
		join ', ', map { "$_ " . ($report->{written}{$_} // 0) }
		  qw(committed rolled_back prepared_commit prepared_rollback conflict unknown connection_lost));
	$say->(sprintf 'received    %d of %d committed, %d records', $report->{ledger} - $report->{lost},
		$report->{ledger}, $report->{arrived});
	$say->(sprintf '%-11s %d', $_->[0], $report->{ $_->[1] })
	  for [ lost => 'lost' ], [ extra => 'extra' ], [ misordered => 'out_of_order' ],
	  [ different => 'different' ];
	$say->(sprintf 'repeated    %d, explained are %d; after %s', $report->{repeated},
		$report->{repeated_allowed},
		join(', ', map { "$_ $details->{repeated_after}{$_}" }
			  sort keys %{ $details->{repeated_after} }) || 'nothing');
	$say->(sprintf 'longest gap %.1f s without arrival, from %.1f s on%s',
		@{ $details->{gap} }{qw(seconds from)},
		$details->{gap}{during} ? ": $details->{gap}{during}" : '');
	$say->(sprintf 'relay       at most %.0f MB of its own; producers made anew with messages in flight: %d',
		$report->{memory_mb}, $report->{producers_lost});
	$say->(sprintf 'server      slowest stop %.1f s, slowest end without its postmaster %.1f s%s',
		$report->{slowest_stop}, $report->{slowest_orphan},
		$self->{server}{standby_wanted}
		? $report->{guarded}
			  ? ', the relay waits for the standby'
			  : ', the relay does not wait for the standby: no asynchronous commits'
		: '');
	$say->("FINDING     $_") for @{ $report->{findings} };
	$say->($report->{ok} ? 'all holds' : 'NOT ALL HOLDS');
	return;
}

1;
