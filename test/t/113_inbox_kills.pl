
# P8: each message takes effect once, whoever is killed: the worker between the
# handler and its commit and right after it, by kill -9 (which restarts the
# server), by SIGTERM; the whole server; the broker. What Kafka holds is compared
# with what the handler has written, place by place.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(sleep);

use OutboxTest;
use OutboxTest::Inbox;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('events', 4);
my $node = new_node('kills', kafka => $kafka, conf => { 'restart_after_crash' => 'on' });
new_database($node, 'd');
$node->safe_psql('d', q{
	CREATE TABLE got (n bigserial, partition int, "offset" bigint, v text);
	CREATE TABLE sums (partition int PRIMARY KEY, messages bigint NOT NULL);
	INSERT INTO sums SELECT i, 0 FROM generate_series(0, 3) AS i;
	CREATE FUNCTION handle(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO got (partition, "offset", v) VALUES (m.partition, m."offset", inbox.payload_text(m));
		UPDATE sums SET messages = messages + 1 WHERE partition = m.partition;
		PERFORM pg_sleep(0.0005);
	END $$;
	SELECT inbox.subscribe('s', '{events}', 'handle', workers => 2, batch_size => 200, retry_backoff => '50 ms')});

sub insist
{
	my ($sql) = @_;
	return insist_sql($node, 'd', $sql);
}

my $published = 0;

sub more
{
	my ($count) = @_;
	insist("SELECT count(outbox.publish('events', i::text, i::text)) FROM generate_series($published + 1, $published + $count) AS i");
	$published += $count;
	return;
}

sub deaths
{
	my ($point) = @_;
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
	return scalar(() = $log =~ /dies at fault point "\Q$point\E"/g);
}

sub worker
{
	my ($number) = @_;
	return insist("SELECT coalesce(max(pid), 0) FROM inbox.workers WHERE name = 's' AND worker = $number");
}

more(2000);

# at known moments
for my $point (qw(inbox_handled inbox_committed))
{
	insist("ALTER SYSTEM SET outbox_kafka.fault_point = '$point:3'");
	$node->reload;
	more(1000);
	wait_until("a worker dies at $point", sub { deaths($point) >= 1 }, 60);
	insist(q{ALTER SYSTEM RESET outbox_kafka.fault_point});
	$node->reload;
	pass("a worker has died at $point");
}

# at any moment
for my $round (1 .. 12)
{
	more(400);
	sleep(rand(0.5));
	if ($round % 4 == 0)
	{
		my $pid = worker($round % 2);
		kill 'KILL', $pid if $pid > 0;
	}
	elsif ($round % 4 == 1)
	{
		my $pid = worker($round % 2);
		kill 'TERM', $pid if $pid > 0;
	}
	elsif ($round % 4 == 2)
	{
		$kafka->kill9(1);
		sleep(rand(0.3));
		$kafka->start_node(1);
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
}

# what a worker could not say any more that it is over
insist(q{INSERT INTO inbox.worker_problem SELECT id, 0, 'old', now() FROM inbox.subscription ON CONFLICT DO NOTHING});
my $last = worker(0);
kill 'KILL', $last if $last > 0;

wait_until('everything is sent', sub { insist('SELECT NOT EXISTS (SELECT FROM outbox.pending)') eq 't' }, 120);
wait_until('everything is handled', sub {
	insist(q{SELECT count(*) = 4 AND bool_and(state = 'running' AND lag = 0) FROM inbox.subscription_status WHERE name = 's'}) eq 't' &&
	insist('SELECT count(*) FROM got') >= $kafka->message_count('events') }, 120,
	sub { inbox_describe($node, 'd') . "\nKafka: " . $kafka->message_count('events') });

my %kafka = map { ("$_->{partition}/$_->{offset}" => $_->{payload}) } $kafka->consume('events');
my %got;
my $twice = 0;
for my $line (split /\n/, insist('SELECT partition, "offset", v FROM got ORDER BY n'))
{
	my ($partition, $offset, $v) = split /\|/, $line;
	$twice++ if exists $got{"$partition/$offset"};
	$got{"$partition/$offset"} = $v;
}
cmp_ok(scalar(keys %kafka), '>=', $published, "$published messages or more are in Kafka");
is($twice, 0, 'none took effect twice');
is_deeply(\%got, \%kafka, 'each took effect');
is(insist(q{SELECT count(*) FROM (SELECT "offset" < lag("offset") OVER (PARTITION BY partition ORDER BY n) AS wrong FROM got) AS x WHERE wrong}),
	0, 'in the order of each partition');
is(insist('SELECT count(*) FROM sums JOIN (SELECT partition, count(*) AS c FROM got GROUP BY 1) AS g USING (partition) WHERE messages <> c'), 0,
	'also what was added up');
is(insist('SELECT count(*) FROM inbox.dead_letters'), 0, 'and none was given up');
done_testing();
