"""Rewards of a group -> advantages. Pure functions of arrays, registered by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import chex
import jax.numpy as jnp

from vespo_jax.registry import Registry
from vespo_jax.types import Array

registry = Registry("advantage")
names, defaults = registry.names, registry.defaults


@dataclasses.dataclass(frozen=True)
class Advantage:
  """One estimator: `(rewards_PR, valid_PR) -> (advantages_PR, zero_variance_P)`."""

  name: str
  function: Callable[[Array, Array], tuple[Array, Array]]

  def __call__(self, rewards_PR: Array, valid_PR: Array) -> tuple[Array, Array]:
    """Advantages of every sample and a flag per group.

    Args:
      rewards_PR: float rewards, one row per prompt.
      valid_PR: bool; samples that are False are left out of every statistic and get 0.

    Returns:
      `advantages_PR` float32, and `zero_variance_P` bool, True where all valid rewards of a group
      of two or more are equal: such a group carries no signal and its advantages are exactly 0.
    """
    chex.assert_rank([rewards_PR, valid_PR], 2)
    chex.assert_equal_shape([rewards_PR, valid_PR])
    chex.assert_type(valid_PR, bool)
    return self.function(rewards_PR.astype(jnp.float32), valid_PR)


def make(name: str, **kwargs: float | bool) -> Advantage:
  """The estimator registered as `name`. Raises ValueError naming the known names and options."""
  return registry.make(name, **kwargs)


@registry.register("grpo")
def grpo(*, normalize_std: bool = True, epsilon: float = 1e-6) -> Advantage:
  """(R - mean) / (std + epsilon) within the group, std with Bessel's correction (ddof = 1).

  `normalize_std=False` gives R - mean (Dr.GRPO). A group of one valid sample has mean 0 and std 1,
  as in verl. Source: arXiv 2402.03300 section 4.1.2; verl `compute_grpo_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array) -> tuple[Array, Array]:
    n_P1 = jnp.sum(valid_PR, axis=1, keepdims=True, dtype=jnp.float32)
    rewards_PR = jnp.where(valid_PR, rewards_PR, 0.0)
    mean_P1 = jnp.sum(rewards_PR, axis=1, keepdims=True) / jnp.maximum(n_P1, 1.0)
    centred_PR = jnp.where(valid_PR, rewards_PR - jnp.where(n_P1 > 1, mean_P1, 0.0), 0.0)
    advantages_PR = centred_PR
    if normalize_std:
      squares_P1 = jnp.sum(centred_PR**2, axis=1, keepdims=True)
      std_P1 = jnp.sqrt(squares_P1 / jnp.maximum(n_P1 - 1.0, 1.0))
      advantages_PR = centred_PR / (jnp.where(n_P1 > 1, std_P1, 1.0) + epsilon)
    return _zero_if_constant(advantages_PR, rewards_PR, valid_PR)

  return Advantage("grpo", function)


def _zero_if_constant(
  advantages_PR: Array, rewards_PR: Array, valid_PR: Array
) -> tuple[Array, Array]:
  low_P = jnp.min(jnp.where(valid_PR, rewards_PR, jnp.inf), axis=1)
  high_P = jnp.max(jnp.where(valid_PR, rewards_PR, -jnp.inf), axis=1)
  zero_variance_P = (low_P >= high_P) & (jnp.sum(valid_PR, axis=1) > 1)
  return jnp.where(zero_variance_P[:, None], 0.0, advantages_PR), zero_variance_P
