"""Accuracy on held-out problems, with an interval that knows samples of a problem are alike."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from vespo_jax.evaluation.estimators import pass_at_k

_Z = 1.959964  # two-sided 95 % of the standard normal


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Mean correctness, its 95 % interval, and what it was measured on.

  Attributes:
    accuracy: mean correctness, which is avg@k for the k samples of each problem.
    low, high: the interval of `summarise`.
    problems: how many.
    samples_per_problem: of each.
    pass_at_k: the chance that one of k samples is correct, by k as a text, for the k of `shown_ks`
      above 1.
  """

  accuracy: float
  low: float
  high: float
  problems: int
  samples_per_problem: int
  pass_at_k: dict[str, float] = dataclasses.field(default_factory=dict)

  def to_dict(self) -> dict[str, Any]:
    """Plain values, as in `result.json`."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    return (
      f"{self.accuracy:.1%} [{self.low:.1%}, {self.high:.1%}] "
      f"({self.problems} problems x {self.samples_per_problem} samples)"
    )


def summarise(correct_PR: np.ndarray) -> Evaluation:
  """The `Evaluation` of a matrix of correctness in {0, 1}, one row per problem.

  The interval is Wilson's for the effective number of independent samples, p (1 - p) / SE^2, where
  SE is the standard error of the mean over problems: samples of one problem are not independent.
  Since few problems say little of SE, it is multiplied by (t of all samples / t of the problems)^2,
  Student's quantiles with one degree of freedom less than those. There are never more than all
  samples. Where all problems have the same mean and SE vanishes, as at 0 % and 100 %, each problem
  counts once. Source: Wilson (1927); Korn and Graubard (1998).
  """
  problems, samples = correct_PR.shape
  per_problem_P = correct_PR.mean(axis=1)
  p = float(per_problem_P.mean())
  n = float(problems)
  if np.ptp(per_problem_P) > 1e-12:  # equal means have a variance of their rounding
    n *= p * (1 - p) / float(per_problem_P.var(ddof=1))
    n *= (_t(problems * samples - 1) / _t(problems - 1)) ** 2
    n = min(n, float(problems * samples))
  centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
  half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
  passed_R = pass_at_k(correct_PR == 1).mean(axis=0)
  passed = {str(k): float(passed_R[k - 1]) for k in shown_ks(samples)[1:]}
  return Evaluation(p, max(centre - half, 0.0), min(centre + half, 1.0), problems, samples, passed)


def _t(degrees: int) -> float:
  """Two-sided 95 % of Student's t."""
  return float(special.stdtrit(degrees, 0.975))


def shown_ks(samples: int) -> list[int]:
  """The k of pass@k and maj@k worth showing: the powers of two below `samples`, and itself."""
  return [2**power for power in range((samples - 1).bit_length())] + [samples]
