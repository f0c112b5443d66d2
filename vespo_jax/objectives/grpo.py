"""GRPO: PPO's clipped token ratio with a group-relative advantage (arXiv 2402.03300).

Per token, with r = pi(y_t) / mu(y_t):

    L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))
    L = min(L, -A c)                                        with dual clip c > 0, where A < 0

so the coefficient is r where the clip is not active in the direction of A, and 0 where it is. The
default bounds (0.2, 0.28) are those of the VESPO paper's baseline; the original uses 0.2 on both.
Default aggregation is the original's: the mean over tokens of each sequence, then over sequences.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Metrics, Objective, ratio, registry
from vespo_jax.types import Array


@registry.register("grpo")
def grpo(*, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 0.0) -> Objective:
  """Clipped token-level policy gradient; `dual_clip` = 0 turns the dual clip off.

  Source: arXiv 2402.03300 eq. 3 (arXiv 1707.06347 eq. 7 for the clip, 1912.09729 for the dual
  clip); verl `compute_policy_loss_vanilla`.
  """

  def clipped(r_BT: Array, advantages_B: Array) -> Array:
    positive, negative = advantages_B[:, None] > 0, advantages_B[:, None] < 0
    too_low = r_BT < 1.0 - clip_low
    if dual_clip:
      too_low |= r_BT > dual_clip
    return (positive & (r_BT > 1.0 + clip_high)) | (negative & too_low)

  def coefficients(
    log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras
  ) -> tuple[Array, Metrics]:
    del extras
    r_BT = ratio(log_ratio_BT)
    clipped_BT = clipped(r_BT, advantages_B) & mask_BT
    fraction = jnp.sum(clipped_BT) / jnp.maximum(jnp.sum(mask_BT), 1)
    return jnp.where(clipped_BT, 0.0, r_BT), {"objective/clip_fraction": fraction}

  def surrogate(log_ratio_BT: Array, advantages_B: Array) -> Array:
    r_BT, a_B1 = ratio(log_ratio_BT), advantages_B[:, None]
    losses_BT = jnp.maximum(-a_B1 * r_BT, -a_B1 * jnp.clip(r_BT, 1 - clip_low, 1 + clip_high))
    if dual_clip:
      losses_BT = jnp.where(a_B1 < 0, jnp.minimum(losses_BT, -a_B1 * dual_clip), losses_BT)
    return losses_BT

  return Objective("grpo", coefficients, aggregation="seq-mean-token-mean", surrogate=surrogate)
