"""One run of an experiment: which config it is, and what is kept of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vespo_jax import metrics

VERSION = 1  # of the testbed's configs and warm starts: a new one makes all runs new

CURVES = (
  *("reward/mean", "response/length", "entropy/mean", "kl/behaviour_policy", "grad/norm"),
  *("objective/loss", "objective/ess_fraction", "objective/coefficient_mean"),
  *("weight/ess_fraction", "weight/log_w_std", "weight/log_z", "staleness/mean"),
  *("weight/second_moment_bound_pos", "weight/second_moment_bound_neg"),
  *("gradient_share/length_q1", "gradient_share/length_q4", "wall_time_s"),
)
CURVE_POINTS = 64
LAST = 0.1  # the share of updates whose mean reward is kept


@dataclasses.dataclass(frozen=True)
class Run:
  """What one line of results is about.

  Attributes:
    experiment: the file it belongs to.
    method: how tables and figures call it.
    seed: of the run.
    staleness: N of a sync run, or S of an asynchronous one.
    config: the config file.
    changes: keys of it that differ, as ("objective.name", "grpo").
  """

  experiment: str
  method: str
  seed: int
  staleness: int
  config: str
  changes: tuple[tuple[str, Any], ...] = ()

  @property
  def flags(self) -> list[str]:
    """The changes as flags of `vespo_jax.train`."""
    changes = (*self.changes, ("seed", self.seed))
    return [f"--config.{key}={_text(value)}" for key, value in changes]

  @property
  def key(self) -> str:
    """Names the run: equal for the same changes to the same config of the same `VERSION`."""
    named = [VERSION, Path(self.config).name, sorted(self.flags)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

  def command(self, workdir: Path) -> list[str]:
    """What runs, or resumes, it."""
    module = [sys.executable, "-m", "vespo_jax.train"]
    return [*module, f"--config={self.config}", f"--workdir={workdir}", *self.flags]


def scores(workdir: Path) -> dict[str, Any]:
  """What a finished run's directory says: accuracies before, during and after training, the mean
  reward of the last updates, curves.

  A run that diverged, at its first update it may be, has no accuracy after; its own is then 0, and
  `stop_reason` says so; `asked` is how many updates it was to make. A curve with a value that JSON
  has no number for is left out: bounds are infinite where k < 1.
  """
  result = json.loads((workdir / "result.json").read_text())
  rows = metrics.read(workdir / "metrics.jsonl")
  asked = json.loads((workdir / "config.json").read_text())["updates"]
  reward = np.array([row["reward/mean"] for row in rows] or [0.0])
  last = max(1, round(LAST * len(rows)))
  evaluations = {r["step"]: r["evaluation/accuracy"] for r in rows if "evaluation/accuracy" in r}
  after = result.get("evaluation_after", {}).get("accuracy", 0.0)
  evaluations[result["updates"]] = after
  return {
    "before": result["evaluation_before"]["accuracy"],
    "after": after,
    "last_reward": float(reward[-last:].mean()),
    "updates": result["updates"],
    "asked": asked,
    "wall_time_s": round(result["wall_time_s"], 1),  # of all its parts, if it was resumed
    "stop_reason": result["stop_reason"],
    "evaluations": list(evaluations.items()),
    "curves": {
      name: _thin(curve)
      for name in ("step", *CURVES)
      if rows and name in rows[0] and np.isfinite(curve := [row[name] for row in rows]).all()
    },
  }


def _thin(values: list[float]) -> list[float]:
  """The means of up to `CURVE_POINTS` stretches of equal length, four significant digits."""
  parts = np.array_split(np.asarray(values, float), min(CURVE_POINTS, len(values)))
  return [float(f"{part.mean():.4g}") for part in parts]


def _text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)
