
=pod

=head1 NAME

OutboxTest::Inbox - what the tests of subscriptions share

=head1 DESCRIPTION

Everything that waits, waits for a condition, and on a timeout prints
inbox.subscription_status and inbox.workers before it gives up.

=cut

package OutboxTest::Inbox;

use strict;
use warnings;

use Exporter qw(import);

use OutboxTest;

our @EXPORT = qw(inbox_status inbox_describe inbox_pid wait_handled wait_caught_up wait_partition);

=head1 FUNCTIONS

=over

=item inbox_describe($node, $database)

All that the views say, as text.

=cut

sub inbox_describe
{
	my ($node, $database) = @_;
	return join "\n", 'inbox.subscription_status:',
	  $node->safe_psql($database, 'SELECT * FROM inbox.subscription_status'),
	  'inbox.workers:', $node->safe_psql($database, 'SELECT * FROM inbox.workers'),
	  'inbox.dead_letters:', $node->safe_psql($database, 'SELECT * FROM inbox.dead_letters');
}

=item inbox_status($node, $database, $name, $topic, $partition, $columns)

Columns of a partition's row in inbox.subscription_status.

=cut

sub inbox_status
{
	my ($node, $database, $name, $topic, $partition, $columns) = @_;
	return $node->safe_psql($database,
		"SELECT $columns FROM inbox.subscription_status WHERE name = '$name' AND topic = '$topic' AND partition = $partition");
}

=item inbox_pid($node, $database, $name, $worker)

The process of a worker, 0 if there is none.

=cut

sub inbox_pid
{
	my ($node, $database, $name, $worker) = @_;
	$worker //= 0;
	return $node->safe_psql($database,
		"SELECT coalesce(max(pid), 0) FROM inbox.workers WHERE name = '$name' AND worker = $worker");
}

=item wait_handled($node, $database, $from, $count, $seconds)

Until so many rows are in a table (or in what is given as "table
WHERE ..."). Fails if there are more.

=cut

sub wait_handled
{
	my ($node, $database, $from, $count, $seconds) = @_;
	my $is = -1;
	wait_until(
		"$count rows in $from",
		sub {
			$is = $node->safe_psql($database, "SELECT count(*) FROM $from");
			die "$is rows in $from, more than $count" if $is > $count;
			return $is == $count;
		},
		$seconds,
		sub { "$is rows in $from\n" . inbox_describe($node, $database) });
	return;
}

=item wait_caught_up($node, $database, $name, $seconds)

Until a subscription runs and nothing of what Kafka has is waiting.

=cut

sub wait_caught_up
{
	my ($node, $database, $name, $seconds) = @_;
	wait_until(
		"$name has caught up",
		sub {
			return $node->safe_psql($database,
				"SELECT count(*) > 0 AND bool_and(state = 'running' AND lag = 0) FROM inbox.subscription_status WHERE name = '$name'") eq 't';
		},
		$seconds,
		sub { inbox_describe($node, $database) });
	return;
}

=item wait_partition($node, $database, $name, $topic, $partition, $condition, $seconds)

Until the partition's row in inbox.subscription_status meets an SQL condition.

=back

=cut

sub wait_partition
{
	my ($node, $database, $name, $topic, $partition, $condition, $seconds) = @_;
	wait_until(
		"partition $partition of $topic: $condition",
		sub { inbox_status($node, $database, $name, $topic, $partition, $condition) eq 't' },
		$seconds,
		sub { inbox_describe($node, $database) });
	return;
}

1;
