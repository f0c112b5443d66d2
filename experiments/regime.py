"""The search for a learning rate at which staleness hurts. `python -m experiments.regime`.

The same budget for every method: one run at each of six learning rates, at N = 32. All methods
share the testbed's, which is one of them; `experiments.tuned` gives each its own best.
"""

from __future__ import annotations

import sys

from configs import testbed
from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, DENSE, METHODS, Experiment

N = 32
RATES = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)  # the outer two once four had been at their edges
SEARCHED = ("vespo", "grpo", "gspo", "sapo", "sequence_is", "reinforce")


def changes(method: str, rate: float) -> tuple[tuple[str, object], ...]:
  """The changes to the testbed of a method at a learning rate, at N = 32."""
  other = () if rate == testbed.LEARNING_RATE else (("optimizer.learning_rate", rate),)
  return (*METHODS[method], ("staleness.minibatches", N), *other)


EXPERIMENT = Experiment(
  name="regime",
  title="Learning rates at N = 32, one seed each",
  cells=[
    (f"{method}, {rate:g}", N, DENSE, changes(method, rate))
    for method in SEARCHED
    for rate in RATES
  ],
  claims=[],
  curves=(ACCURACY, "reward/mean", "response/length", "kl/behaviour_policy", "weight/ess_fraction"),
  seeds=1,
  paper={},
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
