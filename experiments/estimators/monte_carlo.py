"""Moments of an estimator from sampled batches, with standard errors, where sums cannot be exact.

Batches are drawn from the behaviour policy once per setting and shared by all estimators. Standard
errors are the jackknife's over blocks of batches, which serves ratios of moments too.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from experiments.estimators.estimates import Moments, Setting
from experiments.estimators.exact import row_factors
from vespo_jax import objectives
from vespo_jax.advantages import Advantage
from vespo_jax.objectives import Objective
from vespo_jax.types import Array

BLOCKS = 20


@dataclasses.dataclass(frozen=True)
class Batches:
  """J batches of R responses as rows of the tree, and the advantage of each."""

  rows_JR: np.ndarray
  advantages_JR: np.ndarray


def draw(setting: Setting, batches: int, batch_size: int, seed: int) -> Batches:
  """Independent responses of the behaviour policy, with the advantage R - E_mu[R].

  `batches` is a multiple of `BLOCKS`.
  """
  cumulative_B = np.cumsum(setting.probabilities_B)
  uniform_JR = np.random.default_rng((seed, 2)).random((batches, batch_size)) * cumulative_B[-1]
  rows_JR = np.searchsorted(cumulative_B, uniform_JR, side="right")
  return Batches(rows_JR, setting.advantages_B[rows_JR])


def in_groups(
  batches: Batches, rewards_B: np.ndarray, advantage: Advantage, group_size: int
) -> Batches:
  """The same batches with the advantages of groups of `group_size` neighbours."""
  J, R = batches.rows_JR.shape
  rewards = rewards_B[batches.rows_JR].reshape(J, R // group_size, group_size)
  valid = np.ones(rewards.shape, bool)
  advantages, _ = jax.vmap(lambda r, v: advantage(r, v))(rewards.astype(np.float32), valid)
  return Batches(batches.rows_JR, np.asarray(advantages).reshape(J, R))


def token_weights(objective: Objective, setting: Setting, batches: Batches) -> np.ndarray:
  """[J, R, T] float32: as `exact.token_weights`, but of batches, as the learner would see them."""
  target, rows = setting.target, batches.rows_JR
  return np.asarray(
    _token_weights(
      objective,
      target.logprobs_BT[rows].astype(np.float32),
      setting.behaviour_BT[rows].astype(np.float32),
      batches.advantages_JR.astype(np.float32),
      target.tree.mask_BT[rows],
    )
  )


@functools.partial(jax.jit, static_argnums=0)
def _token_weights(
  objective: Objective,
  policy_JRT: Array,
  behaviour_JRT: Array,
  advantages_JR: Array,
  mask_JRT: Array,
) -> Array:
  def one(policy_RT: Array, behaviour_RT: Array, advantages_R: Array, mask_RT: Array) -> Array:
    weights, _ = objectives.token_weights(
      objective,
      policy_logprobs=policy_RT,
      behaviour_logprobs=behaviour_RT,
      advantages=advantages_R,
      mask=mask_RT,
    )
    return weights.weights

  return jax.vmap(one)(policy_JRT, behaviour_JRT, advantages_JR, mask_JRT)


def numbers(
  setting: Setting, batches: Batches, weights_JRT: np.ndarray, aggregation: str
) -> dict[str, float]:
  """`Moments.numbers` of the batches' estimator, each with its standard error as `NAME_se`."""
  target, tree = setting.target, setting.target.tree
  factors_BT, counts_B = row_factors(tree, aggregation)
  counts_J = counts_B[batches.rows_JR].sum(axis=1)
  weights_JRT = weights_JRT * factors_BT[batches.rows_JR] / counts_J[:, None, None]

  J, Y = len(batches.rows_JR), len(target.scores_YZ)
  cells = tree.edges_BT[batches.rows_JR] + Y * np.arange(J)[:, None, None]
  edges_JY = np.bincount(cells.ravel(), weights=weights_JRT.ravel(), minlength=J * Y)
  estimates_JZ = edges_JY.reshape(J, Y).astype(np.float32) @ target.scores32_YZ

  means_Z = estimates_JZ.reshape(BLOCKS, -1, estimates_JZ.shape[1]).mean(axis=1, dtype=np.float64)
  squares = np.sum(estimates_JZ**2, axis=1, dtype=np.float64).reshape(BLOCKS, -1).mean(axis=1)
  dots, gram = means_Z @ target.gradient_Z, means_Z @ means_Z.T
  true_square = float(target.gradient_Z @ target.gradient_Z)

  def of(blocks: np.ndarray) -> dict[str, float]:
    k, part = len(blocks), gram[np.ix_(blocks, blocks)]
    mean_square = (part.sum() - np.trace(part)) / (k * (k - 1))  # unbiased: blocks are independent
    dot = dots[blocks].mean()
    bias_square = mean_square - 2 * dot + true_square
    return Moments(dot, mean_square, bias_square, squares[blocks].mean(), true_square).numbers()

  everything = np.arange(BLOCKS)
  without = [of(np.delete(everything, block)) for block in everything]
  result = of(everything)
  for key in list(result):
    values = np.array([numbers[key] for numbers in without])
    spread = np.sum((values - values.mean()) ** 2)
    result[f"{key}_se"] = float(np.sqrt((BLOCKS - 1) / BLOCKS * spread))
  return result
