#!/bin/sh
# Stands for the runtime of a type-2 AppImage. It looks for a helper in PATH that has the set-uid bit, belongs to root and tells its
# version, mounts the squashfs that lies behind it in its own file, and runs AppRun from there.
set -eu
helper=
for folder in $(echo "$PATH" | tr : ' '); do
    for file in "$folder"/fusermount*; do
        if [ -z "$helper" ] && [ -x "$file" ] && [ -u "$file" ] && [ "$(stat -L -c %u "$file")" = 0 ] && "$file" --version >/dev/null; then
            helper=$file
        fi
    done
done
if [ -z "$helper" ]; then
    echo "no suitable fusermount was found in PATH" >&2
    exit 127
fi
echo "helper $helper"
mountpoint=$(mktemp -d /tmp/.mount_XXXXXX)
squashfuse -o offset=4096,ro,nosuid,nodev "$0" "$mountpoint"
code=0
"$mountpoint/AppRun" "$@" || code=$?
"$helper" -u "$mountpoint"
rmdir "$mountpoint"
exit $code
