#!/bin/sh
# What the Dockerfile and apptainer.def install. Each step is a word:
#
#   install.sh packages NAME...         Debian or Ubuntu packages
#   install.sh maskloom EXTRAS INDEX    torch from the package index INDEX ("": pip's own), then maskloom, into /opt/maskloom
#   install.sh fused_adam ARCHS         DeepSpeed once more, with FusedAdam compiled for these compute capabilities
#   install.sh trim                     remove tests and what only compiles, and show the size before and after
#
# Three files are read if they are there. They are mounted for the build alone, and no layer has them:
#   /run/secrets/sources   apt's sources, one `deb ...` a line: a mirror, instead of those of the base
#   /run/secrets/pip       a pip.conf: another package index, a folder of wheels, a proxy
#   /run/secrets/ca        certificates (PEM) that are trusted too
set -eu

PREFIX=${PREFIX:-/opt/maskloom}
SOURCE=${SOURCE:-/build}

packages() {
    set -- install -y --no-install-recommends "$@"
    apt update
    apt "$@"
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log
}

apt() {
    set -- -q -o Acquire::Retries=3 "$@"
    if [ -s /run/secrets/sources ]; then
        set -- -o Dir::Etc::SourceList=/run/secrets/sources -o Dir::Etc::SourceParts=/dev/null "$@"
    fi
    if [ -s /run/secrets/ca ]; then
        set -- -o Acquire::https::CAInfo=/run/secrets/ca "$@"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get "$@"
}

pip() {
    if [ -s /run/secrets/pip ]; then
        export PIP_CONFIG_FILE=/run/secrets/pip
    fi
    if [ -s /run/secrets/ca ]; then
        trusted=$(mktemp)
        cat /etc/ssl/certs/ca-certificates.crt /run/secrets/ca > "$trusted"
        export PIP_CERT="$trusted"
    fi
    "$PREFIX/bin/pip" --disable-pip-version-check --no-cache-dir "$@"
    rm -f "${trusted:-}"
}

pinned() {
    grep "^$1==" "$SOURCE/constraints.txt"
}

# torch first and alone, as the Makefile has it: the pin and the index decide which build is taken.
maskloom() {
    extras=$1
    index=$2
    python3 -m venv "$PREFIX"
    pip install ${index:+--index-url "$index"} "$(pinned torch)"
    pip install --constraint "$SOURCE/constraints.txt" "$SOURCE${extras:+[$extras]}"
}

# It is built beside the torch that it is for. DeepSpeed looks for a GPU to find out what to compile. A build has none, and without
# the first variable would give the CPUs' operator of that name.
fused_adam() {
    archs=$1
    pip install --constraint "$SOURCE/constraints.txt" "setuptools<82" wheel ninja
    export DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1 CUDA_HOME=/usr/local/cuda TORCH_CUDA_ARCH_LIST="$archs"
    PATH="$PREFIX/bin:$PATH"
    pip install --no-deps --no-build-isolation --force-reinstall --no-binary deepspeed "$(pinned deepspeed)"
    grep -q nv_fatbin "$PREFIX"/lib/python3*/site-packages/deepspeed/ops/adam/fused_adam_op*.so
}

# torch's headers stay: engine.kernels=compile includes them. So does the byte code, as the image is read-only if it runs.
trim() {
    du -sm "$PREFIX"
    packages=$(echo "$PREFIX"/lib/python3*/site-packages)
    rm -rf "$packages"/torch/test "$packages"/torch/bin/*[Tt]est* "$packages"/torch/bin/protoc* "$packages"/pyarrow/include
    find "$packages" -type d -name tests -prune -exec rm -r {} +
    find "$packages" -name '*.a' -delete
    du -sm "$PREFIX"
}

step=$1
shift
case $step in
packages | maskloom | fused_adam | trim) "$step" "$@" ;;
*) echo "install.sh: there is no step '$step'" >&2; exit 2 ;;
esac
