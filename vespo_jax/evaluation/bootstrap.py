"""Bootstrap intervals over problems, and over the seeds of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

REPLICATES = 10_000
SEED = 0  # the same values have the same interval
LEVEL = 0.95
_CHUNK = 500  # replicates at a time, for memory; a divisor of all


def intervals(values_SPK: np.ndarray) -> np.ndarray:
  """The 95 % percentile interval of each mean over seeds and problems: float64 [2, K].

  The bootstrap is hierarchical: a replicate draws as many problems as there are, with replacement,
  and for each problem drawn as many of its seeds; with one seed it is that over problems alone. All
  K quantities share the draws. With several seeds it is a little too wide: what differs between the
  seeds of a problem is in what differs between problems, too.

  Source: Efron (1979); Davison and Hinkley (1997), section 3.8.

  Args:
    values_SPK: K quantities of each seed and problem.
  """
  seeds, problems, quantities = values_SPK.shape
  cells = values_SPK.transpose(1, 0, 2).reshape(problems * seeds, quantities)
  rng = np.random.default_rng(SEED)
  means = [draw_seeds(rng, counts, seeds) @ cells for counts in draw_problems(rng, problems)]
  return percentiles(np.concatenate(means) / (problems * seeds))


def difference_intervals(one_SPK: np.ndarray, other_SPK: np.ndarray) -> np.ndarray:
  """As `intervals`, of the difference of two means on the same problems, which are drawn together;
  the seeds of each are its own."""
  problems, quantities = one_SPK.shape[1:]
  rng, means = np.random.default_rng(SEED), []
  for counts in draw_problems(rng, problems):
    one, other = (
      draw_seeds(rng, counts, len(values))
      @ values.transpose(1, 0, 2).reshape(-1, quantities)
      / (problems * len(values))
      for values in (one_SPK, other_SPK)
    )
    means.append(one - other)
  return percentiles(np.concatenate(means))


def draw_problems(rng: np.random.Generator, problems: int) -> Iterator[np.ndarray]:
  """How often each problem is drawn, int64 [some replicates, P] at a time."""
  for _ in range(0, REPLICATES, _CHUNK):
    yield rng.multinomial(problems, np.full(problems, 1 / problems), size=_CHUNK)


def draw_seeds(rng: np.random.Generator, counts_BP: np.ndarray, seeds: int) -> np.ndarray:
  """How often each seed of each problem is drawn, problem-major: float64 [B, P * S]. A problem that
  is drawn c times has c times S seeds drawn."""
  if seeds == 1:
    return counts_BP.astype(float)
  drawn_BPS = rng.multinomial(counts_BP * seeds, np.full(seeds, 1 / seeds))
  return drawn_BPS.reshape(len(counts_BP), -1).astype(float)


def percentiles(means_BK: np.ndarray) -> np.ndarray:
  """The ends of the interval that holds the middle 95 % of the replicates: [2, K]."""
  tail = (1 - LEVEL) / 2
  return np.quantile(means_BK, [tail, 1 - tail], axis=0)
