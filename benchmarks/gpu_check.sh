#!/usr/bin/env bash
# What to do in the first ten minutes on a machine with a GPU: two calls, of at most 5 minutes. It needs no network.
#
#   benchmarks/gpu_check.sh data     text and tokenizer, once: here or, if there is no time for it, on another machine
#   benchmarks/gpu_check.sh first    does everything run? versions, gpu tests, what the GPU reaches, trainings with a resume and a fork
#   benchmarks/gpu_check.sh bench    steps of BERT-base and BERT-large at 128 and 512, and of ModernBERT-base at 1,024
#
# Each part prints `== NAME: rc N`, has a time of its own, and what fails keeps no other from running; the exit code is 1 then.
#
#   OUT       where logs and results go (runs/gpu_check)
#   PY        Python that has torch (python3)
#   WHEELS    wheels that it lacks, from gpu_wheels.sh; they are installed beside it, for this check alone (.whl, if it is there)
#   DATA      text and tokenizer; made if missing (benchmarks/.cache/step, and for DEVICE=cpu a folder of the check)
#   COMMIT    commit of the source, where git does not know it
#   LIMIT_S   most seconds of the whole (290)
#   JOBS      trainings at a time (a half of the cores, 2 to 6)
#   WORK      scratch of several GB, on a local disk (a folder of yours below TMPDIR)
#   DEVICE    cpu: the dry run, on a machine without a GPU: small shapes, at most 3 minutes on two cores
set -euo pipefail
case "${1:-first}" in
  -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  data | first | bench) ;;
  *) echo "benchmarks/gpu_check.sh data|first|bench, not $1 (--help says more)" >&2; exit 2 ;;
esac
if (($# > 1)); then
  echo "one word at most, data, first or bench: $2 is one too many" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
py=${PY:-python3} device=${DEVICE:-cuda} out=${OUT:-$root/runs/gpu_check}
work=${WORK:-${TMPDIR:-/tmp}/maskloom-gpu-check.$(id -u)}
mkdir -p "$out" "$work"
chmod 700 "$work"  # compiled code is loaded from below it: it fails if somebody else made it

wheels=${WHEELS:-}
if [[ -z $wheels && $device == cuda && -d $root/.whl ]]; then wheels=$root/.whl; fi
path=$root/src:$root/benchmarks
if [[ -n $wheels ]]; then
  if ! compgen -G "$wheels/*.whl" > /dev/null; then
    echo "WHEELS=$wheels has no wheels: benchmarks/gpu_wheels.sh collects them" >&2
    exit 2
  fi
  "$py" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" "$wheels"/*.whl
  path=$work/site:$path
fi

export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export MASKLOOM_COMMIT=${COMMIT:-}
# What is compiled stays for the second call.
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TORCH_EXTENSIONS_DIR=$work/extensions TRITON_CACHE_DIR=$work/triton
mkdir -p "$TORCHINDUCTOR_CACHE_DIR" "$TORCH_EXTENSIONS_DIR" "$TRITON_CACHE_DIR"

cd "$root"
exec "$py" benchmarks/gpu/check.py "${1:-first}" --device "$device" --out "$out" --work "$work" \
  ${DATA:+--data "$DATA"} ${LIMIT_S:+--limit-s "$LIMIT_S"} ${JOBS:+--jobs "$JOBS"}
