"""CISPO: REINFORCE weighted by the clipped, detached token ratio (arXiv 2506.13585).

    c_t = clip(r_t, 1 - clip_low, 1 + clip_high)

No token loses its gradient, unlike under PPO's clip.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, fraction, ratio, registry
from vespo_jax.types import Array


@registry.register("cispo")
def cispo(*, clip_low: float = 1.0, clip_high: float = 0.2) -> Objective:
  """CISPO; `clip_low` of 1 or more is no lower bound, as in the paper and in verl's example (10).

  TRL clips from above alone, at a ratio of 5 (`clip_high=4`, the value of arXiv 2510.13786).
  Source: arXiv 2506.13585 eq. 4-5; verl `compute_policy_loss_cispo`.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del advantages_B, extras
    r_BT = ratio(log_ratio_BT)
    bounded_BT = jnp.clip(r_BT, 1 - clip_low, 1 + clip_high)
    return Terms(bounded_BT, {"objective/clip_fraction": fraction(bounded_BT != r_BT, mask_BT)})

  return Objective("cispo", terms, aggregation="token-mean")
