#!/bin/bash
# Starts an SSH server, and sshfs, which mounts from it. Ends when one of the two has ended.
set -eu

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
trap exit TERM INT
start-sshd
/mfcp-bin/fuse-starter --fd-passing-socket-path /fuse-fd-passing/fuse-csi-ephemeral.sock -- \
    sshfs -f root@127.0.0.1:/root/sshfs-example /dev/fd/3 &
tail --pid="$(cat /run/sshd.pid)" -f /dev/null &
wait -n
