#!/usr/bin/env bash
# The environment of `make rehearse`: the CUDA build of the lowest torch that pyproject.toml admits, the lowest transformers,
# DeepSpeed without operators, and what the unit suite needs. About 6 GB; minutes, most of them downloads.
#   benchmarks/rehearse/setup.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$2
cd "$(dirname "$0")/../.."
lowest() { sed -n "s/.*\"$1>=\([0-9.]*\)\".*/\1/p" pyproject.toml; }
exact() { sed -n "s/.*\"\($1==[0-9.]*\)\".*/\1/p" pyproject.toml; }

"$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' ||
  { echo "make rehearse needs Python 3.12 or 3.11: make rehearse REHEARSE_PYTHON=FILE ($python is none)" >&2; exit 1; }
command -v gcc > /dev/null || { echo "make rehearse needs gcc" >&2; exit 1; }
command -v nvcc > /dev/null || echo "there is no nvcc of CUDA 13.0 on the PATH: FusedAdam will not be built" >&2
echo "making $folder: about 6 GB" >&2

is_made=
trap '[[ $is_made ]] || rm -rf "$folder"' EXIT
"$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
torch="torch==$(lowest torch).*" transformers="transformers==$(lowest transformers).*"
pip "$torch" setuptools wheel ninja
"$folder/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' ||
  { echo "pip took a CPU build of torch; a CUDA build is needed, no GPU: look at pip's find-links and indices" >&2; exit 1; }
DS_BUILD_OPS=0 pip --no-build-isolation "$torch" "$transformers" "$(exact deepspeed)"
pip "$torch" "$transformers" --editable '.[dev]'
pip --no-deps "$(sed -n 's/^TEST_MODEL := //p' Makefile)"
is_made=yes
