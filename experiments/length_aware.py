"""Past the paper: does a kernel that knows the length help? `python -m experiments.length_aware`.

Z = E_mu[phi(W)], the share of the gradient that the kernel leaves, vanishes as responses grow
(`python -m experiments.gradient_mass`); with phi^(L/T) for T > L it does not. Here on responses of
9 to 65 tokens at N = 32, with L = 11: the longest of the testbed's short responses, for which the
published kernel is kept. It helps if it is above VESPO with p < 0.05 over 8 seeds.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, LONG, METHODS, Claim, Experiment

N = 32
REFERENCE = ("objective.vespo.length_reference", 11)
VARIANTS = {"vespo": (), "vespo + length-aware": (REFERENCE,)}

EXPERIMENT = Experiment(
  name="length_aware",
  title="VESPO with phi^(11/T) where responses have T > 11 tokens, at N = 32",
  cells=[
    (name, N, LONG, (*METHODS["vespo"], ("staleness.minibatches", N), *change))
    for name, change in VARIANTS.items()
  ],
  claims=[
    Claim(
      "a length-aware kernel ends above VESPO",
      None,
      ("vespo + length-aware", N),
      ("vespo", N),
    )
  ],
  curves=(
    ACCURACY,
    "reward/mean",
    "weight/log_z",
    "gradient_share/length_q4",
    "kl/behaviour_policy",
  ),
  seeds=8,
  paper={},  # L is of the testbed's lengths
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
