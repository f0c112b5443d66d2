"""The fully asynchronous figure of v1, 8 panels. `python -m experiments.asynchronous`.

The real asynchronous runtime on the logical clock, so that a run is the same every time: weights
are published every 4 updates, responses go on under newer ones, and no token is trained on more
than 7 updates later: what verl's staleness threshold of 1 and synchronisation every 4 steps allow.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import DENSE, METHODS, Claim, Experiment

RIVALS = {  # of rewards, read off the figure
  "grpo": (70.0, 60.0),
  "gspo": (70.0, 68.0),
  "sapo": "70 against 68 to 70, after a crash near update 400",
}
BEHIND = 7
CLOCK = (
  ("runtime.mode", "async"),
  ("runtime.clock", "logical"),
  ("runtime.partial_rollouts", "keep_cache"),
  ("runtime.max_staleness", BEHIND),
  ("runtime.sync_every", 4),
  ("staleness.minibatches", 1),
  ("sampler.chunk", 8),
)

EXPERIMENT = Experiment(
  name="asynchronous",
  title="Fully asynchronous: S = 7, K = 4, responses go on under newer weights (figure of v1)",
  cells=[(name, BEHIND, DENSE, (*METHODS[name], *CLOCK)) for name in ("vespo", *RIVALS)],
  claims=[
    Claim(
      f"VESPO's reward ends above {rival.upper()}'s",
      paper,
      ("vespo", BEHIND),
      (rival, BEHIND),
      "last_reward",
    )
    for rival, paper in RIVALS.items()
  ],
  curves=(
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
