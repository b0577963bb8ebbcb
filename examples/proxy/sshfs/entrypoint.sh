#!/bin/bash
# Starts an SSH server, and sshfs, which mounts from it. Ends when one of the two has ended.
set -eu

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
trap exit TERM INT
start-sshd
# libfuse only opens it before it asks fusermount3, so an empty file will do.
touch /dev/fuse
sshfs -f root@127.0.0.1:/root/sshfs-example /tmp &
tail --pid="$(cat /run/sshd.pid)" -f /dev/null &
wait -n
