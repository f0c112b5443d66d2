"""Bootstrap intervals against the distributions that they draw from."""

import numpy as np
import pytest
from scipy import stats

from vespo_jax.evaluation import bootstrap


def test_of_right_and_wrong_problems_it_is_binomial():
  """A replicate of P problems, a share p of them right, has Binomial(P, p) right ones. The ends are
  quantiles of 10,000 of these: 0.5 points of probability are three standard errors."""
  P, right = 200, 56
  low, high = bootstrap.intervals((np.arange(P) < right)[None, :, None].astype(float))[:, 0]
  draws = stats.binom(P, right / P)
  assert draws.ppf(0.020) <= P * low <= draws.ppf(0.030)
  assert draws.ppf(0.970) <= P * high <= draws.ppf(0.980)


def test_over_seeds_too_it_is_normal_with_the_variance_of_both():
  """Drawing a problem and then S of its seeds has variance Var(means) + mean(Var(seeds)) / S. With
  10,000 replicates of 300 problems, 3 % of the width is two standard errors."""
  S, P = 3, 300
  rng = np.random.default_rng(1)
  values_SP = rng.normal(size=P) + 1.5 * rng.normal(size=(S, P))
  variance = values_SP.mean(axis=0).var() + values_SP.var(axis=0).mean() / S
  half = 1.959964 * np.sqrt(variance / P)
  low, high = bootstrap.intervals(values_SP[..., None])[:, 0]
  assert (high - low) / 2 == pytest.approx(half, rel=0.03)
  assert (high + low) / 2 == pytest.approx(values_SP.mean(), abs=0.05 * half)


def test_a_difference_is_taken_on_the_same_problems():
  rng = np.random.default_rng(2)
  hard_P = rng.normal(size=200)  # what both find hard cancels
  one, other = (hard_P + 0.1 * rng.normal(size=200) for _ in range(2))
  found = bootstrap.difference_intervals(one[None, :, None], other[None, :, None])
  np.testing.assert_allclose(found, bootstrap.intervals((one - other)[None, :, None]), atol=1e-12)


def test_a_difference_has_the_noise_of_the_seeds_of_both():
  rng = np.random.default_rng(3)
  one, other = rng.normal(size=(2, 100)), rng.normal(size=(4, 100))
  variance = (one.mean(axis=0) - other.mean(axis=0)).var()
  variance += one.var(axis=0).mean() / 2 + other.var(axis=0).mean() / 4
  low, high = bootstrap.difference_intervals(one[..., None], other[..., None])[:, 0]
  assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance / 100), rel=0.03)


def test_it_is_the_same_every_time_and_each_quantity_has_its_own():
  values_SPK = np.random.default_rng(4).random((2, 30, 3))
  found = bootstrap.intervals(values_SPK)
  np.testing.assert_array_equal(found, bootstrap.intervals(values_SPK))
  np.testing.assert_allclose(found[:, 1:2], bootstrap.intervals(values_SPK[..., 1:2]))
  assert (found[0] < values_SPK.mean(axis=(0, 1))).all()


@pytest.mark.slow
@pytest.mark.parametrize("seeds, evaluations, most", [(1, 600, 0.977), (3, 150, 1.0)])
def test_it_holds_the_truth_19_times_in_20(seeds, evaluations, most):
  """Problems of chance Beta(2, 2), each sampled 4 times per seed; the truth is 1/2. It is in 95 %
  of the intervals of 100 problems, within 3 standard errors; with several seeds in more."""
  rng = np.random.default_rng(5)
  held = 0
  for _ in range(evaluations):
    chance_P = rng.beta(2, 2, size=100)
    values_SP = rng.binomial(4, chance_P, size=(seeds, 100)) / 4
    low, high = bootstrap.intervals(values_SP[..., None])[:, 0]
    held += low <= 0.5 <= high
  standard_error = np.sqrt(0.95 * 0.05 / evaluations)
  assert 0.95 - 3 * standard_error <= held / evaluations <= most
