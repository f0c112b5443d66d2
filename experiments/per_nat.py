"""Past the paper: does staleness or mismatch hurt more per nat? `python -m experiments.per_nat`.

Both put KL between what sampled and what is trained. Staleness is dosed by N; mismatch by noise on
the sampler's weights, on policy otherwise, in training alone: evaluations are of the policy without
it. The figure sets the final accuracy against the mean KL(behaviour || policy) per token of a run,
without those of no noise, which is 0, and the second table holds a staleness against a mismatch of
the same KL.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.suite import cli, page, statistics
from experiments.suite.experiment import ACCURACY, DENSE, METHODS, Experiment, by_cell, synchronous
from experiments.suite.results import Result

NOISES = (0.0, 0.02, 0.04, 0.06, 0.08, 0.12)
STALENESSES = (4, 16, 64)
COMPARED = ("vespo", "grpo", "reinforce")


def _noisy(method: str, noise: float):
  dose = (("sampler.weight_noise", noise),) if noise else ()
  changes = (*METHODS[method], ("staleness.minibatches", 1), *dose)
  return f"{method}, noise {noise:g}", 1, DENSE, changes


PANELS = {
  method: {
    "staleness": [(f"N = {n}", (method, n)) for n in STALENESSES],
    "mismatch": [(f"noise {noise:g}", _noisy(method, noise)[:2]) for noise in NOISES[1:]],
  }
  for method in COMPARED
}


AT_EQUAL_KL = """\
A run of N updates a rollout batch against mismatch of its KL, read off the line through the runs of
its method and seed with noise, straight in the logarithm of the KL. Points are of final accuracy;
seeds whose KL no two doses enclose are left out.

| method | N | seeds | mean KL, nats | staleness | mismatch of that KL | difference | p |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def kl(run: Result) -> float:
  """The mean KL(behaviour || policy) per token of a run's updates; NaN where it was not finite."""
  return float(np.mean(run["curves"].get("kl/behaviour_policy", np.nan)))


def draw(experiment: Experiment, results: Sequence[Result], path: Path) -> None:
  """Final accuracy against the mean KL per token of each run's cell, a panel for each method."""
  page.draw_points(PANELS, results, path, kl, "mean KL per token, nats", xscale="log")


def pairs(results: Sequence[Result], method: str, n: int) -> dict[int, tuple[float, float, float]]:
  """By seed: the KL of the run at staleness N, its final accuracy, and that of mismatch of the same
  KL, where the runs with noise enclose it."""
  cells = by_cell(results)
  doses = [cells.get(_noisy(method, noise)[:2], {}) for noise in NOISES[1:]]
  found = {}
  for seed, run in sorted(cells.get((method, n), {}).items()):
    if not all(seed in dose for dose in doses):
      continue
    points = sorted((kl(dose[seed]), dose[seed]["after"]) for dose in doses)
    nats, accuracies = zip(*points, strict=True)
    if np.isfinite(nats).all() and nats[0] <= kl(run) <= nats[-1]:
      mismatched = float(np.interp(np.log(kl(run)), np.log(nats), accuracies))
      found[seed] = (kl(run), run["after"], mismatched)
  return found


def at_equal_kl(results: Sequence[Result]) -> str:
  """The table of every method and N against mismatch of the same KL, with paired tests over seeds;
  the last row is of the mean over all of them, seed by seed."""
  rows, of_seed = [], collections.defaultdict(list)
  for method in COMPARED:
    for n in STALENESSES:
      if compared := pairs(results, method, n):
        nats, stale, mismatched = map(list, zip(*compared.values(), strict=True))
        accuracies = [page.interval(stale), page.interval(mismatched)]
        differences = {seed: one - other for seed, (_, one, other) in compared.items()}
        for seed, difference in differences.items():
          of_seed[seed].append(difference)
        row = [method, n, len(nats), f"{np.mean(nats):.2g}", *accuracies]
        rows.append([*row, *_tested([*differences.values()])])
  if rows:
    means = [float(np.mean(differences)) for differences in of_seed.values()]
    rows.append(["all", "", len(means), "", "", "", *_tested(means)])
  return AT_EQUAL_KL + "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"


def _tested(differences: Sequence[float]) -> list[str]:
  p = f"{statistics.paired_p(differences):.3g}" if len(differences) > 1 else ""
  return [page.interval(differences, sign="+"), p]


EXPERIMENT = Experiment(
  name="per_nat",
  title="Staleness and mismatch per nat of KL",
  cells=[
    *synchronous(COMPARED, STALENESSES),
    *(_noisy(method, noise) for method in COMPARED for noise in NOISES),
  ],
  claims=[],
  curves=(ACCURACY, "reward/mean", "kl/behaviour_policy"),
  draw=draw,
  analysis=at_equal_kl,
  at_paper_scale=(("correction.denominator", "behaviour"),),  # else W would not see the mismatch
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
