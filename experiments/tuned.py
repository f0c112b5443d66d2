"""Every method at its own best learning rate, at N = 32. `python -m experiments.tuned`.

The equal budget is `experiments.regime`'s: one run of seed 0 at each of six rates; the rate whose
run ended highest is taken, the lower of two alike. Here the method is run at it with seeds 1 to 3.
"""

from __future__ import annotations

import sys

from experiments import regime
from experiments.suite import cli, results
from experiments.suite.experiment import ACCURACY, DENSE, Claim, Experiment


def best_rates() -> dict[str, float]:
  """The best learning rate of every method that the search has finished with."""
  found = results.read(results.RESULTS / f"{regime.EXPERIMENT.name}.jsonl")
  after = {result["method"]: result["after"] for result in found if result["seed"] == 0}
  best = {}
  for method in regime.SEARCHED:
    scores = {rate: after.get(f"{method}, {rate:g}") for rate in regime.RATES}
    if None not in scores.values():
      best[method] = max(regime.RATES, key=lambda rate: (scores[rate], -rate))
  return best


def _experiment() -> Experiment:
  rates = best_rates()
  return Experiment(
    name="tuned",
    title="Each method at its own best learning rate at N = 32 "
    + "("
    + ", ".join(f"{method} {rate:g}" for method, rate in rates.items())
    + ")",
    cells=[
      (f"{method}, tuned", regime.N, DENSE, regime.changes(method, rate))
      for method, rate in rates.items()
    ],
    claims=[
      Claim(
        f"VESPO is above {method.upper()}, each at its best rate",
        None,
        ("vespo, tuned", regime.N),
        (f"{method}, tuned", regime.N),
      )
      for method in rates
      if method != "vespo"
    ],
    curves=(ACCURACY, "reward/mean", "kl/behaviour_policy", "weight/ess_fraction"),
    first_seed=1,
    paper={},
  )


EXPERIMENT = _experiment()

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
