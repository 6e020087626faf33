# Variables of a training run, read by deepspeed.sh and slurm.sbatch before they start it. Change what does not fit your cluster.
#
# Slurm passes the whole environment to the ranks. With a hostfile the hosts get the variables that steer training: NCCL_*,
# GLOO_*, OMP_*, TORCH_*, HF_*, CUDA_* and the like, as src/maskloom/launch/environment.py lists them, and what a file
# .deepspeed_env names. Never a secret: command lines and logs of all hosts show them. Put credentials into files on the hosts
# (~/.aws/credentials, HF_TOKEN_PATH).
# shellcheck shell=bash

# The Python of the ranks: the same path on all machines.
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi

# CPU threads a rank. Left out: the cores of a machine are shared among its ranks. A run keeps the number that it began with.
# export OMP_NUM_THREADS=8

# The network that ranks talk over. It is not authenticated: it should be one that only the cluster reaches.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# Words of NCCL about what it does; its own stack dumps on SIGUSR1 would end ranks that something else sends it to.
# export NCCL_DEBUG=WARN

# Memory that grows in place breaks up less, where sequence lengths change between phases.
# export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# Training on CPUs.
# export DS_ACCELERATOR=cpu

# A stack on SIGSEGV and the like.
export PYTHONFAULTHANDLER="${PYTHONFAULTHANDLER:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
