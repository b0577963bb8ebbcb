#!/bin/sh
# Make a file that behaves as a type-2 AppImage: a runtime with a squashfs behind it. make.sh SQUASHFS FILE
set -eu
here=$(dirname "$0")
cp "$here/runtime.sh" "$2"
truncate -s 4096 "$2" # the runtime looks for the squashfs there
cat "$1" >>"$2"
chmod 755 "$2"
