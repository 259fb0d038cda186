
# outbox_kafka.max_backlog: with the broker away, messages take disk space up to
# the limit; then publishing refuses (by function, INSERT and COPY, also within
# one huge transaction) or warns, and goes on by itself when there is room again.
# What is delivered but retained, or rolled back, gives way before that. Without
# a relay the limit holds as well.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use OutboxTest;
use OutboxTest::MockBroker;

my $limit = 16 * 1024 * 1024;
my $broker = OutboxTest::MockBroker->new(topics => { events => 4 });
my $node = new_node(
	'backlog',
	kafka => $broker,
	conf => { 'outbox_kafka.max_backlog' => '16MB' });
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

sub size
{
	return sql('SELECT bytes FROM outbox.backlog');
}

# Messages of 10 kB that do not compress, in a transaction.
my $random = q{(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300))};
my $rows = 50;
my $publish = "SELECT count(outbox.publish('events', g.p || i, 'k' || i))"
  . " FROM generate_series(1, $rows) AS i, LATERAL $random AS g(p)";
my $accepted = 0;

# The error, if any.
sub publish_some
{
	my ($code, $out, $err) = $node->psql('a', "\\set VERBOSITY verbose\n$publish");
	$accepted += $rows if $code == 0;
	return $err;
}

# Publish until that is refused; its error.
sub fill
{
	return wait_until('publishing is refused',
		sub { my $error = publish_some(); $error =~ /ERROR/ ? $error : undef });
}

# ---------------------------------------------------------------------------
# The view
# ---------------------------------------------------------------------------

is(sql('SELECT max_bytes, policy FROM outbox.backlog'), "$limit|refuse", 'the limit is shown');
publish_some();
my $total = sql("SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits
	WHERE inhparent = 'outbox.message'::regclass");
cmp_ok(abs(size() - $total), '<', 0.5 * $total, 'the size is about what the server says');
cmp_ok(size(), '>=', sql("SELECT sum(pg_relation_size(inhrelid) + pg_indexes_size(inhrelid)) FROM pg_inherits
	WHERE inhparent = 'outbox.message'::regclass"), 'indexes are counted');
wait_delivered($node, 'a');

# ---------------------------------------------------------------------------
# Refused while the broker is away, accepted when it is back
# ---------------------------------------------------------------------------

$broker->command('down all');
my $error = fill();
like($error, qr/ERROR:  53400: the outbox is full, the message is refused/, 'refused');
like($error, qr/DETAIL:  Messages take \d+ [kM]B on disk, outbox_kafka\.max_backlog is 16 MB\./,
	'refused: the sizes');
like($error, qr/HINT:  .*outbox\.relay_status/, 'refused: a hint');
cmp_ok(size(), '>', $limit, 'refused: the limit is exceeded');

my ($code, $out, $err) = $node->psql('a',
	"INSERT INTO outbox.message (topic, payload) VALUES ('events', 'x')");
like($err, qr/the outbox is full/, 'INSERT is refused');
($code, $out, $err) = $node->psql('a',
	"COPY outbox.message (topic, payload) FROM STDIN;\nevents\tx\n\\.\n");
like($err, qr/the outbox is full/, 'COPY is refused');

# With the other policy, a warning once a minute in a session.
($code, $out, $err) = $node->psql('a',
	"SET outbox_kafka.backlog_policy = warn; $publish; $publish");
$accepted += 2 * $rows;
is($code, 0, 'warn: accepted');
is(scalar(() = $err =~ /WARNING:  the outbox takes more disk space than it should/g),
	1, 'warn: one warning');
sql("CREATE ROLE app; SELECT outbox.grant_publish('app')");
($code, $out, $err) = $node->psql('a',
	"SET ROLE app; SET outbox_kafka.backlog_policy = warn");
like($err, qr/permission denied/, 'who publishes cannot change the policy');
($code, $out, $err) = $node->psql('a', "SET ROLE app; $publish");
like($err, qr/the outbox is full/, 'the limit holds for a role that was granted to publish');

# Retention (an hour) does not keep what is delivered.
$broker->command('up all');
wait_until('publishing is accepted again',
	sub { publish_some() !~ /ERROR/ });
wait_delivered($node, 'a');
wait_until('less than half of the limit is taken', sub { size() < $limit / 2 });
is(relay_status($node, 'a')->{published}, $accepted, 'all that was accepted was delivered');

# Delivered messages do not fill it, as long as there is time to make room.
my $refused = 0;
my $written = 0;
while ($written < 2 * $limit)
{
	for (1 .. 4)
	{
		$refused++ if publish_some() =~ /ERROR/;
		$written += 10_000 * $rows;
	}
	wait_delivered($node, 'a');
	wait_until('there is room', sub { size() < $limit / 2 });
}
is($refused, 0, 'with the broker there, twice the limit is published');
is(relay_status($node, 'a')->{published}, $accepted, 'and delivered');

# ---------------------------------------------------------------------------
# One huge transaction, rolled back by the refusal: it leaves no lasting one.
# ---------------------------------------------------------------------------

$broker->command('down all');
publish_some();
($code, $out, $err) = $node->psql('a',
	"SELECT count(outbox.publish('events', p || i, 'k')) FROM $random AS g(p),
	 (SELECT generate_series(1, 100000000) AS i) AS s");
like($err, qr/the outbox is full/, 'a transaction without end is refused');
$broker->command('up all');
wait_until('there is room again', sub { publish_some() !~ /ERROR/ });
wait_delivered($node, 'a');
is(relay_status($node, 'a')->{published}, $accepted, 'nothing of it was sent');

# ---------------------------------------------------------------------------
# A limit of its own for a database, no limit, and a server without a relay
# ---------------------------------------------------------------------------

sql('ALTER DATABASE a SET outbox_kafka.max_backlog = 0');
is(sql('SELECT max_bytes IS NULL FROM outbox.backlog'), 't', 'no limit for this database');
$broker->command('down all');
publish_some() for 1 .. 40;
cmp_ok(size(), '>', $limit, 'no limit: more is accepted');
sql('ALTER DATABASE a RESET outbox_kafka.max_backlog');
like(fill(), qr/the outbox is full/, 'with the limit again, refused');

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is(relay_status($node, 'a')->{state}, 'not preloaded', 'there is no relay');
like(publish_some(), qr/the outbox is full/, 'not preloaded: refused');

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox_kafka'");
$broker->command('up all');
$node->restart;
wait_until('publishing is accepted', sub { publish_some() !~ /ERROR/ });
wait_delivered($node, 'a');
is(sql('SELECT count(*) FROM outbox.parked'), 0, 'all was delivered');

$node->stop;
done_testing();
