#!/usr/bin/env bash
# Trains on GPU nodes of a SLURM cluster; the same command again resumes, and so does a time limit.
#
#   CONFIG=configs/quickstart.py WORKDIR=$SCRATCH/runs/one \
#     sbatch --nodes=4 --gpus-per-node=8 experiments/launch/slurm.sh [--config.KEY=VALUE ...]
#
# Submit it from this repository, with `make setup` done and `jax[cuda13]` installed, on a file
# system that all nodes mount; WORKDIR is on one too. One task on each node is one process of the
# learner, which has all GPUs of the node and one sampler process there; both share the GPUs' memory
# (runtime.gpu_memory_fraction). JAX finds the coordinator and the process ids in SLURM's variables.
#SBATCH --job-name=vespo_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

: "${CONFIG:?config file}" "${WORKDIR:?run directory on the shared file system}"
: "${SLURM_JOB_NUM_NODES:?start me with sbatch}"

# without this JAX gives each SLURM task one GPU only
gpus=${SLURM_GPUS_ON_NODE:-8}
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
export JAX_LOCAL_DEVICE_IDS

arguments=(
  "--config=$CONFIG"
  "--workdir=$WORKDIR"
  "--config.distributed.enabled=True"
  "--config.sampler.processes=$SLURM_JOB_NUM_NODES"
  "--config.checkpoint.save_within_s=240"
  "$@"
)

# SIGTERM comes 300 s before the time limit; then the run saves, exits 75, and is queued again
code=0
srun --kill-on-bad-exit=0 .venv/bin/python -m vespo_jax.train "${arguments[@]}" || code=$?
if [[ $code == 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
