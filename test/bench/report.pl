#!/usr/bin/perl
#
# report.pl RESULTS.tsv DIRECTORY [RUN...]
#
# Tables of what the benchmark has recorded, to standard output as Markdown, and
# plots into the directory (SVG, by gnuplot if there is one). Without RUN (the
# time a run began, as in the first column) each part is taken from the last run
# that has it.
#
# A line of the results: run, part, contender, parameter, round, metric, value,
# separated by tabs. A figure is the median of the rounds, in brackets the lowest
# and the highest; a ratio is the median of the rounds' ratios.

use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;

use List::Util qw(max min);

use Bench::Report;

# metric => [head, decimals, with the range]
my %columns = (
	rate => [ 'messages/s', 0, 1 ],
	cpu => [ 'CPU us/message', 2, 1 ],
	cpu_sender => [ 'sender us', 2 ],
	cpu_server => [ 'PostgreSQL us', 2 ],
	cpu_broker => [ 'broker us', 2 ],
	cpu_machine => [ 'all of the machine us', 2 ],
	memory_own => [ 'own memory MB', 0 ],
	memory_pss => [ 'PSS MB', 0 ],
	memory_rss => [ 'RSS MB', 0 ],
	wal => [ 'WAL B/message', 0 ],
	wal_transaction => [ 'WAL B/transaction', 0 ],
	wal_publish => [ 'WAL B publishing', 0 ],
	wal_send => [ 'WAL B sending', 1 ],
	other => [ 'other load %', 0 ],
	p50 => [ 'p50 ms', 2, 1 ],
	p95 => [ 'p95 ms', 2 ],
	p99 => [ 'p99 ms', 2, 1 ],
	repeated => [ 'repeated', 0 ],
	tps => [ 'transactions/s', 0, 1 ],
	percent_sender => [ 'sender % of a core', 1 ],
	percent_server => [ 'PostgreSQL % of a core', 1 ],
	commit_p50 => [ 'commit p50 ms', 3 ],
	commit_p99 => [ 'commit p99 ms', 3 ],
	sent_rate => [ 'sent/s meanwhile', 0 ],
	behind => [ 'behind at the end', 0 ],
	kept => [ 'kept of the rate', 3, 1 ],
	seconds => [ 'seconds', 1, 1 ],
	by_insert => [ 'by INSERT', 3, 1 ],
	megabytes => [ 'MB', 0, 1 ],
	dead_rows => [ 'dead rows', 0, 1 ],
	cpu_ms_per_minute => [ 'CPU ms/min', 2 ],
	server_ms_per_minute => [ 'server CPU ms/min', 0 ],
	wakeups_per_minute => [ 'wake-ups/min', 0 ],
	wal_per_minute => [ 'WAL B/min', 0 ]);

# base: the contenders that the others' figures of a metric (ratio) are divided
# by; last: rounds are moments, and the last one counts instead of the median
my @parts = (
	{
		name => 'drain', title => 'Drain of a backlog',
		columns => [qw(rate cpu cpu_sender cpu_server cpu_broker cpu_machine memory_own memory_pss memory_rss wal_publish wal_send other)],
		ratio => 'rate', base => [qw(bare polling debezium_tuned)],
		plots => [ [ bars => 'rate' ], [ stack => qw(cpu_sender cpu_server cpu_broker) ], [ bars => 'memory_own' ] ]
	},
	{
		name => 'latency', title => 'From commit to consumer',
		columns => [qw(p50 p95 p99 repeated tps percent_sender percent_server other)],
		ratio => 'p50', base => [qw(floor)],
		plots => [ [ groups => 'p50' ], [ groups => 'p99' ] ]
	},
	{
		name => 'steady', title => 'Publishing and sending at the same time',
		columns => [qw(tps kept commit_p50 commit_p99 sent_rate behind percent_sender cpu_sender cpu_server cpu_broker wal other)],
		plots => [ [ groups => 'tps' ], [ groups => 'kept' ] ]
	},
	{
		name => 'publish', title => 'publish() and INSERT, relay paused',
		columns => [qw(tps by_insert cpu_server other)],
		plots => [ [ groups => 'tps' ] ]
	},
	{
		name => 'commit', title => 'The publisher\'s transaction',
		columns => [qw(tps commit_p50 commit_p99 wal_transaction other)],
		ratio => 'tps', base => [ 'order alone', 'order and INSERT' ],
		plots => [ [ groups => 'tps' ] ]
	},
	{
		name => 'inbox', title => 'From Kafka into a table',
		columns => [qw(rate cpu_server cpu_machine other)],
		ratio => 'rate', base => [qw(sink)],
		plots => [ [ groups => 'rate' ] ]
	},
	{ name => 'rebuild', title => 'A table rebuilt from Kafka', columns => [qw(seconds rate other)], plots => [] },
	{
		name => 'size', title => 'Size on disk under a steady load',
		columns => [qw(megabytes dead_rows)],
		last => 1,
		plots => [ [ times => 'megabytes' ], [ times => 'dead_rows' ] ]
	},
	{ name => 'size_rate', title => 'Publishing rate meanwhile', columns => [qw(tps)], plots => [] },
	{
		name => 'backlog', title => 'Drain of backlogs that grow',
		columns => [qw(rate cpu memory_own memory_rss other)],
		plots => [ [ lines => 'rate' ], [ lines => 'memory_own' ] ]
	},
	{
		name => 'topics', title => 'Drain into more and more topics',
		columns => [qw(rate cpu_sender memory_own other)],
		plots => [ [ lines => 'rate' ], [ lines => 'memory_own' ] ]
	},
	{
		name => 'payload', title => 'Drain of larger and larger messages',
		columns => [qw(rate cpu memory_own memory_rss wal_publish other)],
		ratio => 'rate', base => [qw(bare)],
		plots => [ [ lines => 'rate' ], [ lines => 'memory_own' ] ]
	},
	{
		name => 'idle', title => 'With nothing to do',
		columns => [qw(cpu_ms_per_minute server_ms_per_minute wakeups_per_minute wal_per_minute memory_own memory_pss)],
		plots => []
	});

my ($path, $directory, @runs) = @ARGV;
die "usage: report.pl RESULTS.tsv DIRECTORY [RUN...]\n" if !defined $directory;

# part => { runs, contenders, parameters (in order), value => contender => parameter => metric => round }
my %data;
my %is_chosen = map { $_ => 1 } @runs;
my %last_run;

open(my $file, '<', $path) or die "$path: $!\n";
chomp(my @lines = <$file>);
for my $line (@lines)
{
	my ($run, $part) = split /\t/, $line;
	$last_run{$part} = $run if !defined $last_run{$part} || $run gt $last_run{$part};
}
for my $line (@lines)
{
	my ($run, $part, $contender, $parameter, $round, $metric, $value) = split /\t/, $line;
	next if @runs ? !$is_chosen{$run} : $run ne $last_run{$part};
	my $d = $data{$part} //= { value => {}, runs => {}, contenders => [], parameters => [] };
	$d->{runs}{$run} = 1;
	push @{ $d->{contenders} }, $contender if !$d->{seen_contender}{$contender}++;
	push @{ $d->{parameters} }, $parameter if !$d->{seen_parameter}{$parameter}++;
	$d->{value}{$contender}{$parameter}{$metric}{"$run $round"} = $value;
}

# Contenders take turns, so their order in the file says nothing.
my @order = ('floor', 'floor_eos', 'bare', 'relay', 'relay_eos', 'polling', 'polling_large', 'debezium_tuned', 'debezium',
	'order alone', 'order and INSERT', 'order and publish()');
my %rank = map { $order[$_] => $_ } 0 .. $#order;
for my $d (values %data)
{
	my $i = @order;
	$rank{$_} //= $i++ for @{ $d->{contenders} };
	$d->{contenders} = [ sort { $rank{$a} <=> $rank{$b} } @{ $d->{contenders} } ];
}

sub figure
{
	my ($d, $contender, $parameter, $metric) = @_;
	my @values = values %{ $d->{value}{$contender}{$parameter}{$metric} // {} };
	return @values ? median(@values) : undef;
}

sub decimal
{
	my ($number, $decimals) = @_;
	return $decimals == 0 ? group($number) : sprintf "%.${decimals}f", $number;
}

sub cell
{
	my ($d, $contender, $parameter, $metric, $last) = @_;
	my $values = $d->{value}{$contender}{$parameter}{$metric} or return '';
	my (undef, $decimals, $with_range) = @{ $columns{$metric} };
	my @values = sort { $a <=> $b } values %$values;
	my ($newest) = sort { (split / /, $b)[1] <=> (split / /, $a)[1] } keys %$values;
	my $text = decimal($last ? $values->{$newest} : median(@values), $decimals);
	$text .= sprintf ' (%s..%s)', decimal($values[0], $decimals), decimal($values[-1], $decimals)
	  if $with_range && @values > 1;
	return $text;
}

sub ratio
{
	my ($d, $contender, $base, $parameter, $metric) = @_;
	my $mine = $d->{value}{$contender}{$parameter}{$metric} // {};
	my $theirs = $d->{value}{$base}{$parameter}{$metric} // {};
	my @ratios = map { $theirs->{$_} ? $mine->{$_} / $theirs->{$_} : () } keys %$mine;
	return @ratios ? sprintf('%.2f', median(@ratios)) : '';
}

sub print_part
{
	my ($part) = @_;
	my $d = $data{ $part->{name} };
	my @columns = grep {
		my $metric = $_;
		grep { my $c = $_; grep { $d->{value}{$c}{$_}{$metric} } @{ $d->{parameters} } } @{ $d->{contenders} }
	} @{ $part->{columns} };
	my @bases = grep { $d->{seen_contender}{$_} } @{ $part->{base} // [] };
	my @rows;

	for my $parameter (@{ $d->{parameters} })
	{
		for my $contender (@{ $d->{contenders} })
		{
			next if !%{ $d->{value}{$contender}{$parameter} // {} };
			push @rows, [ $contender, $parameter,
				(map { cell($d, $contender, $parameter, $_, $part->{last}) } @columns),
				(map { ratio($d, $contender, $_, $parameter, $part->{ratio}) } @bases) ];
		}
	}
	heading($part->{title});
	note('Runs of ' . join(', ', sort keys %{ $d->{runs} }) . '.');
	table([ '', '', (map { $columns{$_}[0] } @columns), (map { "$columns{ $part->{ratio} }[0] by $_" } @bases) ], @rows);
	return;
}

# gnuplot ------------------------------------------------------------------

sub gnuplot
{
	my ($name, $title, @commands) = @_;
	my $pid = open(my $pipe, '|-', 'gnuplot') or return;
	# text of ours may hold an underscore, which gnuplot takes for a subscript
	print $pipe "set terminal svg size 900,480 noenhanced font 'sans,12' background '#ffffff'\n",
	  "set output '$directory/$name.svg'\n",
	  "set title \"$title\"\n",
	  "set grid ytics\nset key outside right top\nset style fill solid 0.8\nset yrange [0:*]\n",
	  map { "$_\n" } @commands;
	close $pipe or die "gnuplot failed\n";
	print STDERR "bench: $directory/$name.svg\n";
	return;
}

# Rows of cells as a data block: undefined ones are "?".
sub block
{
	my ($name, @rows) = @_;
	return ("\$$name << END", (map { join ' ', map { !defined $_ ? '?' : /^-?[\d.]+(?:e[-+]?\d+)?$/ ? $_ : "\"$_\"" } @$_ } @rows), 'END');
}

sub number_of
{
	my ($parameter) = @_;
	my ($number) = $parameter =~ /([\d,]+)/;
	return defined $number ? $number =~ tr/,//dr : 0;
}

sub plot_part
{
	my ($part, $kind, @metrics) = @_;
	my $d = $data{ $part->{name} };
	my @contenders = grep { my $c = $_; grep { defined figure($d, $c, $_, $metrics[0]) } @{ $d->{parameters} } } @{ $d->{contenders} };
	my @parameters = grep { my $p = $_; grep { defined figure($d, $_, $p, $metrics[0]) } @contenders } @{ $d->{parameters} };
	return if !@contenders;
	my $name = "$part->{name}_$metrics[0]";
	my $title = "$part->{title}: $columns{ $metrics[0] }[0]";

	if ($kind eq 'bars' || $kind eq 'stack')
	{
		for my $parameter (@parameters)
		{
			my $suffix = @parameters > 1 ? '_' . ($parameter =~ s/\W+/_/gr) : '';
			my @rows = map { my $c = $_; [ $c, map { figure($d, $c, $parameter, $_) } @metrics ] } @contenders;
			gnuplot($name . $suffix, ($kind eq 'stack' ? "$part->{title}: CPU us/message" : $title) . ", $parameter",
				block('data', @rows),
				'set style data histograms', 'set style histogram ' . ($kind eq 'stack' ? 'rowstacked' : 'clustered'),
				'set boxwidth 0.7', @metrics == 1 ? 'unset key' : (),
				'plot ' . join ', ', map { '$data using ' . ($_ + 2) . ($_ == 0 ? ':xtic(1)' : '') . " title \"$columns{$metrics[$_]}[0]\"" } 0 .. $#metrics);
		}
	}
	elsif ($kind eq 'groups')
	{
		my @rows = map { my $p = $_; [ $p, map { figure($d, $_, $p, $metrics[0]) } @contenders ] } @parameters;
		my @values = grep { defined && $_ > 0 } map { @$_[ 1 .. $#$_ ] } @rows;
		# Debezium's half second would leave nothing to see of the others
		my $log = $part->{name} eq 'latency' && @values && max(@values) > 20 * min(@values);
		gnuplot($name, $title, block('data', @rows),
			'set style data histograms', 'set style histogram clustered',
			$log ? ('set logscale y', 'set yrange [*:*]') : (),
			'plot ' . join ', ', map { '$data using ' . ($_ + 2) . ($_ == 0 ? ':xtic(1)' : '') . " title \"$contenders[$_]\"" } 0 .. $#contenders);
	}
	elsif ($kind eq 'lines')
	{
		my @rows = map { my $p = $_; [ number_of($p), map { figure($d, $_, $p, $metrics[0]) } @contenders ] } @parameters;
		gnuplot($name, $title, block('data', @rows), 'set datafile missing "?"', 'set logscale x',
			$part->{name} eq 'payload' && $metrics[0] eq 'rate' ? ('set logscale y', 'set yrange [*:*]') : (),
			'plot ' . join ', ', map { '$data using 1:' . ($_ + 2) . " with linespoints lw 2 title \"$contenders[$_]\"" } 0 .. $#contenders);
	}
	elsif ($kind eq 'times')
	{
		my %at;
		for my $c (0 .. $#contenders)
		{
			for my $p (@parameters)
			{
				my $values = $d->{value}{ $contenders[$c] }{$p}{ $metrics[0] } // {};
				$at{ (split / /, $_)[1] }[$c] = $values->{$_} for keys %$values;
			}
		}
		my @rows = map { my $s = $_; [ $s, map { $at{$s}[$_] } 0 .. $#contenders ] } sort { $a <=> $b } keys %at;
		gnuplot($name, $title, block('data', @rows), 'set datafile missing "?"', 'set xlabel "seconds"',
			'plot ' . join ', ', map { '$data using 1:' . ($_ + 2) . " with lines lw 2 title \"$contenders[$_]\"" } 0 .. $#contenders);
	}
	return;
}

if (my $machine = $data{machine})
{
	heading('outbox_kafka benchmark');
	table([ 'what', 'value' ], map { my $what = $_; [ $what, (values %{ $machine->{value}{$what}{''}{text} })[0] ] } @{ $machine->{contenders} });
}
my $can_plot = system('gnuplot --version > /dev/null 2>&1') == 0;
print STDERR "bench: there is no gnuplot, so there are no plots\n" if !$can_plot;
for my $part (grep { $data{ $_->{name} } } @parts)
{
	print_part($part);
	next if !$can_plot;
	plot_part($part, @$_) for @{ $part->{plots} };
}
