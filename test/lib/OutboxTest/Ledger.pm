
=pod

=head1 NAME

OutboxTest::Ledger - the load of test/ledger and the comparison after it

=head1 SYNOPSIS

  my $ledger = OutboxTest::Ledger->new($node, 'a', $kafka, topics => 4);
  $ledger->start(seconds => 30);
  ...                                  # faults
  my $written = $ledger->finish;       # totals of writers.py
  my $seen = $ledger->compare(duplicates => 0, prove => 1);
  ok($seen->{ok});

=head1 DESCRIPTION

Each transaction of the load writes what it publishes into the table
ledger.event of the same database; compare() waits until the relay has nothing
pending, reads all topics from their beginnings to their ends, and has
compare.py hold one against the other.

=cut

package OutboxTest::Ledger;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;

my $home = abs_path(dirname(__FILE__) . '/../../ledger');
my $python = '/usr/bin/python3';

=head1 METHODS

=over

=item OutboxTest::Ledger->new($node, $database, $kafka, %options)

Makes the topics ledger_0, ledger_1, ... Options: topics (4), partitions (6),
topic_config (hash), single_replica (array: the topics that have one replica),
conninfo (for the writers, instead of the node's).

=cut

sub new
{
	my ($class, $node, $database, $kafka, %options) = @_;
	my $self = bless {
		node => $node,
		database => $database,
		kafka => $kafka,
		topics => 4,
		partitions => 6,
		loads => 0,
		%options
	}, $class;
	$self->{names} = [ map { "ledger_$_" } 0 .. $self->{topics} - 1 ];
	my %single = map { $_ => 1 } @{ $self->{single_replica} // [] };
	for my $name (@{ $self->{names} })
	{
		my %config = %{ $self->{topic_config} // {} };
		$config{'min.insync.replicas'} = 1 if $single{$name};
		$kafka->create_topic($name, $self->{partitions}, \%config,
			$single{$name} ? 1 : undef);
	}
	return $self;
}

=item $ledger->start(%options)

Start the writers in the background. Options: seconds, open (go on after that,
until finish), and whatever else writers.py takes. The environment variables OUTBOX_LEDGER_SECONDS and
OUTBOX_LEDGER_SEED come before them.

=cut

sub start
{
	my ($self, %options) = @_;
	my $number = ++$self->{loads};
	$options{seconds} = $ENV{OUTBOX_LEDGER_SECONDS}
	  if defined $ENV{OUTBOX_LEDGER_SECONDS};
	$options{seed} = $ENV{OUTBOX_LEDGER_SEED}
	  if defined $ENV{OUTBOX_LEDGER_SEED};
	if (delete $options{open})
	{
		$self->{flag} = "$PostgreSQL::Test::Utils::tmp_check/finish_$number";
		$options{until} = $self->{flag};
		unlink $self->{flag};
	}
	my @command = (
		'setpriv', '--pdeathsig', 'KILL',
		$python, "$home/writers.py",
		'--conninfo', $self->{conninfo} // $self->{node}->connstr($self->{database}),
		'--topics', join(',', @{ $self->{names} }),
		'--run', $number,
		map { ("--$_", $options{$_}) } sort keys %options);

	$self->{output} = '';
	$self->{error} = '';
	$self->{writers} = IPC::Run::start(
		\@command,
		'<', \undef,
		'>', \$self->{output},
		'2>', \$self->{error});
	return;
}

=item $ledger->finish

Wait for the writers; their totals as a hash, with ok.

=cut

sub finish
{
	my ($self) = @_;
	if (my $flag = delete $self->{flag})
	{
		open(my $file, '>', $flag) or croak "could not write $flag: $!";
		close $file;
	}
	my $ok = $self->{writers}->finish;
	note($self->{error});
	diag($self->{error}) unless $ok;
	my $totals = eval { decode_json($self->{output}) } // {};
	$totals->{ok} = $ok ? 1 : 0;
	diag('writers: ' . summary($totals,
			qw(seed events committed rolled_back prepared_commit
			  prepared_rollback conflict unknown)));
	return $totals;
}

=item $ledger->compare(%options)

Wait until everything is delivered and compare. Options: duplicates (how many
further arrivals are within the promise), prove (show that each tampering with
the log would be noticed), seconds (how long to wait for delivery). The totals
of compare.py as a hash, with ok.

=cut

sub compare
{
	my ($self, %options) = @_;
	$self->fetch($options{seconds});
	return $self->hold_against(%options);
}

=item $ledger->fetch($seconds)

The first half of compare: wait until everything is delivered and write the
ledger and the log of all topics, as readers of committed messages see it, to
files. A hash: ledger, log, base (the
beginning of their names).

=cut

sub fetch
{
	my ($self, $seconds) = @_;
	my ($node, $database) = @$self{qw(node database)};
	my $directory = $PostgreSQL::Test::Utils::tmp_check;
	my $base = "$directory/" . $node->name . "_$self->{loads}";

	wait_delivered($node, $database, $seconds // 180);
	$node->safe_psql($database, "\\copy ledger.event TO '$base.ledger'");

	open(my $log, '>', "$base.log") or croak "could not write $base.log: $!";
	close $log;
	for my $topic (@{ $self->{names} })
	{
		IPC::Run::run(
			[
				'kcat', '-q', '-J', '-C', '-e', '-o', 'beginning',
				'-X', 'isolation.level=read_committed',
				'-b', $self->{kafka}->bootstrap, '-t', $topic
			],
			'<', \undef,
			'>>', "$base.log")
		  or croak "kcat for $topic failed";
	}
	$self->{files} =
	  { base => $base, ledger => "$base.ledger", log => "$base.log" };
	return $self->{files};
}

=item $ledger->hold_against(%options)

The second half: compare.py on the files of fetch.

=cut

sub hold_against
{
	my ($self, %options) = @_;
	my ($output, $error) = ('', '');
	my $ok = IPC::Run::run(
		[
			$python, "$home/compare.py",
			'--ledger', $self->{files}{ledger},
			'--log', $self->{files}{log},
			'--duplicates', $options{duplicates} // 0,
			$options{prove} ? '--prove' : ()
		],
		'<', \undef,
		'>', \$output,
		'2>', \$error);
	diag($error) unless $ok;
	my $totals = eval { decode_json($output) } // {};
	$totals->{ok} = $ok ? 1 : 0;
	diag('ledger: ' . summary($totals,
			qw(ledger arrived lost extra different out_of_order duplicates
			  duplicates_allowed keys keyless)));
	return $totals;
}

=back

=cut

sub summary
{
	my ($totals, @names) = @_;
	return join ', ', map { "$_ " . ($totals->{$_} // 0) } @names;
}

1;
