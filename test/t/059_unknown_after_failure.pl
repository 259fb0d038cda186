
# A relay that could not send at all, and then can, finds a message of a topic
# that the broker does not know at the head of its line: the topic is held like
# any other time, and the others go on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Test::More;

use OutboxTest;
use OutboxTest::Kafka;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('good', 1);

# A file that everybody can read is refused: no producer.
my $file = "$kafka->{dir}/relay.properties";
open(my $handle, '>', $file) or die "could not write $file: $!";
print $handle "linger.ms=0\n";
close $handle;
chmod 0644, $file;
my $node = new_node('unknown', kafka => $kafka, conf => { 'outbox_kafka.config_file' => $file });
new_database($node, 'a');
wait_state($node, 'a', 'failed');

publish($node, 'a', q{'nowhere', 'x'::text, 'k'});
my $id = publish($node, 'a', q{'good', 'x'::text, 'k'});
chmod 0600, $file;
wait_until('the other topic goes on', sub {
	$node->safe_psql('a', "SELECT outbox.status('$id')") eq 'published' }, 60,
	sub { explain relay_status($node, 'a') });
is($node->safe_psql('a', 'SELECT topic, reason FROM outbox.held_lanes'), 'nowhere|refused', 'the unknown topic is held');
$kafka->create_topic('nowhere', 1);
wait_delivered($node, 'a', 60);
is($kafka->message_count($_), 1, "$_: arrived") for 'nowhere', 'good';
wait_state($node, 'a', 'idle');
$node->stop;
done_testing();
