#!/bin/sh
# The image of docker/Dockerfile, built and tried on a machine that reaches no registry of images: Debian, as root, with the
# packages buildah, debootstrap, iproute2 and util-linux. debootstrap makes the base from a mirror of Debian.
#
#   docker/without_registry.sh build    the base, then the target `cpu`
#   docker/without_registry.sh try      walk through it as its user: from text to a model that fills masks
#   docker/without_registry.sh clean    remove it all
#
# Variables:
#   STORAGE      folder for the images and what is tried (about 5 GB while building; /var/tmp/maskloom-image)
#   MIRROR       of Debian, for the base (http://deb.debian.org/debian)
#   SUITE        Debian's release (bookworm)
#   SOURCES, PIP_CONF, CA   files for docker/install.sh: apt's sources, a pip.conf, certificates. The image keeps none of them
#   FOLDERS      folders that the pip.conf names, separated by blanks: they are mounted for the build
#   TORCH_INDEX  the package index that torch is taken from; empty: pip's own
#   PACKAGES, EXTRAS        see the Dockerfile
set -eu

cd "$(dirname "$0")/.."
STORAGE=${STORAGE:-/var/tmp/maskloom-image}
IMAGE=localhost/maskloom
BASE=localhost/debian

images() {
    buildah --root "$STORAGE/images" --runroot "$STORAGE/state" --storage-driver vfs "$@"
}

base() {
    suite=${SUITE:-bookworm}
    debootstrap --variant=minbase "$suite" "$STORAGE/base" "${MIRROR:-http://deb.debian.org/debian}"
    rm -rf "$STORAGE"/base/var/cache/apt/archives/*.deb "$STORAGE"/base/var/lib/apt/lists/*
    container=$(images from scratch)
    images add --quiet "$container" "$STORAGE/base" /
    images commit --quiet --rm "$container" "$BASE"
    rm -rf "$STORAGE/base"
}

# HEALTHCHECK is of Docker's format alone.
build() {
    mkdir -p "$STORAGE"
    images inspect --type image "$BASE" > /dev/null 2>&1 || base
    set -- --build-arg "BASE=$BASE"
    for name in TORCH_INDEX PACKAGES EXTRAS; do
        if given=$(printenv "$name"); then
            set -- "$@" --build-arg "$name=$given"
        fi
    done
    for secret in "sources=${SOURCES:-}" "pip=${PIP_CONF:-}" "ca=${CA:-}"; do
        if [ "${secret#*=}" ]; then
            set -- "$@" --secret "id=${secret%%=*},src=${secret#*=}"
        fi
    done
    for folder in ${FOLDERS:-}; do
        set -- "$@" --volume "$folder:$folder:ro"
    done
    images bud --isolation chroot --format docker --pull-never --target cpu --file docker/Dockerfile \
        --ignorefile .dockerignore "$@" --tag "$IMAGE" .
    images images
}

# As compose.yaml starts it: as the image's user, without privileges, with a root that is read-only, and no network but loopback.
inside() {
    echo "+ $*"
    # shellcheck disable=SC2016  # the inner shell expands it
    unshare --mount --net --pid --fork --uts sh -euc '
        root=$1 user=$2 work=$3
        shift 3
        ip link set lo up
        hostname container
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount -t tmpfs tmpfs "$root/tmp"
        mount --rbind /dev "$root/dev"
        mount --bind "$work/data" "$root/workspace/data"
        mount --bind "$work/runs" "$root/workspace/runs"
        mount -o remount,bind,ro "$root/workspace/data"
        mount -o remount,bind,ro "$root"
        exec setpriv --no-new-privs chroot --userspec="$user:$user" "$root" \
            env -i HOME=/tmp PATH=/opt/maskloom/bin:/usr/bin:/bin "$@"
    ' sh "$root" "$user" "$STORAGE/tried" "$@"
}

try() {
    container=$(images from --pull-never "$IMAGE")
    root=$(images mount "$container")
    user=$(images inspect --type image --format '{{.OCIv1.Config.User}}' "$IMAGE")
    mkdir -p "$root/workspace/data" "$STORAGE/tried/data/text" "$STORAGE/tried/runs"
    echo "127.0.0.1 localhost container" > "$root/etc/hosts" # which engines write into every container
    for page in docs/*.md; do
        cp "$page" "$STORAGE/tried/data/text/$(basename "$page" .md).txt"
    done
    cp docker/try.yaml "$STORAGE/tried/data/run.yaml"
    chown -R "$user:$user" "$STORAGE/tried"
    du -sm "$root"
    if inside touch /opt/maskloom/left; then exit 1; fi
    inside maskloom --help > /dev/null
    inside maskloom shards /workspace/data/text /workspace/runs/shards --val-fraction 0.1
    inside maskloom tokenizer /workspace/runs/shards /workspace/runs/tokenizer --vocab-size 2000
    inside maskloom doctor /workspace/data/run.yaml --processes 2
    inside maskloom train /workspace/data/run.yaml --processes 2
    inside maskloom status --healthy /workspace/runs
    inside maskloom export /workspace/runs/first /workspace/runs/model
    inside maskloom fill /workspace/runs/model "the first [MASK] of a run"
    images rm "$container" > /dev/null
    rm -rf "$STORAGE/tried"
}

# The storage is not only removed as files: mounts in it would be busy.
clean() {
    images rm --all
    images rmi --all --force
    rm -rf "$STORAGE"
}

case ${1:-} in
build | try | clean) "$1" ;;
*) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
