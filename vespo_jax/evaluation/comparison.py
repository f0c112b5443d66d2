"""Two evaluations of the same problems against each other."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from vespo_jax.evaluation import bootstrap
from vespo_jax.evaluation.accuracy import shown_ks
from vespo_jax.evaluation.records import About, Evaluated, texts
from vespo_jax.evaluation.summary import align, curves, has_votes

PERMUTATIONS = 100_000  # where not all can be counted
_COUNTABLE = 10**9  # sums times problems: seconds
_CHUNK = 1000  # permutations at a time: memory
_SAME = ("task", "options", "reward", "problems", "samples")  # of what is compared
_TOLD = ("temperature", "top_p", "max_new_tokens", "stop_strings", "dtype", "attention", "seeds")


@dataclasses.dataclass(frozen=True)
class SignFlips:
  """A paired test.

  Attributes:
    p: two-sided.
    permutations: sign flips that were drawn; 0: all of them were counted.
    differing: problems on which the two differ; no other one says anything.
  """

  p: float
  permutations: int
  differing: int


def sign_flip_test(difference_P: np.ndarray, unit: float | None) -> SignFlips:
  """The chance that the mean difference is as far from 0 as it is, or farther, if each problem's
  could as well have had the other sign: p of the null hypothesis that the two are exchangeable on
  every problem.

  If all differences are multiples of `unit`, all 2^P flips are counted, by the distribution of
  their sum, unless that has too many values. Else `PERMUTATIONS` are drawn, seeded, and the
  observed one is counted among them.
  Source: Fisher (1935); Phipson and Smyth, arXiv 1603.05766, for the drawn ones.

  Args:
    difference_P: per problem.
    unit: of which every difference is a multiple, but for rounding; None where there is none.
  """
  if unit is not None:
    difference_P = np.rint(difference_P / unit) * unit
  moved = difference_P[difference_P != 0]
  if unit is not None:
    sums = np.rint(moved / unit).astype(int)
    sums //= max(np.gcd.reduce(sums), 1)
    if np.abs(sums).sum() * len(sums) <= _COUNTABLE:
      return SignFlips(_exact(np.abs(sums), abs(int(sums.sum()))), 0, len(moved))
  observed = abs(moved.sum()) * (1 - 1e-12)  # sums are rounded
  rng, extreme = np.random.default_rng(bootstrap.SEED), 0
  for _ in range(0, PERMUTATIONS, _CHUNK):
    signs = rng.choice([-1.0, 1.0], size=(_CHUNK, len(moved)))
    extreme += int((np.abs(signs @ moved) >= observed).sum())
  return SignFlips((1 + extreme) / (1 + PERMUTATIONS), PERMUTATIONS, len(moved))


def _exact(steps: np.ndarray, observed: int) -> float:
  """The chance that |sum of +-steps| >= observed."""
  total = int(steps.sum())
  chance = np.zeros(2 * total + 1)  # of each sum, from -total
  chance[total] = 1.0
  for step in steps:
    chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2  # nothing reaches the ends
  return float(min(chance[np.abs(np.arange(-total, total + 1)) >= observed].sum(), 1.0))


def compare(one: Evaluated, other: Evaluated) -> dict[str, Any]:
  """Both, their difference (one - other) with paired bootstrap intervals, and the paired test of
  avg@k, over problems.

  Raises ValueError naming what is not the same of the two: task, reward, problems or samples.
  """
  _check(one, other)
  n, units = one.about.samples, math.lcm(len(one.about.seeds), len(other.about.seeds))
  values = [curves(evaluated) for evaluated in (one, other)]
  means = [of.mean(axis=(0, 1)) for of in values]
  ends_2K = bootstrap.difference_intervals(*values)
  difference_P = values[0][:, :, 0].mean(axis=0) - values[1][:, :, 0].mean(axis=0)
  whole = all(np.isin(evaluated.rewards_SPR, (0.0, 1.0)).all() for evaluated in (one, other))
  test = sign_flip_test(difference_P, 1 / (n * units) if whole else None)
  names = {f"avg@{n}": 0}
  names |= {f"pass@{k}": k for k in shown_ks(n)[1:]}
  if has_votes(one) or has_votes(other):
    names |= {f"maj@{k}": n + k for k in shown_ks(n)[1:]}
  return {
    "models": [evaluated.about.model for evaluated in (one, other)],
    "problems": one.about.problems,
    "samples": n,
    "settings": _told(one.about, other.about),
    "differences": {
      name: {
        "values": [float(mean[column]) for mean in means],
        "difference": float(means[0][column] - means[1][column]),
        "low": float(ends_2K[0, column]),
        "high": float(ends_2K[1, column]),
      }
      for name, column in names.items()
    },
    "sign_flip_test": {"of": f"avg@{n}", **dataclasses.asdict(test)},
    "bootstrap": {"replicates": bootstrap.REPLICATES, "level": bootstrap.LEVEL},
  }


def table(found: dict[str, Any]) -> str:
  """A comparison for people."""
  test = found["sign_flip_test"]
  how = f"{test['permutations']} random" if test["permutations"] else "all"
  rows = [("", "A", "B", "A - B, in points")]
  for name, of in found["differences"].items():
    a, b = (f"{value:.1%}" for value in of["values"])
    gap, low, high = (_points(of[key]) for key in ("difference", "low", "high"))
    rows.append((name, a, b, f"{gap} [{low}, {high}]"))
  lines = [f"{letter}: {model}" for letter, model in zip("AB", found["models"], strict=True)]
  lines += [f"differs: {name}: {a!r}, {b!r}" for name, (a, b) in found["settings"].items()]
  return "\n".join(
    [
      *lines,
      f"{found['problems']} problems x {found['samples']} samples, "
      f"{test['differing']} problems differ",
      *align(rows),
      f"paired sign-flip test of {test['of']}: {_p(test['p'])} ({how} sign flips)",
    ]
  )


def _points(share: float) -> str:
  return f"{round(100 * share, 1) + 0.0:+.1f}"  # without -0.0


def _p(p: float) -> str:
  return f"p = {p:.2g}" if p >= 1e-6 else "p < 1e-6"


def _check(one: Evaluated, other: Evaluated) -> None:
  for name in _SAME:
    a, b = getattr(one.about, name), getattr(other.about, name)
    if a != b:
      raise ValueError(
        f"the two cannot be compared: {name} is {a!r:.80} of one, {b!r:.80} of other"
      )
  asked = [texts(records) for evaluated in (one, other) for records in evaluated.records]
  for questions in asked[1:]:
    for a, b in zip(asked[0], questions, strict=True):
      if a != b:
        raise ValueError(f"the two cannot be compared: problem {a[0]} is not the same of both")


def _told(one: About, other: About) -> dict[str, list[Any]]:
  """Settings of the sampling that differ, which is for the reader to judge."""
  pairs = {name: [getattr(one, name), getattr(other, name)] for name in _TOLD}
  return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
