#!/usr/bin/env bash
# Trains with samplers on a Ray cluster; the learner is one JAX process on each host that is named.
#
#   CONFIG=configs/quickstart.py WORKDIR=/shared/runs/one RAY_HEAD=10.0.0.9:6379 SAMPLERS=16 \
#     experiments/launch/ray.sh "10.0.0.1 10.0.0.2" [--config.KEY=VALUE ...]
#
# Before: `ray start --head --port=6379` on one node, `ray start --address=RAY_HEAD --num-gpus=N` on
# every node that samples, and `ray start --address=RAY_HEAD --num-cpus=0 --num-gpus=0` on every
# host of the learner, which gives orders and must not sample. All have this repository in
# ~/vespo_jax with `make setup` and requirements-ray.txt; the learner's hosts share WORKDIR.
#
# The learner is not scheduled by Ray: multi-controller JAX wants one process on each host that it
# computes on, with a number. Where Ray is started by SLURM or KubeRay, start the same command there
# instead of by ssh; the three keys of `distributed` are what JAX cannot find by itself.
set -euo pipefail

: "${CONFIG:?config file}" "${WORKDIR:?run directory on the shared file system}"
: "${RAY_HEAD:?HOST:PORT of the Ray cluster}" "${SAMPLERS:?sampler processes of the run}"
read -r -a hosts <<<"${1:?hosts of the learner, separated by spaces}"
shift

children=()
for index in "${!hosts[@]}"; do
  arguments=(
    "--config=$CONFIG"
    "--workdir=$WORKDIR"
    "--config.distributed.enabled=True"
    "--config.distributed.coordinator_address=${hosts[0]}:${PORT:-8476}"
    "--config.distributed.num_processes=${#hosts[@]}"
    "--config.distributed.process_id=$index"
    "--config.sampler.processes=$SAMPLERS"
    "--config.runtime.transport=ray"
    "--config.runtime.ray.address=$RAY_HEAD"
    "--config.runtime.ray.num_gpus=1"
    "$@"
  )
  printf -v quoted '%q ' "${arguments[@]}"
  # -tt: what ends this script ends what it started
  ssh -tt "${hosts[index]}" \
    "cd vespo_jax && exec .venv/bin/python -m vespo_jax.train $quoted" </dev/null &
  children+=("$!")
done

# all processes of a run end alike: any exit code is that of the run
code=0
for child in "${children[@]}"; do
  wait "$child" || code=$?
done
exit "$code"
