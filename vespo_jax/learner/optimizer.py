"""AdamW with global-norm clipping, a linear warm-up and, if wanted, a cosine decay."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from vespo_jax.types import Params


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """Settings of the optimizer.

  Attributes:
    learning_rate: the rate after the warm-up.
    warmup_updates: updates over which the rate rises linearly from 0; the first update already has
      1 / warmup_updates of it.
    decay: `none`, the rate is constant from then on; `cosine`, it falls as half a cosine to 0 where
      the run ends (arXiv 1608.03983, without restarts).
    beta1, beta2, epsilon: Adam's moments (arXiv 1412.6980).
    weight_decay: decoupled (arXiv 1711.05101), on matrices only.
    max_grad_norm: gradients are scaled down to this global norm; 0 is off.
    momentum_dtype: `float32` or `bfloat16`, what Adam's mean of gradients is kept in between
      updates; it is computed in float32. The mean of squares stays float32: with `beta2` near 1, an
      update moves it by less than bfloat16 can tell.
  """

  learning_rate: float
  warmup_updates: int = 0
  decay: str = "none"
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0
  momentum_dtype: str = "float32"


DECAYS = ("none", "cosine")


def schedule(settings: OptimizerSettings, updates: int = 0) -> optax.Schedule:
  """Learning rate as a function of the number of updates already made, of `updates` in all."""
  falling = max(updates - settings.warmup_updates, 1)

  def rate(count: jax.typing.ArrayLike) -> jax.Array:
    warmed = (jnp.asarray(count) + 1) / max(settings.warmup_updates, 1)
    rate = settings.learning_rate * jnp.minimum(1.0, warmed)
    if settings.decay == "none":
      return rate
    fallen = jnp.clip((jnp.asarray(count) - settings.warmup_updates) / falling, 0.0, 1.0)
    return rate * 0.5 * (1.0 + jnp.cos(jnp.pi * fallen))

  return rate


def make_optimizer(settings: OptimizerSettings, updates: int = 0) -> optax.GradientTransformation:
  """The optax chain: clip by global norm, then AdamW with the schedule of a run of `updates`."""
  clip = optax.clip_by_global_norm(settings.max_grad_norm)
  adamw = optax.adamw(
    schedule(settings, updates),
    b1=settings.beta1,
    b2=settings.beta2,
    eps=settings.epsilon,
    weight_decay=settings.weight_decay,
    mask=_matrices,
    mu_dtype=settings.momentum_dtype,
  )
  return optax.chain(clip if settings.max_grad_norm else optax.identity(), adamw)


def _matrices(params: Params) -> Params:
  def decays(path: tuple, leaf: jax.Array) -> bool:
    stacked = path[0].key == "layers"
    return leaf.ndim - stacked >= 2

  return jax.tree_util.tree_map_with_path(decays, params)
