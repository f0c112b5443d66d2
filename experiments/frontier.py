"""New: accuracy against wall clock, by schedule. `python -m experiments.frontier`.

VESPO and GRPO with synchronous schedules of several N and asynchronous ones of several bounds, on
the wall clock, a sampler process beside the learner, each run alone on the machine. All make the
same number of updates; what differs is how long that takes and how stale the data is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.suite import cli
from experiments.suite.experiment import DENSE, METHODS, Experiment, by_cell
from experiments.suite.results import Result
from vespo_jax.report.drawing import STYLE

COMPARED = ("vespo", "grpo")
SYNCHRONOUS = (1, 4, 16)
ASYNCHRONOUS = ((1, 1), (4, 2), (16, 4))  # (S, K): the bound, and updates between publications
PROCESSES = (("runtime.transport", "local"),)


def _async(bound: int, every: int):
  return (
    *(("runtime.mode", "async"), ("staleness.minibatches", 1)),
    *(("runtime.max_staleness", bound), ("runtime.sync_every", every)),
    *(("runtime.partial_rollouts", "keep_cache"), ("sampler.chunk", 8)),
  )


def draw(experiment: Experiment, results: Sequence[Result], path: Path) -> None:
  """Accuracy at the end against seconds of the loop: a point per schedule, a line per mode."""
  cells = by_cell(results)
  path.parent.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.0 * len(COMPARED), 3.2))
    axes = figure.subplots(1, len(COMPARED), sharey=True)
    for axis, method in zip(axes, COMPARED, strict=True):
      modes = {
        "sync": [(method, n) for n in SYNCHRONOUS],
        "async": [(f"{method}, async", s) for s, _ in ASYNCHRONOUS],
      }
      for mode, keys in modes.items():
        points = [list(cells[key].values()) for key in keys if key in cells]
        seconds = [np.mean([r["curves"]["wall_time_s"][-1] for r in cell]) for cell in points]
        accuracy = [np.mean([r["after"] for r in cell]) for cell in points]
        axis.plot(seconds, accuracy, marker="o", label=mode)
        for x, y, (_, n) in zip(seconds, accuracy, [k for k in keys if k in cells], strict=True):
          axis.annotate(f"{'N' if mode == 'sync' else 'S'} = {n}", (x, y), fontsize=8)
      axis.set_title(method)
      axis.set_xlabel("seconds of training")
    axes[0].set_ylabel("final accuracy")
    axes[0].legend()
    figure.savefig(path, dpi=110)


EXPERIMENT = Experiment(
  name="frontier",
  title="Final accuracy against wall clock, synchronous and asynchronous",
  cells=[
    *(
      (method, n, DENSE, (*METHODS[method], *PROCESSES, ("staleness.minibatches", n)))
      for method in COMPARED
      for n in SYNCHRONOUS
    ),
    *(
      (f"{method}, async", bound, DENSE, (*METHODS[method], *PROCESSES, *_async(bound, every)))
      for method in COMPARED
      for bound, every in ASYNCHRONOUS
    ),
  ],
  claims=[],
  draw=draw,
  alone=True,
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
