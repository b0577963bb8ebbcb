# shellcheck shell=bash
# shellcheck disable=SC2154 # who reads this has set them
# What the examples without Kubernetes share (standalone/run and device/run): steps that are shown while they are done, the build, a
# driver and containers of their own, and the clean-up. Who reads this in sets before:
#
#   name, what     of the example, and what it shows
#   containers     the names of its containers
#   try            what to type after --keep
#
# and then calls begin "$@", prepare, start_driver and show functions.
set -euo pipefail
umask 022 # the user in the containers reads what is made here

repo=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/..")
here=$repo/examples/$name
usage="usage: examples/$name/run [--keep | --clean]
Runs the example as root on Debian 12, Debian 13 or Ubuntu 24.04. It installs the packages that it needs (it says which),
builds the project, and cleans up after itself. That takes minutes the first time, and then seconds.
  --keep     leave everything running, and print commands to try by hand
  --clean    clean up what --keep left
  --help     print this"

cache=$repo/.cache/$name # stays, so that the next run is fast
image=$cache/image       # the containers' file system
log=$cache/run.log driver_log=$cache/driver.log

state=/run/mfcp-example # this folder and the containers go at the end
driver=$repo/dist/meta-fuse-csi-plugin/meta-fuse-csi-plugin
admin_socket=$state/driver/admin.sock
user=10001 # the user in the containers, whom this machine does not have
stays="What stays: packages, the build (dist, .venv), and $cache (file system of the containers, logs)."

# ---- Showing

steps=0 title=Start failure=
step() {
    steps=$((steps + 1)) title=${1%%:*}
    say $'\n'"$steps. $1"
}

say() {
    printf '%s\n' "$1" 2>/dev/null || true # the clean-up must go on when nobody reads this any more
}

die() {
    failure=$1
    echo "run: $1" >&2
    exit "${2-1}"
}

logged() {
    echo "+ $*" >>"$log"
    "$@" >>"$log" 2>&1
}

print() {
    tee -a "$log" | sed -u 's/^/      /'
}

# wait_until SECONDS COMMAND...: runs it until it succeeds, and fails after so many seconds
wait_until() {
    local end=$((SECONDS + $1))
    until "${@:2}"; do
        [ "$SECONDS" -lt "$end" ] && sleep 0.1 || return 1
    done
}

# ---- The driver and containers

plugin() {
    "$driver" --admin-socket "$admin_socket" "$@"
}

show_plugin() {
    say "      host\$ meta-fuse-csi-plugin --admin-socket $admin_socket $*"
    plugin "$@" 2>&1 | print
}

# start_driver OPTION...
start_driver() {
    modprobe --quiet fuse 2>/dev/null || true # where it fails and the kernel has no FUSE, the driver says so
    mkdir "$state"
    # Its own folders and sockets keep it apart from a driver that is installed here, and from a kubelet. Its own session keeps
    # Ctrl-C from it, so that the clean-up can use it first.
    setsid "$driver" --nodeid example --run-dir "$state/driver" --admin-socket "$admin_socket" \
        --endpoint "unix:$state/csi.sock" --pods-dir "$state/pods" --device-plugins-dir "$state/no-kubelet" "$@" </dev/null >"$driver_log" 2>&1 9>&- &
    echo $! >"$state/driver.pid"
    wait_until 15 logged plugin status || die "the driver does not get ready: $(tail -n 1 "$driver_log"); see $driver_log"
}

# What outlives this script must not hold its lock, which is fd 9.
podman() {
    command podman --log-level error "$@" 9>&-
}

# start_container NAME [PODMAN-OPTION...] IMAGE COMMAND...
start_container() {
    # Some machines cannot raise the limits to podman's defaults. On some its default runtime, crun, does not know the cgroups.
    logged podman --runtime runc run --detach --name "mfcp-example-$1" --hostname "$1" --network none --read-only \
        --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 --user "$user:$user" --env HOME=/home/demo \
        --cap-drop all --security-opt no-new-privileges --rootfs "${@:2}"
}

# show_in CONTAINER COMMAND: prints a command, and what it answers in that container
show_in() {
    say "      $1\$ $2"
    podman exec "mfcp-example-$1" sh -c "$2" 2>&1 | print
}

# prepare_ssh_server: makes in $state what the container with the server binds, "serve" and the folder "home"
prepare_ssh_server() {
    mkdir -p "$state/home/shared"
    echo "Hello from the SSH server." >"$state/home/shared/hello.txt"
    chown -R "$user:$user" "$state/home"
    install -m 755 "$repo/examples/standalone/serve" "$state"
}

# ---- The start and the end

# before_the_driver_ends: an example may have more to do then
before_the_driver_ends() { :; }

clean_up() {
    # In a session of its own, because podman obeys Ctrl-C although this script ignores it.
    logged setsid --wait podman rm --force --ignore --time 0 "${containers[@]}" || true
    local pid
    pid=$(cat "$state/driver.pid" 2>/dev/null) || true
    if grep -qsF "$state/driver" "/proc/${pid:-none}/cmdline"; then # otherwise another process has got the number
        before_the_driver_ends
        kill "$pid" || true
        timeout 10 tail --pid "$pid" --follow /dev/null || kill -KILL "$pid"
    fi
    # The driver leaves mounts for the next one. What was mounted last goes first.
    cut -d ' ' -f 5 /proc/self/mountinfo | { grep "^$state/" || true; } | tac | xargs --no-run-if-empty umount --lazy
    rm -rf --one-file-system "$state"
}

# Runs last, however the script ends.
finish() {
    local code=$?
    trap '' HUP INT PIPE TERM # a second Ctrl-C must not stop the clean-up
    set +e
    if [ "$code" != 0 ]; then
        [ -n "$failure" ] || echo "run: step $steps, $title, failed: $(tail -n 1 "$log"); see $log" >&2
        for container in "${containers[@]}"; do logged podman logs "$container"; done
    elif [ "$mode" = --keep ]; then
        say "$try"
        return
    else
        step "Done: cleaning up containers, mounts, driver and $state"
        say "   $stays"
    fi
    clean_up
    exit "$code"
}

# begin ARGUMENT...: reads the arguments of the command line, and cleans up what an earlier run left
begin() {
    case $* in
    "" | --keep | --clean) mode=$* ;;
    -h | --help) echo "$usage" && exit ;;
    *) die "unknown argument '$*'; see --help" 2 ;;
    esac
    [ "$(id -u)" = 0 ] || die "must be run as root, because it installs packages and mounts: sudo examples/$name/run"

    mkdir -p "$cache" "$repo/.cache"
    exec 9>"$repo/.cache/examples.lock"
    flock --nonblock 9 || die "another examples/*/run is at work; let it end, or stop it with Ctrl-C where it runs"
    date >"$log"
    clean_up # what --keep left, or a run that was killed
    [ "$mode" != --clean ] || { say "Cleaned up. $stays" && exit; }
    trap 'die "stopped by a signal; cleaning up" 130' HUP INT PIPE TERM
    trap finish EXIT
    say "$what"
}

# prepare: the first three steps
prepare() {
    local packages=(podman python3 python3-venv python3-dev gcc libcap-dev binutils patchelf) missing=() package
    type -P runc >/dev/null || packages+=(runc) # Docker's packages bring one that conflicts with the distribution's
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    step "Packages: ${packages[*]}. Missing, and installed with apt-get: ${missing[*]:-none}"
    if [ ${#missing[@]} != 0 ]; then
        logged apt-get update
        # With --no-remove it fails rather than take away what this machine has.
        DEBIAN_FRONTEND=noninteractive logged apt-get install -y --no-remove --no-install-recommends "${missing[@]}"
    fi

    step "Build: the driver for this machine, and the fusermount3 for containers (minutes the first time)"
    "$repo/packaging/build" 2>&1 </dev/null | print

    # The containers get a file system of their own, with nothing of this machine in it. This makes the same as a Dockerfile that
    # says FROM debian and RUN apt-get install -y sshfs openssh-server, without a registry: by unpacking the packages.
    step "File system of the containers: packages unpacked, not installed, into $image"
    if ! [ "$image" -nt "$here/run" ]; then
        rm -rf "$image" "$image.new"
        mkdir -p "$image.new"/{archives/partial,usr/{bin,sbin,lib,lib64}}
        logged apt-get update
        # apt is told that nothing is installed, so it fetches all that these packages need. usr-is-merged stands for the links
        # that are made below, where the distribution has it; otherwise apt would fetch perl for them.
        logged apt-get install -y --download-only --no-install-recommends \
            -o Dir::State::status=/dev/null -o Dir::Cache::archives="$image.new/archives" \
            -o Debug::NoLocking=true -o APT::Sandbox::User=root \
            sshfs openssh-server openssh-client coreutils dash grep mount procps '?exact-name(usr-is-merged)'
        cd "$image.new"
        ln -s usr/bin usr/sbin usr/lib usr/lib64 .
        for package in archives/*.deb; do
            dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink
        done
        # The containers' root is read-only, so all that is mounted over must be there.
        mkdir -p home/demo proc sys dev run tmp
        touch serve etc/hosts etc/hostname etc/resolv.conf
        printf '%s\n' root:x:0:0:root:/root:/bin/sh "demo:x:$user:$user:demo:/home/demo:/bin/sh" >etc/passwd
        printf '%s\n' root:x:0: "demo:x:$user:" >etc/group
        complete_image
        rm -r archives
        cd "$repo"
        mv "$image.new" "$image" && touch "$image"
    fi
}

# complete_image: runs in the image's folder; an example may change the image
complete_image() { :; }
