#!/bin/bash
# Builds all images from source and loads them into a cluster of kind, or into this machine's containerd. It must run with bash 3.2
# of macOS, in which an empty array counts as unset, so that "${array[@]}" would be an error.
set -euo pipefail

usage() {
    cat <<END
usage: ./build-for-kind.sh [OPTION...] [IMAGE...]

Builds the images of the driver, of fusermount3-proxy and of the examples, and loads them into a cluster. IMAGE is the last
part of an image's name. Without IMAGE and --load, all images are built.

  --engine ENGINE      use docker, podman or buildah; without it, the first of these that works
  --target TARGET      kind   load into a cluster of kind (the default if kind is installed)
                       ctr    import into this machine's containerd, for its kubelet (the default if kind is not installed)
                       none   only build
  --name NAME          the name of the cluster of kind, default kind
  --build-arg ARG=VAL  pass this to every build
  --load NAME:TAG      load an image that the engine already has, by its whole name
  --list               print the images' names
  --help               print this

The cluster of kind is searched for in the provider that KIND_EXPERIMENTAL_PROVIDER names, or else in Docker, Podman and
nerdctl. ctr reads the path of containerd's socket from CONTAINERD_ADDRESS.
END
}

here=$(cd "$(dirname "$0")" && pwd)
prefix=ghcr.io/pfnet-research/meta-fuse-csi-plugin
engine=
target=
cluster=kind
build_args=()
wanted=()
others=()

main() {
    parse "$@"
    cd "$here"
    [ -n "$engine" ] || find_engine
    [ -n "$target" ] || find_target
    check_target
    [ "$engine" != docker ] || choose_builder
    report "building with $engine, loading into $(describe_target)"
    local name
    for name in ${wanted[@]+"${wanted[@]}"}; do
        report "building $prefix/$name:latest"
        build "$name" || fail "$name cannot be built (see above)"
        load "$prefix/$name:latest"
    done
    for name in ${others[@]+"${others[@]}"}; do
        load "$name"
    done
    report "done: $((${#wanted[@]} + ${#others[@]})) images"
}

parse() {
    local name
    while [ $# -gt 0 ]; do
        case $1 in
            --engine | --target | --name | --build-arg | --load) [ $# -gt 1 ] || misuse "$1 needs a value" ;;
        esac
        case $1 in
            --engine) engine=$2 && shift ;;
            --target) target=$2 && shift ;;
            --name) cluster=$2 && shift ;;
            --build-arg) build_args+=(--build-arg "$2") && shift ;;
            --load) others+=("$2") && shift ;;
            --list) images && exit 0 ;;
            -h | --help) usage && exit 0 ;;
            -*) misuse "there is no option $1" ;;
            *) wanted+=("$1") ;;
        esac
        shift
    done
    case $engine in '' | docker | podman | buildah) ;; *) misuse "--engine $engine is not docker, podman or buildah" ;; esac
    case $target in '' | kind | ctr | none) ;; *) misuse "--target $target is not kind, ctr or none" ;; esac
    [ "$target" != none ] || [ ${#others[@]} -eq 0 ] || misuse "--target none loads no image, but --load ${others[0]} asks for it"
    local all
    all=$'\n'$(images)$'\n'
    for name in ${wanted[@]+"${wanted[@]}"}; do
        [[ $all == *$'\n'"$name"$'\n'* ]] || misuse "there is no image $name; --list prints all"
    done
    if [ ${#wanted[@]} -eq 0 ] && [ ${#others[@]} -eq 0 ]; then
        while read -r name; do wanted+=("$name"); done < <(images)
    fi
    put_proxy_before_examples
}

# The examples but those of the fuse device copy from fusermount3-proxy, so that image is built before them, even if it was not named.
put_proxy_before_examples() {
    local name is_copied='' ordered=(fusermount3-proxy)
    for name in ${wanted[@]+"${wanted[@]}"}; do
        case $name in
            mfcp-example-device-*) ;;
            mfcp-example-*) is_copied=yes ;;
        esac
    done
    [ -n "$is_copied" ] || return 0
    for name in ${wanted[@]+"${wanted[@]}"}; do
        [ "$name" = fusermount3-proxy ] || ordered+=("$name")
    done
    wanted=("${ordered[@]}")
}

images() {
    printf '%s\n' meta-fuse-csi-plugin fusermount3-proxy
    local file
    for file in "$here"/examples/*/*/Dockerfile; do
        file=${file%/Dockerfile} && file=${file#"$here"/examples/}
        echo "mfcp-example-${file/\//-}"
    done
}

build() { # NAME
    local options=(-t "$prefix/$1:latest") folder
    # This Dockerfile cannot find out the architecture itself.
    case $1-$(uname -m) in *-mountpoint-s3-aarch64 | *-mountpoint-s3-arm64) options+=(--build-arg ARCH=arm64) ;; esac
    options+=(${build_args[@]+"${build_args[@]}"})
    case $1 in
        meta-fuse-csi-plugin) options+=(-f packaging/Dockerfile --target driver .) ;;
        fusermount3-proxy) options+=(-f packaging/Dockerfile --target fusermount3-proxy .) ;;
        *)
            folder=${1#mfcp-example-}
            options+=("examples/${folder/-//}")
            ;;
    esac
    case $engine in
        # Without --pull=false buildah would ask the registry for a newer fusermount3-proxy, which docker and podman do not.
        buildah) buildah build --layers --pull=false "${options[@]}" ;;
        *) "$engine" build "${options[@]}" ;;
    esac
}

load() { # IMAGE
    [ "$target" = none ] || transfer "$1" || fail "$1 cannot be loaded into $(describe_target) (see above)"
}

transfer() { # IMAGE
    local image=$1
    # The variable is not local, because the trap runs after this function.
    folder=$(mktemp -d) || return
    trap 'rm -rf "$folder"' EXIT
    case $engine in
        buildah) buildah push --quiet "$image" "docker-archive:$folder/image.tar:$image" ;;
        *) "$engine" save -o "$folder/image.tar" "$image" ;;
    esac || return
    case $target in
        kind) kind load image-archive --name "$cluster" "$folder/image.tar" ;;
        ctr) ctr --namespace k8s.io images import "$folder/image.tar" ;;
    esac || return
    rm -rf "$folder"
}

find_engine() {
    local name
    for name in docker podman buildah; do
        # docker may be installed without its daemon.
        if command -v "$name" >/dev/null && "$name" info >/dev/null 2>&1; then
            engine=$name
            return
        fi
    done
    fail "neither docker, podman nor buildah works here: install one, or start Docker"
}

# Docker's own builder sees the images that were built before, and leaves its images in Docker. A builder in a container (docker
# buildx create --use, after docker buildx install) does neither.
choose_builder() {
    local builder
    builder=$(docker context show 2>/dev/null) || return 0 # this docker is too old to have such builders
    export BUILDX_BUILDER=$builder
}

find_target() {
    if command -v kind >/dev/null; then
        target=kind
    elif command -v ctr >/dev/null; then
        target=ctr
    else
        fail "neither kind nor ctr is installed: install kind, or give --target none"
    fi
}

check_target() {
    case $target in
        kind) check_kind ;;
        ctr) check_ctr ;;
    esac
}

check_kind() {
    command -v kind >/dev/null || fail "kind is not installed: install it, or give another --target"
    has_cluster || find_provider || fail "there is no kind cluster $cluster: kind create cluster --name $cluster, or give --name"
}

has_cluster() {
    grep -qxF "$cluster" <<<"$(kind get clusters 2>/dev/null)"
}

# If Docker is installed, kind searches no other provider by itself.
find_provider() {
    [ -z "${KIND_EXPERIMENTAL_PROVIDER:-}" ] || return
    local name
    for name in podman nerdctl; do
        export KIND_EXPERIMENTAL_PROVIDER=$name
        if command -v "$name" >/dev/null && has_cluster; then
            report "the kind cluster $cluster runs in $name: KIND_EXPERIMENTAL_PROVIDER=$name"
            return
        fi
    done
    return 1
}

check_ctr() {
    command -v ctr >/dev/null || fail "ctr is not installed: install containerd, or give another --target"
    local plugins
    plugins=$(ctr plugins list) || fail "$(describe_target) does not answer (see above): be root, or set CONTAINERD_ADDRESS"
    # The containerd of Docker has the plugin disabled, so no kubelet would use the imported images.
    grep -qE '^io\.containerd\.grpc\.v1 +cri .* ok *$' <<<"$plugins" ||
        fail "$(describe_target) serves no kubelet (its plugin cri is off, as in Docker's): install kind, set CONTAINERD_ADDRESS, or give --target none"
}

describe_target() {
    case $target in
        kind) echo "the kind cluster $cluster" ;;
        ctr) echo "containerd at ${CONTAINERD_ADDRESS:-its usual socket}" ;;
        none) echo "nothing" ;;
    esac
}

report() {
    echo "build-for-kind: $*"
}

fail() {
    echo "build-for-kind: $*" >&2
    exit 1
}

misuse() {
    echo "build-for-kind: $*; try ./build-for-kind.sh --help" >&2
    exit 2
}

main "$@"
