
# outbox_kafka.identity_file: a copy of the server's files that is brought up
# beside the original sends nothing unless the file, which is not copied with
# them, names its database. Copies by CREATE DATABASE and by a dump have
# identities of their own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;

my $broker = OutboxTest::MockBroker->new(topics => { events => 1 });
my $node = new_node(
	'original',
	kafka => $broker,
	init => { allows_streaming => 1 });
new_database($node, 'a');

my $directory = PostgreSQL::Test::Utils::tempdir;
my $file = "$directory/identity";

sub write_file
{
	my ($path, $text, $mode) = @_;
	unlink $path;
	append_to_file($path, $text);
	chmod $mode // 0600, $path or die "could not change $path: $!";
	return;
}

sub set_file
{
	my ($where, $path) = @_;
	$where->append_conf('postgresql.conf', "outbox_kafka.identity_file = '$path'");
	$where->reload;
	return;
}

sub payloads
{
	return [ map { $_->{payload} }
		  OutboxTest::Kcat::consume($broker->bootstrap, 'events') ];
}

# Nothing is sent, and last_error says why.
sub is_stopped
{
	my ($where, $database, $reason, $name) = @_;
	wait_until("$name: the status says so",
		sub {
			my $row = relay_status($where, $database);
			return $row->{state} eq 'failed' && ($row->{last_error} // '') =~ $reason;
		},
		30,
		sub { join "\n", map { $_ // 'NULL' } %{ relay_status($where, $database) } });
	pass("$name: the status says so");
	return;
}

# ---------------------------------------------------------------------------
# What the file has to be
# ---------------------------------------------------------------------------

my $identity = $node->safe_psql('a', 'SELECT outbox.identity()');
like($identity, qr/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f-]{21}$/, 'a random identity');
publish($node, 'a', q{'events', 'without a file', 'k'});
wait_delivered($node, 'a');

set_file($node, $file);
is_stopped($node, 'a', qr/^outbox_kafka\.identity_file: could not open file "\Q$file\E": No such file/, 'no file');
my @expected = ('without a file');
publish($node, 'a', q{'events', 'first', 'k'});
push @expected, 'first';

my $other = '3f8a1c52-1111-4222-8333-123456789abc';
my @bad = (
	[ 'another identity', "$other\n", 0600, qr/does not name this database's identity $identity/ ],
	[ 'more on the line', "$identity $other\n", 0600, qr/does not name/ ],
	[ 'as a remark', "# $identity\n", 0600, qr/does not name/ ],
	[ 'writable by others', "$identity\n", 0622, qr/writable by nobody else/ ],
	[ 'large', "$identity\n" . "#\n" x 40000, 0600, qr/larger than 65536 bytes/ ]);
for my $case (@bad)
{
	my ($name, $text, $mode, $reason) = @$case;
	write_file($file, $text, $mode);
	$node->reload;
	is_stopped($node, 'a', $reason, $name);
}
set_file($node, $directory);
is_stopped($node, 'a', qr/is not a regular file/, 'a directory');

my $inside = $node->data_dir . '/identity';
write_file($inside, "$identity\n");
symlink $inside, "$directory/link" or die "could not make a link: $!";
set_file($node, $inside);
is_stopped($node, 'a', qr/inside the data directory/, 'inside the data directory');
set_file($node, "$directory/link");
is_stopped($node, 'a', qr/inside the data directory/, 'a link into it');
unlink $inside;
my ($code, $out, $err) =
  $node->psql('a', "ALTER SYSTEM SET outbox_kafka.identity_file = 'identity'");
like($err, qr/must be an absolute path/, 'a relative path is refused');
is_deeply(payloads(), ['without a file'], 'nothing was sent meanwhile');

# Others may read it; capitals and remarks are no matter.
write_file($file, "# the databases of this server\n $other\n\t\U$identity\E # a\r\n", 0644);
set_file($node, $file);
wait_delivered($node, 'a');
is_deeply(payloads(), \@expected, 'named, it sends');

# Taken out of the file, it stops at the next reload; named again, it goes on by
# itself.
write_file($file, "$other\n");
$node->reload;
is_stopped($node, 'a', qr/does not name/, 'taken out');
publish($node, 'a', q{'events', 'second', 'k'});
push @expected, 'second';
write_file($file, "$identity\n");
wait_delivered($node, 'a');
is_deeply(payloads(), \@expected, 'named again, it sends without a reload');

# ---------------------------------------------------------------------------
# A copy of the files, brought up where another file is
# ---------------------------------------------------------------------------

$node->backup('copy');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($node, 'copy');
write_file("$directory/of_the_copy", '');
$copy->append_conf('postgresql.conf', "outbox_kafka.identity_file = '$directory/of_the_copy'");
$copy->start;
is($copy->safe_psql('a', 'SELECT outbox.identity()'), $identity, 'copy: the same identity');
publish($copy, 'a', q{'events', 'of the copy', 'k'});
is_stopped($copy, 'a', qr/does not name this database's identity $identity/, 'copy');
publish($node, 'a', q{'events', 'third', 'k'});
wait_delivered($node, 'a');
push @expected, 'third';
is_deeply(payloads(), \@expected, 'copy: the original sends, the copy does not');
is($copy->safe_psql('a', 'SELECT count(*) FROM outbox.pending'), 1, 'copy: it waits');
write_file("$directory/of_the_copy", "$identity\n");
$copy->reload;
wait_delivered($copy, 'a');
push @expected, 'of the copy';
is_deeply(payloads(), \@expected, 'copy: named in its file, it sends');
$copy->stop;

# ---------------------------------------------------------------------------
# Other copies
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE b TEMPLATE a');
my $of_b = wait_until('the copied database has an identity',
	sub { $node->safe_psql('b', 'SELECT outbox.identity()') });
isnt($of_b, $identity, 'TEMPLATE: another identity');
is_stopped($node, 'b', qr/does not name this database's identity $of_b/, 'TEMPLATE');
publish($node, 'b', q{'events', 'of b', 'k'});
append_to_file($file, "$of_b\n");
$node->reload;
wait_delivered($node, 'b');
push @expected, 'of b';
is_deeply(payloads(), \@expected, 'TEMPLATE: named, it sends');
is($node->safe_psql('a', 'SELECT outbox.identity()'), $identity, 'the original keeps its own');

my $dump = $node->basedir . '/a.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('a') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE c');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('c'), $dump ], 'pg_restore');
is($node->safe_psql('c', "SELECT count(*) FROM outbox.database_identity
		WHERE identity IN ('$identity', '$of_b')"), 0, 'dump: another identity');

# pg_monitor may see it, others not.
$node->safe_psql('a', 'CREATE ROLE watcher IN ROLE pg_monitor; CREATE ROLE nobody_else');
is($node->safe_psql('a', 'SET ROLE watcher; SELECT outbox.identity()'), $identity, 'pg_monitor sees it');
($code, $out, $err) = $node->psql('a', 'SET ROLE nobody_else; SELECT outbox.identity()');
like($err, qr/permission denied/, 'others do not');

$node->stop;
done_testing();
