"""What a run that cannot go on leaves behind, whole enough to make its last update again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vespo_jax import files, sharding
from vespo_jax.hosts import Hosts
from vespo_jax.learner.checkpoint import Checkpoints, RunState
from vespo_jax.learner.intake import Minibatch, ProblemSet
from vespo_jax.learner.numerics import PER_LEAF, leaf_names
from vespo_jax.learner.records import write_rollouts
from vespo_jax.learner.saved import Origin, RolloutWriter
from vespo_jax.learner.update import PER_SEQUENCE
from vespo_jax.models import ModelSpec
from vespo_jax.types import HostArray

REPORT, ROLLOUTS, MINIBATCH = "report.json", "rollouts.jsonl", "rollouts.parquet"
SHOWN = 5  # of each kind in a description


class Diverged(RuntimeError):
  """An update is bad as `numerics.Limits` says."""


def explain(
  causes: Sequence[str], row: Mapping[str, Any], norms: Mapping[str, float], log_w: np.ndarray
) -> str:
  """The causes of a bad update in words, from its metrics, the gradient norm of every leaf, and log
  W of every sequence, W = policy / behaviour."""
  broken = [name for name, norm in norms.items() if not np.isfinite(norm)]
  words = {
    "loss": f"its loss is {row['objective/loss']}",
    "gradient": f"its gradient is not finite ({', '.join(broken[:3])}{', ..' * (len(broken) > 3)})",
    "reward": "a reward is not finite",
    "grad_norm": f"its gradient norm {row['grad/norm']:.3g} is above guards.max_grad_norm",
    "log_w": f"its |log W| reaches {np.abs(log_w).max():.3g}, above guards.max_log_w",
  }
  return "; ".join(words[cause] for cause in causes)


@dataclasses.dataclass(frozen=True)
class Breakdown:
  """Writes down a bad update that ends the run, over an earlier one.

  Attributes:
    folder: `report.json`, the minibatch to read (`rollouts.jsonl`) and to train on
      (`rollouts.parquet/`), and the run before the update (`checkpoints/`).
    spec: of the policy.
    origin: of the rollouts.
    problems: what they answer.
    hosts: of the run, all of which write the checkpoint; the first writes the rest.
  """

  folder: Path
  spec: ModelSpec
  origin: Origin
  problems: ProblemSet
  hosts: Hosts = dataclasses.field(default_factory=Hosts)

  def write(
    self,
    run: RunState,
    minibatch: Minibatch,
    row: Mapping[str, Any],
    columns: Mapping[str, HostArray],
    per_token: Mapping[str, HostArray],
    norms: Mapping[str, float],
    why: str,
    checkpoint: int | None,
  ) -> None:
    """Writes it.

    Args:
      run: before the update.
      minibatch: that was trained on.
      row: metrics of the update.
      columns: [P, R] of every sequence.
      per_token: [.., R, T] of every token, of the first groups or all.
      norms: of the gradient, by leaf.
      why: in words.
      checkpoint: the run's newest checkpoint.

    Raises OSError, CheckpointError if there is no room for it.
    """
    update = row["step"]
    leaves = sharding.fetch(jax.tree.leaves(run.state.params))
    finite = [np.isfinite(leaf).all() for leaf in leaves]
    if self.hosts.first:
      shutil.rmtree(self.folder, ignore_errors=True)
    report = {
      "update": update,
      "why": why,
      "checkpoint": checkpoint,
      "metrics": {key: repr(value) for key, value in row.items()},
      "gradient_norms": {name: repr(float(norm)) for name, norm in norms.items()},
      "non_finite_parameters": [
        name for name, good in zip(leaf_names(run.state.params), finite, strict=True) if not good
      ],
    }
    rollouts = minibatch.rollouts
    if self.hosts.first:
      write_rollouts(self.folder / ROLLOUTS, rollouts, columns, per_token, self.problems, update)
      RolloutWriter(self.folder / MINIBATCH, self.origin).write(update, rollouts)
      files.write(self.folder / REPORT, json.dumps(report, indent=2) + "\n")
    self.hosts.wait()
    checkpoints = Checkpoints(self.folder / "checkpoints", self.spec, hosts=self.hosts)
    checkpoints.save(run, update - 1)
    checkpoints.close()


def describe(metrics: dict[str, Any]) -> list[str]:
  """What to look at of a bad update, one line each: its scalars, the largest gradients, and the
  sequences with the largest weights. `PER_LEAF` of the metrics is by name."""
  scalars = {key: value for key, value in metrics.items() if np.ndim(value) == 0 and "/" in key}
  lines = [f"  {key}: {float(value):.6g}" for key, value in sorted(scalars.items())]
  rank = lambda norm: -norm if np.isfinite(norm) else -np.inf
  norms = sorted(metrics[PER_LEAF].items(), key=lambda item: rank(item[1]))
  lines.append("largest gradients:")
  lines += [f"  {name}: {norm:.6g}" for name, norm in norms[:SHOWN]]
  log_w_PR, advantage_PR = (metrics[PER_SEQUENCE][key] for key in ("log_w", "advantage"))
  worst = np.argsort(np.where(np.isfinite(log_w_PR), -np.abs(log_w_PR), -np.inf), axis=None)
  lines.append("sequences with the largest |log W| (group, sample):")
  for index in worst[:SHOWN]:
    at = tuple(int(i) for i in np.unravel_index(index, log_w_PR.shape))
    lines.append(f"  {at}: log W {log_w_PR[at]:.6g}, advantage {advantage_PR[at]:.4g}")
  return lines
