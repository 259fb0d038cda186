
=pod

=head1 NAME

OutboxTest::SecureKafka - a real Apache Kafka with TLS, logins and ACLs

=head1 SYNOPSIS

  my $kafka = OutboxTest::SecureKafka->new;
  $kafka->start;
  $kafka->create_topic('orders', 3);
  $kafka->set_password('relay', 'secret');
  $kafka->allow('User:relay', 'WRITE', 'orders');
  # outbox_kafka.bootstrap_servers = $kafka->sasl_bootstrap, and in config_file:
  #   security.protocol=SASL_SSL
  #   ssl.ca.location=$kafka->tls_file('ca.pem')
  #   sasl.mechanisms=$kafka->mechanism
  #   sasl.username=relay
  #   sasl.password=secret

=head1 DESCRIPTION

An OutboxTest::Kafka with two more listeners on each node:

  SSL        TLS with client certificates (principal User:CN=relay)
  SASL_SSL   TLS, then a login by SCRAM-SHA-512 or PLAIN

and with Kafka's own authorizer: who has no ACL may do nothing. The plain
listener stays what the other methods use; whoever comes through it is a
superuser, so topics are made, filled and read there as always.

Certificates are made by openssl for this object alone. The brokers' one is for
the address 127.0.0.1 and no name, so that a connection to "localhost" is one to
a wrong host.

=cut

package OutboxTest::SecureKafka;

use strict;
use warnings;

use parent 'OutboxTest::Kafka';

use Carp;
use Cwd ();
use File::Path qw(make_path);
use IPC::Run;

=head1 METHODS

=over

=item $kafka->tls_bootstrap($host), $kafka->sasl_bootstrap($host)

Addresses of these listeners, like bootstrap; host is 127.0.0.1 by default.

=cut

sub tls_bootstrap
{
	my ($self, $host) = @_;
	return $self->addresses('tls_port', $host);
}

sub sasl_bootstrap
{
	my ($self, $host) = @_;
	return $self->addresses('sasl_port', $host);
}

=item $kafka->tls_file($name)

The path of ca.pem, other_ca.pem (of somebody else), relay.pem (the client's
certificate) or relay.key (its key, with the passphrase $kafka->passphrase).

=item $kafka->passphrase

=cut

sub tls_file
{
	my ($self, $name) = @_;
	my $path = "$self->{tls}/$name";
	croak "there is no $path" unless -e $path;
	return $path;
}

sub passphrase
{
	my ($self) = @_;
	return $self->{passphrase};
}

=item $kafka->mechanism

SCRAM-SHA-512, or PLAIN where the installed librdkafka is older than 2.6.1: those
cannot log in to Kafka 4 by SCRAM (confluentinc/librdkafka#4895).

=cut

sub mechanism
{
	my ($self) = @_;
	if (!$self->{mechanism})
	{
		my @version = `kcat -V` =~ /librdkafka (\d+)\.(\d+)\.(\d+)/
		  or croak 'kcat does not tell its version of librdkafka';
		$self->{mechanism} =
		  sprintf('%03d%03d%03d', @version) ge '002006001' ? 'SCRAM-SHA-512' : 'PLAIN';
	}
	return $self->{mechanism};
}

=item $kafka->set_password($user, $password)

Make the user, or change the password. Returns when a login with it succeeds.
Letters, digits and "-" only. (For PLAIN the nodes are started again: their
users stand in their configuration.)

=cut

sub set_password
{
	my ($self, $user, $password) = @_;
	my $mechanism = $self->mechanism;
	if ($mechanism eq 'PLAIN')
	{
		$self->{plain_users}{$user} = $password;
		for my $node ($self->all_nodes)
		{
			my $path = "$node->{dir}/server.properties";
			(my $text = slurp($path)) =~ s/^(listener\.name\.sasl_ssl\.plain\.sasl\.jaas\.config)=.*/"$1=" . $self->plain_login/me;
			OutboxTest::Kafka::write_file($path, $text);
			$self->restart($node->{id}) if $node->{pid};
		}
	}
	else
	{
		$self->set_scram_password($user, $password);
	}
	$self->wait_until("$user can log in", sub { $self->can_log_in($user, $password) });
	return;
}

# The users that PLAIN knows, as the broker's configuration has them.
sub plain_login
{
	my ($self) = @_;
	my $users = $self->{plain_users} // {};
	return join ' ', 'org.apache.kafka.common.security.plain.PlainLoginModule required',
	  (map { "user_$_=\"$users->{$_}\"" } sort keys %$users), ';';
}

sub set_scram_password
{
	my ($self, $user, $password) = @_;
	run_quietly(
		'java', '-Xmx128m', @{ $self->{java} },
		'-Dlog4j2.configurationFile='
		  . $self->kafka_home('log4j2.properties'),
		'-cp', $self->kafka_home('jars') . '/*', 'kafka.admin.ConfigCommand',
		'--bootstrap-server', $self->bootstrap, '--alter',
		'--entity-type', 'users', '--entity-name', $user,
		'--add-config', "SCRAM-SHA-512=[iterations=4096,password=$password]");
	return;
}

=item $kafka->can_log_in($user, $password)

=cut

sub can_log_in
{
	my ($self, $user, $password) = @_;
	my @command = (
		'kcat', '-L', '-m', '5', '-b', $self->sasl_bootstrap,
		'-X', 'security.protocol=SASL_SSL',
		'-X', 'ssl.ca.location=' . $self->tls_file('ca.pem'),
		'-X', 'sasl.mechanisms=' . $self->mechanism,
		'-X', "sasl.username=$user", '-X', "sasl.password=$password");
	my $output;
	return IPC::Run::run(\@command, '<', '/dev/null', '>&', \$output);
}

=item $kafka->allow($principal, $operation, $topic)

=item $kafka->withdraw($principal, $operation, $topic)

Add an ACL, or remove it. The principal as in "User:relay", the operation as in
"WRITE".

=back

=cut

sub allow
{
	my ($self, $principal, $operation, $topic) = @_;
	$self->admin('allow', $principal, $operation, 'topic', $topic);
	return;
}

sub withdraw
{
	my ($self, $principal, $operation, $topic) = @_;
	$self->admin('withdraw', $principal, $operation, 'topic', $topic);
	return;
}

# ---------------------------------------------------------------------------

sub addresses
{
	my ($self, $port, $host) = @_;
	$host //= '127.0.0.1';
	return join ',', map { "$host:$_->{$port}" } $self->all_nodes;
}

sub kafka_home
{
	my ($self, $name) = @_;
	(my $directory = $INC{'OutboxTest/Kafka.pm'}) =~ s{[^/]+\z}{};
	return Cwd::abs_path("$directory/../../kafka") . "/$name";
}

# The node's configuration, with more listeners in it.
sub prepare_node
{
	my ($self, $node, @rest) = @_;
	$self->make_certificates unless $self->{tls};
	@$node{qw(tls_port sasl_port)} = OutboxTest::Kafka::free_ports(2);

	my $listeners = join ',', "PLAINTEXT://127.0.0.1:$node->{port}",
	  "SSL://127.0.0.1:$node->{tls_port}",
	  "SASL_SSL://127.0.0.1:$node->{sasl_port}";
	my %conf = (
		'listeners' => "$listeners,CONTROLLER://127.0.0.1:$node->{controller_port}",
		'advertised.listeners' => $listeners,
		'listener.security.protocol.map' =>
		  'PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT',
		'inter.broker.listener.name' => 'PLAINTEXT',
		'ssl.keystore.type' => 'PEM',
		'ssl.keystore.location' => "$self->{tls}/broker.keystore.pem",
		'ssl.truststore.type' => 'PEM',
		'ssl.truststore.location' => "$self->{tls}/ca.pem",
		'listener.name.ssl.ssl.client.auth' => 'required',
		'sasl.enabled.mechanisms' => 'SCRAM-SHA-512,PLAIN',
		'listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config' =>
		  'org.apache.kafka.common.security.scram.ScramLoginModule required;',
		'listener.name.sasl_ssl.plain.sasl.jaas.config' => $self->plain_login,
		'authorizer.class.name' =>
		  'org.apache.kafka.metadata.authorizer.StandardAuthorizer',
		'super.users' => 'User:ANONYMOUS',
		%{ $self->{conf} });
	local $self->{conf} = \%conf;
	return $self->SUPER::prepare_node($node, @rest);
}

# A key, and a certificate for it by one of our authorities.
sub make_certificate
{
	my ($self, $name, $authority, $extension, @key_options) = @_;
	my $path = "$self->{tls}/$name";
	OutboxTest::Kafka::write_file("$path.ext", "$extension\n");
	run_quietly(
		'openssl', 'genpkey', '-algorithm', 'EC', '-pkeyopt',
		'ec_paramgen_curve:P-256', '-out', "$path.key", @key_options);
	my @pass = @key_options ? ('-passin', "pass:$self->{passphrase}") : ();
	run_quietly('openssl', 'req', '-new', '-key', "$path.key", @pass,
		'-subj', "/CN=$name", '-out', "$path.csr");
	run_quietly(
		'openssl', 'x509', '-req', '-in', "$path.csr", '-days', '2',
		'-CA', "$self->{tls}/$authority.pem",
		'-CAkey', "$self->{tls}/$authority.key", '-CAcreateserial',
		'-extfile', "$path.ext", '-out', "$path.pem");
	return;
}

sub make_certificates
{
	my ($self) = @_;
	my $tls = $self->{tls} = "$self->{dir}/tls";
	$self->{passphrase} = 'passphrase-' . random_word();
	make_path($tls);
	for my $authority ('ca', 'other_ca')
	{
		run_quietly(
			'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt',
			'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
			'-subj', "/CN=outbox_kafka test $authority",
			'-keyout', "$tls/$authority.key", '-out', "$tls/$authority.pem");
	}
	$self->make_certificate('broker', 'ca', 'subjectAltName=IP:127.0.0.1');
	$self->make_certificate('relay', 'ca', 'extendedKeyUsage=clientAuth',
		'-aes-256-cbc', '-pass', "pass:$self->{passphrase}");
	OutboxTest::Kafka::write_file("$tls/broker.keystore.pem",
		map { slurp("$tls/$_") } 'broker.key', 'broker.pem', 'ca.pem');
	return;
}

# Run a program; its output is shown only if it fails, which ends the test.
sub run_quietly
{
	my (@command) = @_;
	my $output = '';
	IPC::Run::run(\@command, '<', '/dev/null', '>&', \$output)
	  or croak "$command[0] failed: $output";
	return;
}

sub slurp
{
	my ($path) = @_;
	open(my $file, '<', $path) or croak "could not read $path: $!";
	local $/;
	return scalar <$file>;
}

sub random_word
{
	return join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 16;
}

1;
