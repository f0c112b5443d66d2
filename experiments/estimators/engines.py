"""Behaviour policies: what sampled the responses, where it is not the policy itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.estimators import policy
from experiments.estimators.tree import Tree
from vespo_jax.models import ModelSpec
from vespo_jax.types import Array, Params


def ascent(
  params: Params, spec: ModelSpec, tree: Tree, rewards_B: np.ndarray, learning_rate: float
) -> Iterator[tuple[Params, float]]:
  """Adam on the exact gradient of the expected reward: the parameters after 0, 1, 2, .. updates,
  each with their expected reward. It is the same trajectory for every objective."""
  optimizer = optax.adam(learning_rate)
  reward_and_grad = jax.value_and_grad(lambda p: policy.expected_reward(p, spec, tree, rewards_B))

  @jax.jit
  def step(params: Params, state: optax.OptState) -> tuple[Params, optax.OptState, Array]:
    reward, grads = reward_and_grad(params)
    updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state)
    return optax.apply_updates(params, updates), state, reward

  state = jax.jit(optimizer.init)(params)
  while True:
    later, state, reward = step(params, state)
    yield params, float(reward)
    params = later


def direction(params: Params, seed: int) -> Params:
  """A random direction in parameter space: standard normal numbers."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), len(leaves))
  draws = [jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(tree, draws)


def moved(params: Params, direction: Params, size: float) -> Params:
  """params + size * direction."""
  return jax.tree.map(lambda x, d: x + size * d, params, direction)


def noisy(log_probs_XV: np.ndarray, noise: float, seed: int) -> np.ndarray:
  """The policy with normal noise of standard deviation `noise` on every logit, fixed by `seed`."""
  draw_XV = np.random.default_rng((seed, 1)).normal(size=log_probs_XV.shape)
  return policy.log_softmax(log_probs_XV + noise * draw_XV)


def size_for_drift(drift: Callable[[float], float], target: float) -> float:
  """The size at which an increasing `drift(size)` reaches `target`, to 1 part in 1000.

  Bisection on a logarithmic scale from 1e-4 to 1.
  """
  low, high = 1e-4, 1.0
  while high / low > 1.001:
    middle = (low * high) ** 0.5
    low, high = (middle, high) if drift(middle) < target else (low, middle)
  return low


def _integers(bits: int) -> Callable[[Params], Params]:
  def quantise(x: Array) -> Array:
    scale = jnp.max(jnp.abs(x), axis=-2, keepdims=True) / (2 ** (bits - 1) - 1)
    return jnp.round(x / scale) * scale

  return lambda params: jax.tree_util.tree_map_with_path(
    lambda path, x: x if "norm" in jax.tree_util.keystr(path) else quantise(x), params
  )


# What a sampler may do to weights: compute in bfloat16, or hold kernels as symmetric integers with
# one scale per output channel.
ROUNDINGS: dict[str, Callable[[Params], Params]] = {
  "bfloat16": lambda params: jax.tree.map(lambda x: x.astype(jnp.bfloat16), params),
  "int8": _integers(8),
  "int4": _integers(4),
}
