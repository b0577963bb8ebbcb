# Serves one file that can only be read, by Perl's module Fuse, which uses libfuse 2: hello.pl MOUNTPOINT.
use strict;
use warnings;
use Fuse;
use POSIX qw(ENOENT);

my $content = "Hello World!\n";

sub attributes {
    my ($path) = @_;
    my @times = (time) x 3;
    return (0, 0, 0040755, 2, 0, 0, 0, 0, @times, 4096, 0) if $path eq '/';
    return (0, 0, 0100444, 1, 0, 0, 0, length $content, @times, 4096, 1) if $path eq '/hello';
    return -ENOENT();
}

Fuse::main(
    mountpoint => $ARGV[0],
    getattr    => \&attributes,
    getdir     => sub { return ('.', '..', 'hello', 0) },
    open       => sub { return 0 },
    read       => sub { my ($path, $size, $offset) = @_; return substr $content, $offset, $size },
);
