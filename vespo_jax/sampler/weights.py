"""Weights as a sampler holds them: its own compute type, and noise in a known dose."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.models import quantize
from vespo_jax.types import Array, Params

_NOISE_SEED = 0x6E6F6973


def prepare(params: Params, version: int, dtype: str, noise: float) -> Params:
  """The weights that sample: `params` with noise of relative size `noise`, then as `quantize.cast`
  has them in type `dtype`.

  Without noise, float32 weights are returned as they are, not one bit different.
  """
  if noise:
    params = perturb(params, version, noise)
  return quantize.cast(params, dtype)


@jax.jit
def perturb(params: Params, version: Array | int, noise: Array | float) -> Params:
  """Every array plus `noise` times its root mean square times standard normal numbers.

  They depend on the version and the array's place in the tree alone: every worker, and every run,
  has the same mismatch.
  """
  leaves, tree = jax.tree.flatten(params)
  key = jax.random.fold_in(jax.random.key(_NOISE_SEED), version)
  noisy = [
    leaf + noise * jnp.sqrt(jnp.mean(leaf**2)) * jax.random.normal(k, leaf.shape, leaf.dtype)
    for leaf, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
  ]
  return jax.tree.unflatten(tree, noisy)
