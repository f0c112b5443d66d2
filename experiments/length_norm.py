"""Figure 6: W without and with length normalisation. `python -m experiments.length_norm`."""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, Claim, Experiment, variants

STALENESSES = (8, 32)
VARIANTS = {
  "vespo": (),
  "vespo_sqrt": (("objective.vespo.length_norm", "sqrt"),),
  "vespo_linear": (("objective.vespo.length_norm", "linear"),),
}

EXPERIMENT = Experiment(
  name="length_norm",
  title="Length normalisation of W: none, T^(1/2), T (figure 6)",
  cells=variants(VARIANTS, STALENESSES),
  claims=[
    Claim(
      f"without normalisation VESPO ends above {name} at N = {n}",
      story,
      ("vespo", n),
      (name, n),
    )
    for n in STALENESSES
    for name, story in (
      ("vespo_linear", "collapses near update 350"),
      ("vespo_sqrt", "reward 0.58, then decays (v1)"),
    )
  ],
  curves=(ACCURACY, "reward/mean", "grad/norm", "kl/behaviour_policy", "entropy/mean"),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
