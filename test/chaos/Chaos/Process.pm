
=pod

=head1 NAME

Chaos::Process - processes of the rig, and of nobody else

=head1 DESCRIPTION

A signal goes to a process only when it is what it is taken for at that moment:
a child of a postmaster that works in a data directory of the rig. The guard
ends what a rig has left that was killed itself: whatever works in the rig's
directory, which the rig made.

=cut

package Chaos::Process;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use POSIX ();
use Time::HiRes qw(sleep time);

# What the guards wait for: closed by the end of the process, not before.
our @guarded;

=head1 FUNCTIONS

=over

=item stat_of($pid)

(state letter, parent, start time in ticks), or nothing when it does not exist.

=cut

sub stat_of
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/stat") or return;
	my $line = <$file> // return;
	my ($rest) = $line =~ /^.*\) (.*)/s or return;
	my @fields = split ' ', $rest;
	return @fields[ 0, 1, 19 ];
}

=item postmaster_of($data_directory)

Its process, if one runs there.

=cut

sub postmaster_of
{
	my ($directory) = @_;
	open(my $file, '<', "$directory/postmaster.pid") or return;
	my ($pid) = (<$file> // '') =~ /^(\d+)/ or return;
	my $works_in = readlink("/proc/$pid/cwd") // '';
	return $works_in eq abs_path($directory) ? $pid : undef;
}

=item children_of($pid)

Hashes with pid, started, title: the processes whose parent it is.

=cut

sub children_of
{
	my ($parent) = @_;
	my @children;
	for my $path (glob '/proc/[0-9]*')
	{
		my ($pid) = $path =~ /(\d+)$/;
		my ($state, $of, $started) = stat_of($pid) or next;
		next unless defined $of && $of == $parent && $state ne 'Z';
		push @children, { pid => $pid, started => $started, title => title($pid) };
	}
	return @children;
}

sub title
{
	my ($pid) = @_;
	open(my $file, '<:raw', "/proc/$pid/cmdline") or return '';
	local $/;
	(my $title = <$file> // '') =~ s/[\0 ]+$//;
	$title =~ s/^postgres: //;
	return $title;
}

=item is_alive($process)

Whether that very process (a hash of children_of) exists still.

=cut

sub is_alive
{
	my ($process) = @_;
	my ($state, undef, $started) = stat_of($process->{pid}) or return 0;
	return $state ne 'Z' && $started == $process->{started};
}

=item signal_child($signal, $process, $data_directory)

Send a signal to a process of the server that runs there; false when it is not
one any more.

=cut

sub signal_child
{
	my ($signal, $process, $directory) = @_;
	my $postmaster = postmaster_of($directory) or return 0;
	my (undef, $parent, $started) = stat_of($process->{pid}) or return 0;
	return 0 if $parent != $postmaster || $started != $process->{started};
	return kill($signal, $process->{pid}) == 1;
}

=item start_guard($directory)

A process that waits for the end of this one and then ends all that works below
that directory.

=back

=cut

sub start_guard
{
	my ($directory) = @_;
	$directory = abs_path($directory);
	pipe(my $reader, my $writer) or croak "could not make a pipe: $!";
	my $pid = fork // croak "could not fork: $!";
	if ($pid == 0)
	{
		close $writer;
		POSIX::setsid();
		$SIG{$_} = 'IGNORE' for qw(INT TERM HUP QUIT PIPE);
		$0 = 'chaos guard';
		chdir '/';
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', '/dev/null');
		open(STDERR, '>', '/dev/null');
		sysread($reader, my $nothing, 1);
		end_all($directory);
		POSIX::_exit(0);
	}
	close $reader;
	push @guarded, $writer;
	return;
}

# Postmasters are asked first: they end their own processes and remove their
# shared memory. A stopped process cannot answer, SIGKILL ends it all the same.
sub end_all
{
	my ($directory) = @_;
	my $deadline = time + 8;
	while (my @left = working_below($directory))
	{
		my $late = time > $deadline;
		for my $process (@left)
		{
			my $postmaster = postmaster_of($process->{works_in}) // 0;
			my $signal =
				$late ? 'KILL'
			  : $postmaster == $process->{pid} ? 'QUIT'
			  : $postmaster ? 'CONT'
			  : 'KILL';
			kill $signal, $process->{pid};
		}
		last if time > $deadline + 5;
		sleep 0.2;
	}
	return;
}

sub working_below
{
	my ($directory) = @_;
	my @found;
	for my $path (glob '/proc/[0-9]*')
	{
		my ($pid) = $path =~ /(\d+)$/;
		my $works_in = readlink("$path/cwd") // next;
		push @found, { pid => $pid, works_in => $works_in }
		  if $pid != $$ && index("$works_in/", "$directory/") == 0;
	}
	return @found;
}

1;
