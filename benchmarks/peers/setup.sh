#!/usr/bin/env bash
# One environment a peer, over the project's own: torch, transformers and tokenizers are the same build for every system.
#   benchmarks/peers/setup.sh [PYTHON]     PYTHON of the environment that has maskloom (default: .venv/bin/python)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$(realpath -s "${1:-$here/../../.venv/bin/python}")
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for peer in datasets streaming litdata; do
  environment=$here/../.cache/environments/$peer
  if cmp --silent "$here/$peer.txt" "$environment/installed.txt"; then continue; fi
  rm -rf "$environment"
  "$python" -m venv --without-pip "$environment"
  # Behind its own packages stand the project's: nothing of the size of torch is installed twice.
  echo "$packages" > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$here/$peer.txt"
  cp "$here/$peer.txt" "$environment/installed.txt"
done
