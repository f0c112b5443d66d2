"""Past the paper: does staleness or mismatch hurt more per nat? `python -m experiments.per_nat`.

Both put KL between what sampled and what is trained. Staleness is dosed by N; mismatch by noise on
the sampler's weights, on policy otherwise. The figure sets the final accuracy against the mean
KL(behaviour || policy) per token of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.suite import cli, page
from experiments.suite.experiment import ACCURACY, DENSE, METHODS, Experiment, synchronous
from experiments.suite.results import Result

NOISES = (0.0, 0.01, 0.02, 0.04, 0.08)
STALENESSES = (4, 16, 64)
COMPARED = ("vespo", "grpo", "reinforce")


def _noisy(method: str, noise: float):
  dose = (("sampler.weight_noise", noise),) if noise else ()
  changes = (*METHODS[method], ("staleness.minibatches", 1), *dose)
  return f"{method}, noise {noise:g}", 1, DENSE, changes


PANELS = {
  method: {
    "staleness": [(f"N = {n}", (method, n)) for n in STALENESSES],
    "mismatch": [(f"noise {noise:g}", _noisy(method, noise)[:2]) for noise in NOISES],
  }
  for method in COMPARED
}


def draw(experiment: Experiment, results: Sequence[Result], path: Path) -> None:
  """Final accuracy against the mean KL per token of each run's cell, a panel for each method."""
  kl = lambda run: float(np.mean(run["curves"].get("kl/behaviour_policy", np.nan)))
  page.draw_points(PANELS, results, path, kl, "mean KL per token, nats", xscale="log")


EXPERIMENT = Experiment(
  name="per_nat",
  title="Staleness and mismatch per nat of KL",
  cells=[
    *synchronous(COMPARED, STALENESSES),
    *(_noisy(method, noise) for method in COMPARED for noise in NOISES),
  ],
  claims=[],
  curves=(ACCURACY, "reward/mean", "kl/behaviour_policy"),
  draw=draw,
  at_paper_scale=(("correction.denominator", "behaviour"),),  # else W would not see the mismatch
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
