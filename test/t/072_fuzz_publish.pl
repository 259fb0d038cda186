
# Random arguments for every form of outbox.publish() and for INSERT: whatever
# is accepted arrives at a consumer byte for byte, whatever is not raises the
# error that the documentation names, and the two are told apart here by rules
# written anew. The server lives through all of it.
#
# OUTBOX_FUZZ_SEED repeats a run (it is printed), OUTBOX_FUZZ_CASES makes a
# longer one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Encode qw(encode_utf8);
use JSON::PP;
use List::Util qw(shuffle);
use Test::More;

use OutboxTest;
use OutboxTest::Kcat;
use OutboxTest::MockBroker;
use PostgreSQL::Test::Utils;

my $seed = $ENV{OUTBOX_FUZZ_SEED} // 20240229;
my $cases = $ENV{OUTBOX_FUZZ_CASES} // 1000;
my $partitions = 4;
my $max_bytes = 100_000;

diag("OUTBOX_FUZZ_SEED=$seed OUTBOX_FUZZ_CASES=$cases");
srand $seed;

sub one_of { return $_[ rand @_ ]; }

# How long something is: mostly short, now and then on an edge.
sub random_length
{
	my ($most) = @_;
	my $kind = rand;
	return 0 if $kind < 0.1;
	return 1 + int rand 20 if $kind < 0.8;
	return int rand $most if $kind < 0.97;
	return one_of(127, 128, 129, 255, 256, 1999, 2000, 2001, 2047, 2048, 8191, 8192, 16383, 16384);
}

sub random_bytes
{
	my ($length) = @_;
	return one_of("\0", "\xff", '\\', "\r\n", "'") x $length if rand() < 0.05;
	return join '', map { chr int rand 256 } 1 .. $length;
}

# Characters that text can hold: no NUL, no surrogates.
sub random_text
{
	my ($length) = @_;
	return join '', map {
		my $kind = rand;
		$kind < 0.6 ? chr(32 + int rand 95)
		  : $kind < 0.7 ? chr(1 + int rand 31)
		  : $kind < 0.8 ? one_of("\x{7f}", "\x{80}", "\x{a0}", "\x{2028}", "\x{fffe}", "\x{feff}", "\x{10ffff}", "\x{202e}", '"', '\\', "'", '$$')
		  : $kind < 0.9 ? chr(0x80 + int rand 0x700)
		  : chr(0x10000 + int rand 0xfff00)
	} 1 .. $length;
}

my @topics = ('a', '0', '-', '_', '...', '.a', '-.-', 'A_b-C.9', 'x' x 249, 'orders.created', 'q', '__x');
my @bad_topics = (undef, '', '.', '..', 'x' x 250, 'a b', 'a/b', "a\n", "\x{e4}", 'a*', 'a:b', "a\x{2028}", '%s%n', '"', "a'; --", 'a' x 70000);

# A value of headers, and whether it may be one. What is accepted is an object
# of string, null or arrays of those.
sub random_headers
{
	my $kind = rand;
	return (undef, 1) if $kind < 0.4;
	return (one_of([], ['a'], 'text', 0, JSON::PP::true, [ {} ], -1.5), 0) if $kind < 0.44;

	my ($fine, %headers) = 1;
	for (1 .. (rand() < 0.02 ? 300 : 1 + int rand 5))
	{
		my $name = random_text(rand() < 0.02 ? 0 : rand() < 0.02 ? 3000 : 1 + int rand 12);
		$name = one_of('ce_id', 'ce_specversion') if rand() < 0.02;
		next if exists $headers{$name} || $name =~ /^(ce_source|ce_type|ce_time|correlation-id)$/;
		my $value = random_header_value(\$fine, 0);
		$fine = 0 if $name =~ /^(ce_id|ce_specversion|)$/;
		$headers{$name} = $value;
	}
	return (\%headers, $fine);
}

sub random_header_value
{
	my ($fine, $nested) = @_;
	my $kind = rand;
	return undef if $kind < 0.15;
	return random_text(random_length(300)) if $kind < 0.75;
	if ($kind < 0.96)
	{
		$$fine = 0 if $nested;
		return [ map { random_header_value($fine, 1) } 1 .. int rand 4 ];
	}
	$$fine = 0;
	return one_of(1, -1e300, JSON::PP::false, {}, { a => 'b' });
}

my $json = JSON::PP->new->ascii->allow_nonref->canonical;

# Arguments of a call, and what has to come of it: 'fine', an SQLSTATE, or
# undef where only one of the two is known ("too large" is not computed here).
sub random_case
{
	my ($id) = @_;
	my %case = (id => $id);
	my @expected;

	$case{form} = one_of(qw(jsonb json text bytea_text bytea insert));
	$case{topic} = rand() < 0.06 ? one_of(@bad_topics) : one_of(@topics);
	my $topic = $case{topic};
	push @expected, '22004' if !defined $topic;
	push @expected, '22023'
	  if defined $topic && ($topic !~ /\A[A-Za-z0-9._-]{1,249}\z/ || $topic =~ /\A\.\.?\z/);

	my $length = random_length(3000);
	$length = one_of($max_bytes - 500, $max_bytes - 1, $max_bytes, $max_bytes + 1, 3 * $max_bytes) if rand() < 0.01;
	if ($case{form} =~ /^json/)
	{
		my $value = rand() < 0.5 ? random_text($length) : rand() < 0.5 ? int rand 1e9 : { random_text(3) => [ random_text(5), undef ] };
		$case{payload} = $json->encode($value);
	}
	elsif ($case{form} eq 'text') { $case{payload} = encode_utf8(random_text($length)); }
	else { $case{payload} = random_bytes($length); }
	$case{payload} = undef if rand() < 0.05;

	$case{key} = rand() < 0.3 ? undef : random_length(500);
	$case{key} = $case{form} =~ /^(bytea|insert)$/ ? random_bytes($case{key}) : encode_utf8(random_text($case{key}))
	  if defined $case{key};
	push @expected, '22004' if !defined $case{payload} && !defined $case{key};

	my ($headers, $headers_fine) = random_headers();
	$case{headers} = $headers;
	$case{has_headers} = defined $headers;
	push @expected, one_of('22023') if !$headers_fine;

	$case{partition} = rand() < 0.8 ? undef
	  : rand() < 0.7 ? int rand $partitions
	  : one_of(-1, -2147483648, 4, 5, 2147483647, 100000);
	push @expected, '22023' if defined $case{partition} && $case{partition} < 0;

	$case{event_id} = rand() < 0.7 ? undef
	  : join '', map { sprintf '%04x', rand 65536 } 1 .. 8;
	$case{correlation_id} = rand() < 0.7 ? undef : random_text(rand() < 0.9 ? int rand 40 : one_of(1023, 1024, 1025, 512));
	push @expected, '22023'
	  if defined $case{correlation_id} && length(encode_utf8($case{correlation_id})) > 1024;

	$case{expected} = \@expected;
	return \%case;
}

# ---------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------

my $broker = OutboxTest::MockBroker->new;
$broker->command("topic $_ $partitions") for @topics;
my $node = new_node('fuzz', kafka => $broker,
	conf => { 'outbox_kafka.max_message_bytes' => $max_bytes, 'autovacuum' => 'off' });
new_database($node, 'a');
my $started = $node->safe_psql('a', 'SELECT pg_postmaster_start_time()');

my @cases = map { random_case($_) } 1 .. $cases;

sub copy_field
{
	my ($value) = @_;
	return defined $value ? '\\\\x' . unpack('H*', $value) : '\\N';
}

# Everything travels as bytes, so that nothing but the call itself can object.
my $input = PostgreSQL::Test::Utils::tempdir() . '/fuzz.sql';
open(my $file, '>', $input) or die "could not write $input: $!";
print $file q{
	\set ON_ERROR_STOP 1
	CREATE TABLE cases (id int PRIMARY KEY, form text, topic bytea, payload bytea, key bytea, headers bytea,
		partition int, event_id uuid, correlation_id bytea, outcome text, expected_payload bytea);
	COPY cases (id, form, topic, payload, key, headers, partition, event_id, correlation_id) FROM stdin;
};
for my $case (@cases)
{
	print $file join("\t",
		$case->{id}, $case->{form},
		copy_field(defined $case->{topic} ? encode_utf8($case->{topic}) : undef),
		copy_field($case->{payload}), copy_field($case->{key}),
		copy_field($case->{has_headers} ? $json->encode($case->{headers}) : undef),
		$case->{partition} // '\\N', $case->{event_id} // '\\N',
		copy_field(defined $case->{correlation_id} ? encode_utf8($case->{correlation_id}) : undef)), "\n";
}
print $file q{\.
	CREATE FUNCTION try(c cases) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE
		topic text := convert_from(c.topic, 'UTF8');
		payload text := CASE WHEN c.form IN ('jsonb', 'json', 'text') THEN convert_from(c.payload, 'UTF8') END;
		key text := CASE WHEN c.form IN ('jsonb', 'json', 'text', 'bytea_text') THEN convert_from(c.key, 'UTF8') END;
		headers jsonb := convert_from(c.headers, 'UTF8');
		correlation_id text := convert_from(c.correlation_id, 'UTF8');
		result uuid;
	BEGIN
		CASE c.form
			WHEN 'jsonb' THEN result := outbox.publish(topic, payload::jsonb, key, headers, c.partition, c.event_id, correlation_id);
			WHEN 'json' THEN result := outbox.publish(topic, payload::json, key, headers, c.partition, c.event_id, correlation_id);
			WHEN 'text' THEN result := outbox.publish(topic, payload, key, headers, c.partition, c.event_id, correlation_id);
			WHEN 'bytea_text' THEN result := outbox.publish(topic, c.payload, key, headers, c.partition, c.event_id, correlation_id);
			WHEN 'bytea' THEN result := outbox.publish(topic, c.payload, c.key, headers, c.partition, c.event_id, correlation_id);
			WHEN 'insert' THEN INSERT INTO outbox.message (topic, payload, key, headers, partition, event_id, correlation_id)
				VALUES (topic, c.payload, c.key, headers, c.partition, c.event_id, correlation_id) RETURNING event_id INTO result;
		END CASE;
		RETURN result;
	EXCEPTION WHEN OTHERS THEN
		RETURN sqlstate;
	END $$;
	DO $$
	DECLARE
		c cases;
	BEGIN
		FOR c IN SELECT * FROM cases ORDER BY id LOOP
			UPDATE cases AS u SET outcome = try(c) WHERE u.id = c.id;
			IF c.id % 50 = 0 THEN
				COMMIT;
			END IF;
		END LOOP;
	END $$;
	UPDATE cases SET expected_payload = CASE form WHEN 'jsonb' THEN convert_to(convert_from(payload, 'UTF8')::jsonb::text, 'UTF8') ELSE payload END
		WHERE length(outcome) > 5;
};
close $file;
my (undef, $stderr) = run_command([ 'psql', '-X', '-q', '-d', $node->connstr('a'), '-f', $input ]);
is($stderr, '', 'every call ended');
is($node->safe_psql('a', 'SELECT count(*) FROM cases WHERE outcome IS NULL'), 0, 'with an outcome');

for my $line (split /\n/, $node->safe_psql('a', q{SELECT id, outcome, coalesce(encode(expected_payload, 'hex'), 'null') FROM cases}))
{
	my ($id, $outcome, $payload) = split /\|/, $line, -1;
	$cases[ $id - 1 ]{outcome} = $outcome;
	$cases[ $id - 1 ]{arrives} = $payload eq 'null' ? undef : pack 'H*', $payload;
}

# ---------------------------------------------------------------------------
# Outcomes
# ---------------------------------------------------------------------------

sub describe
{
	my ($case) = @_;
	return "case $case->{id}: " . join ', ', map {
		my $value = $case->{$_} // 'NULL';
		$value = ref $value eq 'ARRAY' ? "[@$value]" : $json->encode($value) if ref $value;
		"$_=" . substr($value, 0, 60) =~ s/([^ -~])/sprintf '\\x{%x}', ord $1/ger;
	} qw(form topic payload key headers partition event_id correlation_id expected outcome);
}

my (@wrong, %outcomes, @accepted);
for my $case (@cases)
{
	my $accepted = length $case->{outcome} > 5;
	my %expected = map { $_ => 1 } @{ $case->{expected} };

	# reserved header names have a code of their own
	$expected{42939} = 1
	  if ref $case->{headers} eq 'HASH' && grep { /^ce_(id|specversion)$/ } keys %{ $case->{headers} };
	# it may be too large as well; that is looked for last
	my $large = $case->{outcome} eq '54000' && !grep { !/^54000$/ } @{ $case->{expected} };
	$outcomes{ $accepted ? 'accepted' : $case->{outcome} }++;
	push @accepted, $case if $accepted;
	push @wrong, describe($case)
	  unless $accepted ? !%expected : $large ? is_large($case) : $expected{ $case->{outcome} };
	push @wrong, 'other event id, ' . describe($case)
	  if $accepted && defined $case->{event_id} && $case->{outcome} =~ tr/-//dr ne $case->{event_id};
}

# Key, payload and headers alone, without what is added: within 1 kB.
sub is_large
{
	my ($case) = @_;
	my $bytes = length($case->{payload} // '') + length($case->{key} // '') + length(encode_utf8($case->{correlation_id} // ''));
	$bytes += 30 * ($case->{headers} ? 1 + $json->encode($case->{headers}) =~ tr/,// : 0);
	$bytes += 2 * length($json->encode($case->{headers})) if $case->{has_headers};
	return $bytes + 1024 > $max_bytes || $bytes > $max_bytes / 2;
}
is_deeply(\@wrong, [], 'accepted and refused as documented');
diag('outcomes: ' . join ', ', map { "$_ $outcomes{$_}" } sort keys %outcomes);
for my $outcome (qw(accepted 22004 22023 42939 54000))
{
	cmp_ok($outcomes{$outcome} // 0, '>', 0, "some are $outcome");
}

# ---------------------------------------------------------------------------
# Arrivals
# ---------------------------------------------------------------------------

# A partition that does not exist can only be known later: such a message is
# parked, and what follows it of its topic and key.
my %blocked;
my (@parked, @sent);
for my $case (@accepted)
{
	my $lane = defined $case->{key} ? "$case->{topic}\0$case->{key}" : undef;
	if (defined $case->{partition} && $case->{partition} >= $partitions)
	{
		push @parked, $case;
		$blocked{$lane} = 1 if defined $lane;
	}
	elsif (defined $lane && $blocked{$lane}) { push @parked, $case; }
	else { push @sent, $case; }
}
wait_delivered($node, 'a', 120);
is_deeply(
	[ sort split /\n/, $node->safe_psql('a', 'SELECT event_id FROM outbox.parked') ],
	[ sort map { $_->{outcome} } @parked ],
	scalar(@parked) . ' parked, as foreseen');

my %arrived;
for my $topic (@topics)
{
	$arrived{ $_->{header}{ce_id} } = $_ for OutboxTest::Kcat::consume($broker->bootstrap, $topic);
}
is(scalar keys %arrived, scalar @sent, scalar(@sent) . ' arrived');

# Given headers, as a record has them: an array is several of the same name.
sub flat_headers
{
	my ($case) = @_;
	my @flat;
	for my $name (keys %{ $case->{headers} // {} })
	{
		my $value = $case->{headers}{$name};
		push @flat, map { encode_utf8($name) . '=' . (defined $_ ? encode_utf8($_) : '(null)') }
		  ref $value ? @$value : $value;
	}
	return sort @flat;
}

my @different;
for my $case (@sent)
{
	my $record = $arrived{ $case->{outcome} };
	if (!$record) { push @different, 'missing, ' . describe($case); next; }
	my %record = (
		topic => $record->{topic}, key => $record->{key}, payload => $record->{payload},
		correlation_id => $record->{header}{'correlation-id'},
		type => $record->{header}{ce_type}, version => $record->{header}{ce_specversion},
		source => $record->{header}{ce_source},
		partition => defined $case->{partition} ? $record->{partition} : undef,
		headers => join("\n", sort map { "$_->[0]=" . ($_->[1] // '(null)') }
			  grep { $_->[0] !~ /^(ce_(id|type|source|specversion|time)|correlation-id)$/ } @{ $record->{headers} }));
	my %wanted = (
		topic => $case->{topic}, key => $case->{key}, payload => $case->{arrives},
		correlation_id => defined $case->{correlation_id} ? encode_utf8($case->{correlation_id}) : undef,
		type => $case->{topic}, version => '1.0', source => '/postgresql/a',
		partition => $case->{partition}, headers => join("\n", flat_headers($case)));
	my @fields = grep { ($record{$_} // "\0none") ne ($wanted{$_} // "\0none") } sort keys %wanted;
	push @different, "@fields, " . describe($case) if @fields;
	push @different, 'another partition than the key\'s, ' . describe($case)
	  if !defined $case->{partition} && defined $case->{key}
	  && $record->{partition} != murmur2_partition($case->{key}, $partitions);
}
is_deeply(\@different, [], 'byte for byte');

is($node->safe_psql('a', 'SELECT pg_postmaster_start_time()'), $started, 'the server has not restarted');
ok(!$node->log_contains(qr/PANIC|TRAP|was terminated by signal/), 'no process of it died');
$node->stop;
done_testing();
