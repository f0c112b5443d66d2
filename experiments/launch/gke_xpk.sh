#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as an xpk workload; the same command again resumes.
#
#   CLUSTER=my-cluster TPU_TYPE=v5p-32 HOSTS=4 IMAGE=REGISTRY/vespo_jax:TAG NAME=one \
#     CONFIG=configs/quickstart.py WORKDIR=/shared/runs/one \
#     experiments/launch/gke_xpk.sh [--config.KEY=VALUE ...]
#
# IMAGE holds this repository in its working directory, installed with `jax[tpu]`; WORKDIR is on a
# volume that all pods mount (`xpk storage attach`). xpk runs the command in one pod on each host,
# where JAX finds the coordinator and the process ids by itself. Kubernetes sends SIGTERM when it
# takes a node back: the grace period must be longer than a save, and checkpoint.save_within_s
# shorter than that. A run that was stopped (exit code 75) is restarted, which resumes it.
set -euo pipefail

: "${CLUSTER:?name of the GKE cluster}" "${TPU_TYPE:?such as v5p-32}" "${HOSTS:?hosts of a slice}"
: "${IMAGE:?docker image}" "${NAME:?name of the workload}"
: "${CONFIG:?config file}" "${WORKDIR:?run directory on the shared volume}"

arguments=(
  "--config=$CONFIG"
  "--workdir=$WORKDIR"
  "--config.distributed.enabled=True"
  "--config.sampler.processes=$HOSTS"
  "--config.runtime.transport=threads"
  "--config.checkpoint.save_within_s=240"
  "$@"
)
printf -v quoted '%q ' "${arguments[@]}"

exec xpk workload create \
  --cluster="$CLUSTER" --workload="$NAME" --tpu-type="$TPU_TYPE" --num-slices=1 \
  --docker-image="$IMAGE" --max-restarts=100 --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=300 \
  --command="python -m vespo_jax.train $quoted"
