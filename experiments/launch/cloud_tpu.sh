#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice; the same command again resumes.
#
#   TPU=my-slice ZONE=us-east5-a HOSTS=4 CONFIG=configs/quickstart.py WORKDIR=/mnt/shared/runs/one \
#     experiments/launch/cloud_tpu.sh [--config.KEY=VALUE ...]
#
# Every host has this repository in ~/vespo_jax with `make setup` done and `jax[tpu]` installed, and
# WORKDIR on one file system that all of them mount (Filestore, or Cloud Storage through gcsfuse):
# checkpoints are written by all hosts together.
#
# JAX finds the coordinator and the process ids by itself on Cloud TPU. A chip belongs to one
# process, so the samplers are threads of the learner's processes, one on each host. For samplers on
# machines of their own see ray.sh.
set -euo pipefail

: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}" "${HOSTS:?number of its hosts}"
: "${CONFIG:?config file}" "${WORKDIR:?run directory on the shared file system}"

arguments=(
  "--config=$CONFIG"
  "--workdir=$WORKDIR"
  "--config.distributed.enabled=True"
  "--config.sampler.processes=$HOSTS"
  "--config.runtime.transport=threads"
  "$@"
)
printf -v quoted '%q ' "${arguments[@]}"

# gcloud passes Ctrl-C on; a preempted slice sends SIGTERM to every host
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd vespo_jax && exec .venv/bin/python -m vespo_jax.train $quoted"
