#!/usr/bin/env bash
# Collects the wheels that an offline machine with a GPU lacks to run maskloom, with DeepSpeed's FusedAdam compiled for it.
# Run it where a package index is reached.
#
#   benchmarks/gpu_wheels.sh [DIR [HAS]]
#
#   DIR       where the wheels go (.whl, which gpu_check.sh installs on the other machine)
#   HAS       what `python3 -m pip list --format=freeze` prints there; without it benchmarks/gpu/machine.txt, which is an image with
#             PyTorch, transformers and TensorBoard
#   PY        Python that maskloom is installed for (.venv/bin/python)
#   VERSION   of Python there (3.12)
#   FUSED     0: a DeepSpeed without compiled operators. Otherwise:
#   FUSED_PY  Python of that version, with that machine's build of torch, setuptools below 82, wheel and ninja (PY)
#   CUDA_HOME CUDA of the version that torch was built for, with nvcc (/usr/local/cuda)
#   ARCH      compute capability of the GPU (9.0: Hopper)
set -euo pipefail
case "${1:-}" in
  -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  -*) echo "DIR $1 is an option; --help says what there is" >&2; exit 2 ;;
esac
if (($# > 2)); then
  echo "benchmarks/gpu_wheels.sh [DIR [HAS]]: $3 is one too many" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$root/.whl} has=${2:-$root/benchmarks/gpu/machine.txt}
py=${PY:-$root/.venv/bin/python} version=${VERSION:-3.12}
fused_py=${FUSED_PY:-$py} home=${CUDA_HOME:-/usr/local/cuda}
if [[ ! -r $has || -d $has ]]; then
  echo "there is no file $has: HAS is what 'python3 -m pip list --format=freeze' prints on the other machine" >&2
  exit 2
fi
if [[ ${FUSED:-1} != 0 ]]; then # before anything is downloaded
  if ! "$fused_py" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2> /dev/null; then
    echo "FUSED_PY $fused_py has no CUDA build of torch, for which FusedAdam is compiled: name one that has, or FUSED=0" >&2
    exit 2
  fi
  # nvcc on the PATH may be a script that stands far from the libraries.
  if [[ ! -x $home/bin/nvcc || ! -e $home/lib64/libcudart.so ]]; then
    echo "CUDA_HOME $home has no bin/nvcc or no lib64/libcudart.so: name another, or FUSED=0" >&2
    exit 2
  fi
fi
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$dir"

lacks=$("$py" "$root/benchmarks/gpu/wheels.py" missing --has "$has")
echo "$lacks"
mapfile -t pure < <(grep -v '^deepspeed==' <<<"$lacks")
mapfile -t deepspeed < <(grep '^deepspeed==' <<<"$lacks")
args=(--quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp --dest "$dir")
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do args+=(--platform "${tag}_x86_64"); done
if ((${#pure[@]})); then "$py" -m pip download "${args[@]}" "${pure[@]}"; fi

if ((${#deepspeed[@]})); then
  build=(--quiet --no-cache-dir --no-deps --wheel-dir "$dir" "${deepspeed[@]}")
  if [[ ${FUSED:-1} == 0 ]]; then
    DS_BUILD_OPS=0 "$py" -m pip wheel "${build[@]}"
  else
    # Headers that CUDA_HOME may lack (cuSPARSE, cuBLAS) are in the packages that torch's build depends on.
    headers=$("$fused_py" -c 'import nvidia, pathlib; print(":".join(str(f) for p in nvidia.__path__ for f in pathlib.Path(p).glob("*/include")))')
    # Without DS_ACCELERATOR a machine without a GPU compiles the CPUs' operator of the same name, without a word.
    PATH=$(dirname "$fused_py"):$PATH DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1 TORCH_CUDA_ARCH_LIST=${ARCH:-9.0} \
      CUDA_HOME=$home CPATH=$headers PYTHONPATH="" "$fused_py" -m pip wheel --no-build-isolation "${build[@]}"
  fi
fi
"$py" "$root/benchmarks/gpu/wheels.py" check "$dir" --has "$has"
