"""Moments of an estimator by enumeration, where a coefficient depends on its own sequence alone.

The estimator of a batch of n sequences is `sum_i f_i / sum_i c_i`: f_i is the weighted score of a
sequence and c_i its share of the denominator (1 where sequences are averaged, its length where
tokens are). Given the distribution of the others' counts, which is a convolution, both E g^ and
E |g^|^2 are finite sums over all responses and over pairs of counts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.estimators.estimates import Moments, Setting, on_edges
from experiments.estimators.tree import Tree
from vespo_jax import objectives
from vespo_jax.objectives import Objective
from vespo_jax.types import Array


def token_weights(objective: Objective, setting: Setting) -> np.ndarray:
  """[B, T] float64: the objective's own w_t, of g^ ~ sum_t w_t grad log pi(y_t), for every response
  with the advantage R - E_mu[R]."""
  with jax.enable_x64(True):
    return np.asarray(
      _token_weights(
        objective,
        jnp.asarray(setting.target.logprobs_BT),
        jnp.asarray(setting.behaviour_BT),
        jnp.asarray(setting.advantages_B),
        jnp.asarray(setting.target.tree.mask_BT),
      )
    )


@functools.partial(jax.jit, static_argnums=0)
def _token_weights(
  objective: Objective, policy_BT: Array, behaviour_BT: Array, advantages_B: Array, mask_BT: Array
) -> Array:
  weights, _ = objectives.token_weights(
    objective,
    policy_logprobs=policy_BT,
    behaviour_logprobs=behaviour_BT,
    advantages=advantages_B,
    mask=mask_BT,
  )
  return weights.weights


@functools.lru_cache
def row_factors(tree: Tree, aggregation: str) -> tuple[np.ndarray, np.ndarray]:
  """What an aggregation makes of the responses, row by row.

  Returns:
    factors_BT, on the weight of each token, and counts_B, each row's share of the denominator; both
    float64. Raises ValueError if the denominator is not the sum of its rows'.
  """
  with jax.enable_x64(True):
    mask = jnp.asarray(tree.mask_BT)
    numerator = lambda values_BT: objectives.aggregate(values_BT, mask, aggregation)[0]
    factors_BT = jax.grad(numerator)(jnp.zeros(mask.shape))
    counts_B = jax.vmap(lambda row_T: objectives.count(row_T[None], aggregation))(mask)
    if float(objectives.count(mask, aggregation)) != float(counts_B.sum()):
      raise ValueError(f"the denominator of {aggregation!r} is not the sum over its rows")
    return np.asarray(factors_BT), np.asarray(counts_B, np.float64)


def moments(
  setting: Setting, weights_BT: np.ndarray, aggregation: str, batch_sizes: Sequence[int]
) -> list[Moments]:
  """The exact moments of a batch's estimator, for each of some batch sizes.

  Args:
    setting: the behaviour policy that draws the batch, and the target.
    weights_BT: from `token_weights`.
    aggregation: one of `objectives.AGGREGATIONS`.
    batch_sizes: n, each at least 1.
  """
  target, mu_B = setting.target, setting.probabilities_B
  factors_BT, counts_B = row_factors(target.tree, aggregation)
  weights_BT = weights_BT * factors_BT
  squares_B = np.einsum("BT,BTS,BS->B", weights_BT, target.gram_BTT, weights_BT)
  counts_C, kind_B = np.unique(counts_B.astype(int), return_inverse=True)
  step = np.gcd.reduce(counts_C)  # counts are multiples of it: a constant becomes 1
  units_C = counts_C // step
  pmf = np.bincount(units_C[kind_B], weights=mu_B)
  edges_CY = np.stack(
    [
      on_edges(target.tree, (mu_B * (kind_B == c))[:, None] * weights_BT)
      for c in range(len(units_C))
    ]
  )
  sums_CZ = edges_CY @ target.scores_YZ / step  # E_mu[f], by count
  gram_CC, squares_C = sums_CZ @ sums_CZ.T, np.bincount(kind_B, mu_B * squares_B) / step**2
  gradient_Z = target.gradient_Z

  def of(n: int) -> Moments:
    mean_Z = n * _expected(pmf, 1, n - 1, units_C) @ sums_CZ
    second = n * squares_C @ _expected(pmf, 2, n - 1, units_C)
    if n > 1:
      pairs_CC = _expected(pmf, 2, n - 2, units_C[:, None] + units_C)
      second += n * (n - 1) * np.sum(pairs_CC * gram_CC)
    return Moments(
      dot=float(gradient_Z @ mean_Z),
      mean_square=float(mean_Z @ mean_Z),
      bias_square=float(np.sum((mean_Z - gradient_Z) ** 2)),
      second=float(second),
      true_square=float(gradient_Z @ gradient_Z),
    )

  return [of(n) for n in batch_sizes]


def _expected(pmf: np.ndarray, power: int, others: int, own: np.ndarray) -> np.ndarray:
  """E[(own + the counts of `others` independent draws) ** -power], elementwise in `own`."""
  rest = functools.reduce(np.convolve, [pmf] * others, np.ones(1))
  return (rest / (own[..., None] + np.arange(len(rest))) ** float(power)).sum(axis=-1)
