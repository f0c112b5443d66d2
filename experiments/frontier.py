"""New: accuracy against wall clock, by schedule. `python -m experiments.frontier`.

VESPO and GRPO with synchronous schedules of several N and asynchronous ones of several bounds, on
the wall clock, a sampler process beside the learner, each run alone on the machine. All make the
same number of updates; what differs is how long that takes and how stale the data is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.suite import cli, page
from experiments.suite.experiment import DENSE, METHODS, Experiment
from experiments.suite.results import Result, training_seconds

COMPARED = ("vespo", "grpo")
SYNCHRONOUS = (1, 4, 16)
ASYNCHRONOUS = ((1, 1), (4, 2), (16, 4))  # (S, K): the bound, and updates between publications
PROCESSES = (("runtime.transport", "local"), ("sampler.chunk", 8))


def _async(bound: int, every: int):
  return (
    *(("runtime.mode", "async"), ("staleness.minibatches", 1)),
    *(("runtime.max_staleness", bound), ("runtime.sync_every", every)),
    ("runtime.partial_rollouts", "recompute_cache"),  # as configs/paper/asynchronous.py has it
  )


PANELS = {
  method: {
    "sync": [(f"N = {n}", (method, n)) for n in SYNCHRONOUS],
    "async": [(f"S = {bound}", (f"{method}, async", bound)) for bound, _ in ASYNCHRONOUS],
  }
  for method in COMPARED
}


def draw(experiment: Experiment, results: Sequence[Result], path: Path) -> None:
  """Accuracy at the end against seconds of the loop: a point per schedule, a line per mode."""
  page.draw_points(PANELS, results, path, training_seconds, "seconds of training")


EXPERIMENT = Experiment(
  name="frontier",
  title="Final accuracy against wall clock, synchronous and asynchronous",
  cells=[
    *(
      (method, n, DENSE, (*METHODS[method], ("staleness.minibatches", n)))
      for method in COMPARED
      for n in SYNCHRONOUS
    ),
    *(
      (f"{method}, async", bound, DENSE, (*METHODS[method], *_async(bound, every)))
      for method in COMPARED
      for bound, every in ASYNCHRONOUS
    ),
  ],
  claims=[],
  draw=draw,
  alone=True,
  testbed=PROCESSES,
  # else W would not see how much older than the newest publication a rollout is
  at_paper_scale=(("correction.denominator", "behaviour"),),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
