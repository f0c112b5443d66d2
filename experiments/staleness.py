"""Figures 3 and 4, tables 1 and 2: VESPO and three rivals over N.

`python -m experiments.staleness`
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, Claim, Experiment, synchronous

METHODS = ("vespo", "grpo", "gspo", "sapo")
STALENESSES = (4, 8, 16, 32, 64)
PAPER = {  # table 2, average over AIME25, AIME24, AMC23 and MATH500; N = 8 from table 1
  "vespo": (70.0, 70.0, 67.3, 64.5, 61.8),
  "grpo": (54.0, 57.0, 51.1, 52.4, 48.6),
  "gspo": (59.9, 59.1, 58.3, 50.0, 47.6),
  "sapo": (65.2, 51.7, 50.5, 20.9, 16.5),
}

EXPERIMENT = Experiment(
  name="staleness",
  title="Staleness: VESPO, GRPO, GSPO and SAPO at N = 4 .. 64 (figures 3-4, tables 1-2)",
  cells=synchronous(METHODS, STALENESSES),
  claims=[
    Claim(
      f"VESPO is above {rival.upper()} at N = {n}",
      (PAPER["vespo"][i], PAPER[rival][i]),
      ("vespo", n),
      (rival, n),
    )
    for rival in METHODS[1:]
    for i, n in enumerate(STALENESSES)
  ],
  curves=(
    ACCURACY,
    "reward/mean",
    "response/length",
    "kl/behaviour_policy",
    "entropy/mean",
    "objective/loss",
    "grad/norm",
  ),
  seeds=5,
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
