#!/usr/bin/env bash
# Train on the machines of a hostfile, over ssh and pdsh; a run that exists resumes.
#
#   launcher/deepspeed.sh --hostfile hosts --max-restarts 20 configs/bert_base.yaml run_dir=/shared/runs/base
#
# The repository, .venv and run_dir are at the same path on all machines. SIGTERM, SIGUSR2 or Ctrl-C (once) end the run with a
# checkpoint. Exit codes: 0 done; 75 stopped, the same command resumes; anything else failed.
set -euo pipefail

launcher=$(dirname "${BASH_SOURCE[0]}")
[ -d src/maskloom ] || cd "$launcher/.."
# shellcheck source=launcher/env.sh
. "${MASKLOOM_ENV:-launcher/env.sh}"

case " $* " in
*" --hostfile"*) ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    echo "deepspeed.sh: no --hostfile; for one machine: maskloom train CONFIG" >&2
    exit 2
    ;;
esac

trap '' USR1 # would kill the launchers; nothing here uses it
exec "$PYTHON" -m maskloom.cli train "$@"
