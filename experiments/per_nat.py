"""Past the paper: does staleness or mismatch hurt more per nat? `python -m experiments.per_nat`.

Both put KL between what sampled and what is trained. Staleness is dosed by N; mismatch by noise on
the sampler's weights, on policy otherwise. The figure sets the final accuracy against the mean
KL(behaviour || policy) per token of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.suite import cli
from experiments.suite.experiment import DENSE, METHODS, Experiment, by_cell, synchronous
from experiments.suite.results import Result
from vespo_jax.report.drawing import STYLE

NOISES = (0.0, 0.01, 0.02, 0.04, 0.08)
STALENESSES = (4, 16, 64)
COMPARED = ("vespo", "grpo", "reinforce")


def _noisy(method: str, noise: float):
  dose = (("sampler.weight_noise", noise),) if noise else ()
  changes = (*METHODS[method], ("staleness.minibatches", 1), *dose)
  return f"{method}, noise {noise:g}", 1, DENSE, changes


def draw(experiment: Experiment, results: Sequence[Result], path: Path) -> None:
  """Final accuracy against the mean KL per token of each run's cell, a panel for each method."""
  cells = by_cell(results)
  path.parent.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(3.2 * len(COMPARED), 2.8))
    axes = figure.subplots(1, len(COMPARED), sharey=True)
    for axis, method in zip(axes, COMPARED, strict=True):
      kinds = {
        "staleness": [cells.get((method, n), {}) for n in STALENESSES],
        "mismatch": [cells.get((f"{method}, noise {noise:g}", 1), {}) for noise in NOISES],
      }
      for kind, column in kinds.items():
        points = [list(cell.values()) for cell in column if cell]
        kl = [np.mean([r["curves"]["kl/behaviour_policy"] for r in cell]) for cell in points]
        accuracy = [np.mean([r["after"] for r in cell]) for cell in points]
        spread = [np.std([r["after"] for r in cell]) for cell in points]
        axis.errorbar(kl, accuracy, spread, marker="o", markersize=4, label=kind)
      axis.set_xscale("log")
      axis.set_title(method)
      axis.set_xlabel("mean KL per token, nats")
    axes[0].set_ylabel("final accuracy")
    axes[0].legend()
    figure.savefig(path, dpi=110)


EXPERIMENT = Experiment(
  name="per_nat",
  title="Staleness and mismatch per nat of KL",
  cells=[
    *synchronous(COMPARED, STALENESSES),
    *(_noisy(method, noise) for method in COMPARED for noise in NOISES),
  ],
  claims=[],
  curves=("reward/mean", "kl/behaviour_policy"),
  draw=draw,
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
