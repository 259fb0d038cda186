
# The decider is killed, with the server, at each of the moments between which
# it has done something and it is known to be done: no decision is lost, and no
# function takes effect twice or not at all. Then at random moments under load,
# against answers that come in meanwhile. No Kafka is needed: the time of these
# expectations counts from publishing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;
use Time::HiRes qw(sleep);

use OutboxTest;

my $node = new_node('decider_kills', conf => { 'restart_after_crash' => 'on', 'fsync' => 'off' });
new_database($node, 'a');

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('a', $query);
}

# The same, while the server restarts.
sub insist
{
	my ($query) = @_;
	return insist_sql($node, 'a', $query);
}

sql(q{
	CREATE TABLE effect (id text, what text);
	CREATE FUNCTION on_confirmed(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.effect SELECT (d).correlation_id, 'confirmed' $$;
	CREATE FUNCTION on_rejected(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.effect SELECT (d).correlation_id, 'rejected' $$;
	CREATE FUNCTION on_expired(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.effect SELECT (d).correlation_id, 'expired' $$;
	CREATE FUNCTION on_late(d outbox.decision) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.effect SELECT (d).correlation_id, 'late' $$;
});

sub expect
{
	my ($n, $within) = @_;
	return split /\n/, insist(qq{SELECT outbox.expect_confirmation(outbox.publish('t', 'x'::text), $within,
		'public.on_confirmed', 'public.on_rejected', 'public.on_expired', 'public.on_late', counts_from => 'publishing')
		FROM generate_series(1, $n) AS i});
}

# Every expectation is decided and took effect once, as it was decided; a late
# answer as well.
sub check
{
	my ($name) = @_;
	wait_until("$name: all is done", sub {
			(try_sql($node, 'a', q{SELECT count(*) FROM outbox.confirmation WHERE completed_at IS NULL}) // '') eq '0';
		}, 120, sub { insist('SELECT correlation_id, decision, handler_state, late_state, attempts, next_try_at, error, deadline FROM outbox.confirmation WHERE completed_at IS NULL LIMIT 10') });
	is(insist(q{SELECT count(*) FROM outbox.confirmation AS c
		WHERE (SELECT string_agg(what, ',' ORDER BY what = 'late') FROM effect AS e WHERE e.id = c.correlation_id)
			IS DISTINCT FROM c.decision || CASE WHEN c.late > 0 THEN ',late' ELSE '' END}), 0, "$name: each took effect once");
	is(insist(q{SELECT count(*) FROM effect AS e WHERE NOT EXISTS (SELECT FROM outbox.confirmation AS c WHERE c.correlation_id = e.id)}), 0,
		"$name: nothing else did");
	is(insist(q{SELECT count(*) FROM outbox.confirmation WHERE attempts > 0 OR error IS NOT NULL}), 0, "$name: nothing failed");
	return;
}

my $log = $node->logfile;

sub deaths
{
	my ($point) = @_;
	my $text = PostgreSQL::Test::Utils::slurp_file($log);
	my $count = () = $text =~ /dies at fault point "\Q$point\E"/g;
	return $count;
}

for my $point ('expiring', 'expired', 'calling', 'called', 'call committed')
{
	for my $round (1 .. 3)
	{
		my $before = deaths($point);
		insist("ALTER SYSTEM SET outbox_kafka.fault_point = '$point:$round'");
		insist('SELECT pg_reload_conf()');
		expect(3, "i * interval '0.2 s'");
		my ($confirmed) = expect(1, "'1 hour'");
		insist("SELECT outbox.confirm('$confirmed')");
		wait_until("it has died at $point", sub { deaths($point) > $before }, 60,
			sub { insist('SELECT * FROM outbox.confirmations WHERE completed_at IS NULL') });
		insist('ALTER SYSTEM RESET outbox_kafka.fault_point');
		insist('SELECT pg_reload_conf()');
	}
	check("killed at $point");
}

# at random, with answers that race with the deadline
for my $round (1 .. 12)
{
	my @ids = expect(40, "(100 + random() * 400) * interval '1 ms'");
	insist("SELECT outbox.confirm('$_') FROM pg_sleep(0.005)") for grep { rand() < 0.4 } @ids[0 .. 19];
	my $pid = try_sql($node, 'a', q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '%decider%'});
	sleep rand 0.4;
	kill 'KILL', $pid if $pid;
}
check('killed at random');
cmp_ok(insist(q{SELECT count(*) FROM outbox.confirmation WHERE decision = 'confirmed'}), '>', 20, 'some were confirmed in time');
cmp_ok(insist(q{SELECT count(*) FROM outbox.confirmation WHERE decision = 'expired'}), '>', 200, 'others expired');

$node->stop;
done_testing();
