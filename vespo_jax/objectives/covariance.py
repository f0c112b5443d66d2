"""Clip-Cov and KL-Cov: holding back the tokens that drive entropy down (arXiv 2505.22617).

A token's share in the loss of entropy is cov = (A - mean A) (log pi - mean log pi), means over all
tokens of the minibatch. Clip-Cov takes the gradient from a few random tokens whose cov is large;
KL-Cov penalises the few of largest cov with `coefficient |log r|`. Both start from the token ratio,
Clip-Cov under PPO's clip.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.objectives.base import (
  Extras,
  Objective,
  Terms,
  clip_log,
  fraction,
  largest,
  ratio,
  registry,
)
from vespo_jax.objectives.grpo import clipped
from vespo_jax.types import Array


@registry.register("clip_cov")
def clip_cov(
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  selected: float = 2e-4,
  cov_low: float = 1.0,
  cov_high: float = 5.0,
) -> Objective:
  """Clip-Cov: `selected` of all tokens, at least one, drawn from those with cov within
  (cov_low, cov_high) that PPO's clip left alone, get no gradient.

  `selected=0` draws none. The draw is a hash of the token's own numbers, so that it depends on
  neither key, order nor micro-batching. Source: arXiv 2505.22617 eq. 12; verl
  `compute_policy_loss_clip_cov`, where the draw is torch's.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    logprobs_BT = extras["policy_logprobs"]
    terms = clipped(ratio(log_ratio_BT), advantages_B, mask_BT, 1 - clip_low, 1 + clip_high)
    # as in the source: wherever the clipped loss is the larger one
    r_BT, a_B1 = ratio(log_ratio_BT), advantages_B[:, None]
    by_clip_BT = -a_B1 * jnp.clip(r_BT, 1 - clip_low, 1 + clip_high) > -a_B1 * r_BT
    cov_BT = _covariance(logprobs_BT, advantages_B, mask_BT)
    eligible_BT = mask_BT & ~by_clip_BT & (cov_BT > cov_low) & (cov_BT < cov_high)
    wanted = _count(selected, mask_BT)
    order_BT = _hash(logprobs_BT, log_ratio_BT, jnp.broadcast_to(a_B1, mask_BT.shape))
    drawn_BT = largest(jnp.where(eligible_BT, order_BT, -1.0), wanted) & eligible_BT
    terms.metrics["objective/selected_fraction"] = fraction(drawn_BT, mask_BT)
    return terms.where(~drawn_BT)

  return Objective(
    "clip_cov", terms, aggregation="token-mean", batch_wide=True, needs=("policy_logprobs",)
  )


@registry.register("kl_cov")
def kl_cov(*, selected: float = 2e-4, coefficient: float = 1.0) -> Objective:
  """KL-Cov: L = -A r, with `coefficient |log r|` added on the `selected` of all tokens, at least
  one, whose cov is largest; `selected=0` adds it on none.

  Source: arXiv 2505.22617 eq. 13; verl `compute_policy_loss_kl_cov`.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    cov_BT = _covariance(extras["policy_logprobs"], advantages_B, mask_BT)
    chosen_BT = largest(jnp.where(mask_BT, cov_BT, -jnp.inf), _count(selected, mask_BT)) & mask_BT
    r_BT = ratio(log_ratio_BT)
    log_r_BT, penalised = clip_log(log_ratio_BT), jnp.where(chosen_BT, coefficient, 0.0)
    return Terms(
      r_BT,
      {"objective/selected_fraction": fraction(chosen_BT, mask_BT)},
      losses_BT=-advantages_B[:, None] * r_BT + penalised * jnp.abs(log_r_BT),
      penalty_BT=penalised * jnp.sign(log_r_BT),
    )

  return Objective(
    "kl_cov", terms, aggregation="token-mean", batch_wide=True, needs=("policy_logprobs",)
  )


def _covariance(logprobs_BT: Array, advantages_B: Array, mask_BT: Array) -> Array:
  tokens = jnp.maximum(jnp.sum(mask_BT, dtype=jnp.float32), 1.0)
  a_BT = jnp.broadcast_to(advantages_B[:, None], mask_BT.shape)
  mean_a = jnp.sum(jnp.where(mask_BT, a_BT, 0.0)) / tokens
  mean_logprob = jnp.sum(jnp.where(mask_BT, logprobs_BT, 0.0)) / tokens
  return (a_BT - mean_a) * (logprobs_BT - mean_logprob)


def _count(selected: float, mask_BT: Array) -> Array:
  """How many tokens a fraction is: rounded down, at least one, none of 0."""
  tokens = jnp.sum(mask_BT, dtype=jnp.float32)
  return jnp.maximum(jnp.floor(selected * tokens), 1.0) * (selected > 0)


def _hash(*numbers_BT: Array) -> Array:
  """A uniform number in [0, 1) from the bits of float32 numbers (murmur3's finaliser)."""
  state = jnp.uint32(0x9E3779B9)
  for x_BT in numbers_BT:
    state ^= jax.lax.bitcast_convert_type(x_BT.astype(jnp.float32), jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
      state = (state ^ (state >> shift)) * jnp.uint32(factor)
    state ^= state >> 16
  return (state >> 8).astype(jnp.float32) / (1 << 24)
