
# Consuming: messages from a real Kafka are handled by a SQL function, in order,
# each once, its effects and the position in one transaction.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Inbox;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('orders', 3);
my $node = new_node('inbox', kafka => $kafka);
new_database($node, 'd');

$node->safe_psql('d', q{
	CREATE TABLE handled (n bigserial, topic text, partition int, "offset" bigint,
		key bytea, payload bytea, headers jsonb, "timestamp" timestamptz,
		event_id uuid, correlation_id text, who text);
	CREATE FUNCTION handle(m inbox.message) RETURNS void LANGUAGE sql AS $$
		INSERT INTO handled (topic, partition, "offset", key, payload, headers, "timestamp", event_id, correlation_id, who)
		SELECT (m).*, current_user $$;
	SELECT inbox.subscribe('s', '{orders}', 'handle');
});
my $id = publish($node, 'd', q{'orders', '{"a":1}'::jsonb, 'k', '{"x":"1","y":null}', NULL, NULL, 'c-1'});
wait_handled($node, 'd', 's', 1);
is($node->safe_psql('d', q{
	SELECT topic, partition, "offset", convert_from(key, 'UTF8'), convert_from(payload, 'UTF8'),
		headers->>'x', headers->'y', headers->>'ce_id' = event_id::text, correlation_id,
		now() - "timestamp" < '1 minute', who = current_user FROM handled}),
	'orders|' . murmur2_partition('k', 3) . '|0|k|{"a": 1}|1|null|t|c-1|t|t',
	'a message arrives as it was published');
is($node->safe_psql('d', 'SELECT event_id FROM handled'), $id, 'with its event id');

done_testing();
