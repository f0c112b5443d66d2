"""Makes the update again that ended a run: `python -m vespo_jax.replay_failure --workdir=DIR`.

Shows what was bad, and whether it is again: its metrics, the largest gradients by parameter, and
the sequences with the largest weights. Exit codes: 0 if it is, 1 if this time the update is good, 2
if the directory holds no such update.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import jax

from vespo_jax import config as config_lib
from vespo_jax import parts, sharding, training
from vespo_jax.learner import failure, saved
from vespo_jax.learner.batching import make_batch
from vespo_jax.learner.checkpoint import CheckpointError, Checkpoints
from vespo_jax.learner.numerics import CAUSES, PER_LEAF, leaf_names


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m vespo_jax.replay_failure", description=__doc__)
  parser.add_argument("--workdir", required=True, type=Path, help="run directory")
  folder = parser.parse_args(argv[1:]).workdir / "failure"
  try:
    if not (folder / failure.REPORT).is_file():
      raise FileNotFoundError(f"{folder} holds no update that ended a run")
    report = json.loads((folder / failure.REPORT).read_text())
    metrics = replay(folder, report["update"])
  except (OSError, ValueError, CheckpointError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"update {report['update']} ended the run: {report['why']}")
  for line in failure.describe(metrics):
    print(line)
  bad = [cause for cause, found in metrics[CAUSES].items() if found]
  print(f"made again, it is bad: {', '.join(bad)}" if bad else "made again, it is good")
  return 0 if bad else 1


def replay(folder: Path, update: int) -> dict[str, Any]:
  """The metrics of `update`, made again from what `failure.Breakdown` wrote.

  On the host; besides those of `make_update` and `numerics.guarded` the norms of the gradient by
  parameter, under `PER_LEAF`.

  Raises OSError, ValueError, CheckpointError if that cannot be read.
  """
  config = config_lib.read(folder.parent / "config.json")
  mesh = parts.make_mesh(config)
  spec, params, tokenizer = parts.load_policy(config, mesh)
  learner = training.make_learner(config, mesh, spec, params)
  origin = parts.origin(config, tokenizer)
  rollouts = saved.read(folder / failure.MINIBATCH, origin, update)
  with contextlib.closing(Checkpoints(folder / "checkpoints", spec)) as checkpoints:
    run = learner.restore(checkpoints, update, set_aside=lambda place, problem: None)
  if run is None:
    raise FileNotFoundError(f"{folder} holds no state from before update {update}")
  learner.start_rollout_batch(run, config_lib.make_schedule(config))
  batch, _ = make_batch(
    rollouts, config.batch.samples_per_prompt, config.sampler.max_new_tokens, update - 1
  )
  batch = learner.anchors.complete(jax.device_put(batch, sharding.batch_sharding(mesh)))
  names = leaf_names(run.state.params)
  metrics = jax.device_get(learner.update(run.state, batch)[1])
  return metrics | {PER_LEAF: dict(zip(names, metrics[PER_LEAF].tolist(), strict=True))}


if __name__ == "__main__":
  sys.exit(main(sys.argv))
