"""The fully asynchronous figure of v1, 8 panels. `python -m experiments.asynchronous`.

The paper's figures are averages of AIME24 and AIME25, read off it at update 1,450. Of the reward it
has VESPO, GSPO and SAPO alike, at 70, 68 and 68 to 70, and GRPO at 60.

The real asynchronous runtime on the logical clock, so that a run is the same every time: weights
are published every 4 updates, responses go on under newer ones, and no token is trained on more
than 7 updates later: what verl's staleness threshold of 1 and synchronisation every 4 steps allow.
Keys and values are computed again under newer weights, as verl does; "kept cache" goes on with
those of the older ones, which costs less, and is a mismatch beside the staleness.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, DENSE, METHODS, Claim, Experiment

RIVALS = {"grpo": 33.2, "gspo": 26.5, "sapo": 11.5}  # VESPO has 38.2
BEHIND = 7
CLOCK = (
  ("runtime.mode", "async"),
  ("runtime.clock", "logical"),
  ("runtime.max_staleness", BEHIND),
  ("runtime.sync_every", 4),
  ("staleness.minibatches", 1),
  ("sampler.chunk", 8),
)


def _cells(kind: str, partial_rollouts: str):
  change = ("runtime.partial_rollouts", partial_rollouts)
  return [(f"{name}{kind}", BEHIND, DENSE, (*METHODS[name], change)) for name in ("vespo", *RIVALS)]


EXPERIMENT = Experiment(
  name="asynchronous",
  title="Fully asynchronous: S = 7, K = 4, responses go on under newer weights (figure of v1)",
  cells=[*_cells("", "recompute_cache"), *_cells(", kept cache", "keep_cache")],
  testbed=CLOCK,
  paper={DENSE: "configs/paper/asynchronous.py"},
  claims=[
    Claim(f"VESPO is above {rival.upper()}", (38.2, paper), ("vespo", BEHIND), (rival, BEHIND))
    for rival, paper in RIVALS.items()
  ],
  curves=(
    ACCURACY,
    "reward/mean",
    "response/length",
    "entropy/mean",
    "kl/behaviour_policy",
    "grad/norm",
    "objective/loss",
    "weight/ess_fraction",
    "staleness/mean",
  ),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
