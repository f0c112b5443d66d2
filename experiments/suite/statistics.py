"""Means and paired tests over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05
REPRODUCED, NOT_SEEN, CONTRADICTED = "reproduced", "not seen at this scale", "contradicted"
HOLDS, NO_DIFFERENCE, REVERSED = "holds here", "no difference seen", "the reverse holds here"
TOO_FEW = "too few seeds yet"
TIE = "a tie in the paper: no verdict"
FEWEST = 3  # seeds that a verdict needs


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
  """The mean and the half width of its 95 % interval, Student's t over seeds; NaN for one value."""
  n = len(values)
  if n < 2:
    return float(np.mean(values)), math.nan
  half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
  return float(np.mean(values)), float(half)


def paired_p(differences: Sequence[float]) -> float:
  """Two-sided p-value of Student's paired t-test that the mean difference is 0; 1 where it cannot
  be told: for one pair, or where all differences are 0."""
  d = np.asarray(differences, float)
  if len(d) < 2 or not d.any():
    return 1.0
  if np.ptp(d) == 0:
    return 0.0
  return float(stats.ttest_1samp(d, 0.0).pvalue)


def discoveries(p_values: Sequence[float]) -> int:
  """How many of many tests stand when of those that do a share of `LEVEL` at most is expected to be
  chance's (Benjamini and Hochberg 1995)."""
  if not p_values:
    return 0
  return int(np.sum(stats.false_discovery_control(p_values) < LEVEL))


def verdict(differences: Sequence[float], of_the_paper: bool = True, fewest: int = FEWEST) -> str:
  """Whether paired differences, positive where a claim says so, bear it out at `LEVEL`, in other
  words for a claim that is not the paper's; no verdict on fewer than `fewest`."""
  if len(differences) < fewest:
    return TOO_FEW
  yes, unclear, no = (
    (REPRODUCED, NOT_SEEN, CONTRADICTED) if of_the_paper else (HOLDS, NO_DIFFERENCE, REVERSED)
  )
  if paired_p(differences) >= LEVEL:
    return unclear
  return yes if float(np.mean(differences)) > 0 else no
