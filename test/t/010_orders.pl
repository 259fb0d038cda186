# The main job over a real Kafka: what committed transactions published arrives
# at a consumer as it was published, in the partition the Java client would
# have chosen, and nothing else arrives.
#
# Two databases of one server publish: from psql, from a Python client, from a
# trigger and by a plain INSERT.

use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FindBin;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $PARTITIONS = 6;

# The hash as the Java client's own test suite has it.
my %murmur2_vectors = (
	'21' => -973932308,
	'foobar' => -790332482,
	'a-little-bit-long-string' => -985981536,
	'a-little-bit-longer-string' => -1486304829,
	'lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8' => -58897971,
	'abc' => 479470107);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('orders.created', $PARTITIONS);
$kafka->create_topic('bytes', $PARTITIONS);
$kafka->create_topic('order', $PARTITIONS);

my $node = new_node('main', kafka => $kafka);
for my $database (qw(a b))
{
	new_database($node, $database);
	$node->safe_psql($database, q{
		CREATE TABLE orders (id int PRIMARY KEY, item text NOT NULL, amount numeric NOT NULL)});
}
$node->safe_psql('postgres', 'CREATE ROLE shop LOGIN');
$node->safe_psql('a', q{
	GRANT SELECT, INSERT ON orders TO shop;
	SELECT outbox.grant_publish('shop', '{orders.*}')});

# event id => what has to arrive, for 'orders.created'
my %expected;

sub expect
{
	my ($database, $client, $lines) = @_;
	for my $line (split /\n/, $lines)
	{
		my ($event_id, $key, $payload) = split /\|/, $line, 3;
		$expected{$event_id} = {
			database => $database,
			client => $client,
			key => $key,
			payload => $payload
		};
	}
	return;
}

# --- psql, in a, as a role that may publish orders ---------------------------

my $insert_and_publish = q{
	WITH o AS (INSERT INTO orders VALUES (%1$d, 'Schlüssel %1$d', %1$d.50) RETURNING *)
	SELECT outbox.publish('orders.created', to_jsonb(o), key => o.id::text) AS event,
		   o.id, to_jsonb(o)
	FROM o};

for my $id (1 .. 20)
{
	my $statement = sprintf $insert_and_publish, $id;
	expect('a', 'psql',
		$node->safe_psql('a', "SET ROLE shop; BEGIN; $statement; COMMIT"));
}

# All of one transaction, but for the part that is rolled back.
expect(
	'a', 'psql with a savepoint',
	$node->safe_psql(
		'a', join ';',
		'BEGIN', sprintf($insert_and_publish, 21),
		'SAVEPOINT s', sprintf("\\o /dev/null\n$insert_and_publish", 22),
		"\\o\nROLLBACK TO s", sprintf($insert_and_publish, 23),
		'COMMIT'));

# None of these: rolled back, failed, prepared and rolled back.
$node->safe_psql('a', join ';', 'BEGIN', sprintf($insert_and_publish, 24), 'ROLLBACK');
isnt(
	$node->psql('a',
		sprintf("BEGIN; $insert_and_publish; SELECT 1 / 0; COMMIT", 25)),
	0,
	'a failing transaction');
$node->safe_psql('a',
	sprintf("BEGIN; $insert_and_publish; PREPARE TRANSACTION 'never'", 26));
$node->safe_psql('a', q{ROLLBACK PREPARED 'never'});

# One that another session commits.
expect(
	'a', 'prepared',
	$node->safe_psql('a',
		sprintf("BEGIN; $insert_and_publish; PREPARE TRANSACTION 'later'", 27)));
$node->safe_psql('a', q{COMMIT PREPARED 'later'});

# --- a Python client, in a ---------------------------------------------------

my ($python_out, $python_err);
my $python_ok = IPC::Run::run(
	[
		'/usr/bin/python3', "$FindBin::Bin/010_orders_client.py",
		$node->connstr('a') . ' user=shop'
	],
	'>', \$python_out, '2>', \$python_err);
ok($python_ok, 'the Python client') or diag($python_err);
expect('a', 'Python', $python_out);

# --- a trigger, in b ---------------------------------------------------------

$node->safe_psql('b', q{
	CREATE TABLE sent (event uuid, id int, payload jsonb);
	CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO sent
		VALUES (outbox.publish('orders.created', to_jsonb(NEW), key => NEW.id::text),
				NEW.id, to_jsonb(NEW));
		RETURN NULL;
	END $$;
	CREATE TRIGGER announce AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION announce()});
$node->safe_psql('b', q{
	INSERT INTO orders SELECT i, 'item ' || i, i FROM generate_series(1000, 1049) AS i;
	BEGIN;
	INSERT INTO orders VALUES (2000, 'never', 0);
	ROLLBACK});
expect('b', 'trigger', $node->safe_psql('b', 'TABLE sent'));

# --- a plain INSERT, in b ----------------------------------------------------

expect(
	'b', 'INSERT',
	$node->safe_psql('b', q{
		INSERT INTO outbox.message (topic, key, payload)
		SELECT 'orders.created', convert_to(k, 'UTF8'), convert_to(p, 'UTF8')
		FROM (VALUES ('schlüssel', '{"way": "INSERT"}')) AS v (k, p)
		RETURNING event_id, convert_from(key, 'UTF8'), convert_from(payload, 'UTF8')}));

# --- what arrives ------------------------------------------------------------

is(scalar keys %expected, 20 + 2 + 1 + 3 + 50 + 1, 'as many events as were committed');
for my $database (qw(a b))
{
	wait_published($node, $database,
		grep { $expected{$_}{database} eq $database } keys %expected);
	wait_delivered($node, $database);
}

is(murmur2($_), $murmur2_vectors{$_}, "murmur2 of $_") for sort keys %murmur2_vectors;

my %created = map { split /\|/ }
  map { split /\n/, $node->safe_psql($_, q{
	SELECT event_id, floor(extract(epoch FROM created_at) * 1000) FROM outbox.message}) } qw(a b);

my @records = $kafka->consume('orders.created');
is(scalar @records, scalar keys %expected, 'nothing more and nothing twice');

my %used_partitions;
for my $record (@records)
{
	my $id = $record->{header}{ce_id};
	my $expected = delete $expected{ $id // '' };
	if (!$expected)
	{
		fail('an event nobody committed: ' . explain($record));
		next;
	}
	subtest "$expected->{client}: key $expected->{key}" => sub {
		is($record->{key}, $expected->{key}, 'key');
		is($record->{payload}, $expected->{payload}, 'payload');
		is($record->{partition}, murmur2_partition($expected->{key}, $PARTITIONS), 'partition');
		is($record->{ts}, $created{$id}, 'timestamp: when it was published');
		is_deeply(
			$record->{header},
			{
				ce_specversion => '1.0',
				ce_id => $id,
				ce_source => "/postgresql/$expected->{database}",
				ce_type => 'orders.created'
			},
			'headers');
		is(scalar @{ $record->{headers} }, 4, 'each header once');
	};
	$used_partitions{ $record->{partition} } = 1;
}
is(join(', ', sort map { "$_->{client} $_->{key}" } values %expected), '', 'nothing is missing');
is(scalar keys %used_partitions, $PARTITIONS, 'the keys reach every partition');

is( $node->safe_psql('a', q{
	SELECT status, count(*) FROM outbox.message_status GROUP BY status}),
	'published|26', 'the view of a says so');

# --- byte for byte -----------------------------------------------------------

# name => arguments of publish(), and what has to arrive
my $every_byte = pack 'C*', 0 .. 255;
my $every_byte_hex = unpack 'H*', $every_byte;
my $umlauts = "Grüße, 東京, \xf0\x9f\x90\x98";    # as UTF-8 bytes, like this file
my @cases = (
	[ 'NULL key' => q{'x'::text}, { key => undef, payload => 'x' } ],
	[ 'empty key' => q{'x'::text, ''}, { key => '', payload => 'x' } ],
	[ 'empty payload' => q{''::text, 'k'}, { key => 'k', payload => '' } ],
	[ 'empty bytea' => q{''::bytea, 'k'}, { key => 'k', payload => '' } ],
	[ 'tombstone' => q{NULL::text, 'k'}, { key => 'k', payload => undef } ],
	[ 'tombstone, bytea' => q{NULL::bytea, '\x00ff'::bytea}, { key => "\0\xff", payload => undef } ],
	[ 'zero bytes' => q{'\x000000'::bytea, 'k'}, { key => 'k', payload => "\0\0\0" } ],
	[
		'every byte' => "'\\x$every_byte_hex'::bytea, '\\x$every_byte_hex'::bytea",
		{ key => $every_byte, payload => $every_byte }
	],
	[ 'not ASCII' => "'$umlauts'::text, '$umlauts'", { key => $umlauts, payload => $umlauts } ],
	[
		'jsonb' => q{'{"b": 1, "a":  "ü\u0041\n"}'::jsonb, 'k'},
		{ key => 'k', payload => '{"a": "üA\n", "b": 1}' }
	],
	[
		'json, as it was written' => q{'{"b": 1, "a":  2 }'::json, 'k'},
		{ key => 'k', payload => '{"b": 1, "a":  2 }' }
	],
	[ 'untyped literal' => q{'plain'}, { key => undef, payload => 'plain' } ],
	[
		'headers' => q{'x'::text, 'k', headers => '{"h": "1", "n": null, "l": ["a", null, "ü"], "empty": ""}'},
		{ key => 'k', payload => 'x', headers => [ [ 'h', '1' ], [ 'l', 'a' ], [ 'l', undef ], [ 'l', 'ü' ], [ 'n', undef ], [ 'empty', '' ] ] }
	],
	[
		'source and type of its own' => q{'x'::text, headers => '{"ce_type": "t", "ce_source": "s"}'},
		{ key => undef, payload => 'x', type => 't', source => 's' }
	],
	[
		'correlation id' => q{'x'::text, 'k', correlation_id => 'c-1'},
		{ key => 'k', payload => 'x', headers => [ [ 'correlation-id', 'c-1' ] ] }
	],
	[ 'partition' => q{'x'::text, 'k', partition => 5}, { key => 'k', payload => 'x', partition => 5 } ],
	[ 'partition 0' => q{'x'::text, 'foobar', partition => 0}, { key => 'foobar', payload => 'x', partition => 0 } ],
	[
		'event id' => q{'x'::text, event_id => '11111111-2222-3333-4444-555555555555'},
		{ key => undef, payload => 'x', id => '11111111-2222-3333-4444-555555555555' }
	],
);

for my $case (@cases)
{
	my ($name, $arguments, $wanted) = @$case;
	my $id = publish($node, 'a', "'bytes', $arguments");
	is($id, $wanted->{id}, "$name: the id that was given") if $wanted->{id};
	$wanted->{id} = $id;
}

# 900 kB that do not compress, and 900 kB that do; made by the server.
my %big = (
	'900 kB' => q{(SELECT string_agg(sha256(int4send(i)), '' ORDER BY i) FROM generate_series(1, 28125) AS i)},
	'900 kB of zero bytes' => q{decode(repeat('00', 900000), 'hex')});
my %big_sum;
for my $name (sort keys %big)
{
	my ($id, $sum) = split /\|/, $node->safe_psql('a', qq{
		SELECT outbox.publish('bytes', payload, key => 'big'), encode(sha256(payload), 'hex')
		FROM (SELECT $big{$name} AS payload) AS p});
	$big_sum{$id} = [ $name, $sum ];
}
wait_published($node, 'a', keys %big_sum, map { $_->[2]{id} } @cases);

my %arrived = map { $_->{header}{ce_id} => $_ } $kafka->consume('bytes');
is(scalar keys %arrived, @cases + keys %big, 'as many as were published');
for my $case (@cases)
{
	my ($name, undef, $wanted) = @$case;
	my $record = $arrived{ $wanted->{id} };
	my %own = (ce_specversion => 1, ce_id => 1, ce_source => 1, ce_type => 1);
	subtest $name => sub {
		ok($record, 'arrived') or return;
		is($record->{key}, $wanted->{key}, 'key');
		is($record->{payload}, $wanted->{payload}, 'payload');
		is($record->{header}{ce_type}, $wanted->{type} // 'bytes', 'type');
		is($record->{header}{ce_source}, $wanted->{source} // '/postgresql/a', 'source');
		is_deeply(
			[ grep { !$own{ $_->[0] } } @{ $record->{headers} } ],
			$wanted->{headers} // [],
			'headers, in order');
		my $partition = $wanted->{partition};
		$partition //= murmur2_partition($wanted->{key}, $PARTITIONS) if defined $wanted->{key};
		is($record->{partition}, $partition, 'partition') if defined $partition;
	};
}
for my $id (sort keys %big_sum)
{
	my ($name, $sum) = @{ $big_sum{$id} };
	my $record = $arrived{$id};
	is(length($record->{payload} // ''), 900000, "$name: length");
	is(sha256_hex($record->{payload} // ''), $sum, "$name: content");
}

# --- order of one key --------------------------------------------------------

# Each in a transaction of its own, and each in a statement of one transaction.
$node->safe_psql('a', join ';',
	map { "SELECT outbox.publish('order', '$_'::text, 'one key')" } 1 .. 200);
my $last = $node->safe_psql('a', join ';', 'BEGIN',
	(map { "SELECT outbox.publish('order', '$_'::text, 'one key')" } 201 .. 400),
	'COMMIT');
wait_published($node, 'a', (split /\n/, $last)[-1]);
is(
	join(' ', map { $_->{payload} } $kafka->consume('order')),
	join(' ', 1 .. 400),
	'messages of a key in the order of publishing');

$node->stop;
done_testing();
