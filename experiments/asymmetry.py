"""Figure 7: one kernel for both signs of the advantage. `python -m experiments.asymmetry`."""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, Claim, Experiment, variants

STALENESSES = (8, 32)
VARIANTS = {
  "vespo": (),
  "all_positive": (("objective.vespo.symmetric", "positive"),),
  "all_negative": (("objective.vespo.symmetric", "negative"),),
}

EXPERIMENT = Experiment(
  name="asymmetry",
  title="Asymmetric kernels, all (2, 3), all (3, 2) (figure 7)",
  cells=variants(VARIANTS, STALENESSES),
  claims=[
    Claim(
      f"two kernels end above {name} at N = {n}",
      "the curve of two kernels is on top",
      ("vespo", n),
      (name, n),
    )
    for n in STALENESSES
    for name in ("all_positive", "all_negative")
  ],
  curves=(ACCURACY, "reward/mean", "grad/norm", "kl/behaviour_policy", "entropy/mean"),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
