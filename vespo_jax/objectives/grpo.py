"""PPO's clipped token ratio: GRPO (arXiv 2402.03300), Dr.GRPO (2503.20783) and DAPO (2503.14476).

Per token, with r = pi(y_t) / mu(y_t):

    L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))
    L = min(L, -A c)                                        with dual clip c > 0, where A < 0

so the coefficient is r where the clip is not active in the direction of A, and 0 where it is, and
where log r is beyond the +-20 that verl holds it to inside the loss. The three differ in their
bounds and in how token losses are averaged: over each sequence and then over sequences (GRPO), over
a constant width (Dr.GRPO), over all tokens (DAPO). verl turns the dual clip on for every method
(c = 3); the papers of GRPO and Dr.GRPO have none.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import (
  Extras,
  Objective,
  Terms,
  fraction,
  out_of_bounds,
  ratio,
  registry,
)
from vespo_jax.types import Array


@registry.register("grpo")
def grpo(*, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 0.0) -> Objective:
  """Clipped token-level policy gradient; `dual_clip` = 0 turns the dual clip off.

  The default bounds are those of the VESPO paper's baseline; the original uses 0.2 on both sides.
  Source: arXiv 2402.03300 eq. 3 (arXiv 1707.06347 eq. 7 for the clip, 1912.09729 for the dual
  clip); verl `compute_policy_loss_vanilla`.
  """
  return _token_clip("grpo", clip_low, clip_high, dual_clip, "seq-mean-token-mean")


@registry.register("dr_grpo")
def dr_grpo(*, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 0.0) -> Objective:
  """GRPO without its length bias: token losses over a constant. Source: arXiv 2503.20783 eq. 3.

  Its other half, advantages without the division by the standard deviation, is
  `advantage.name = "dr_grpo"`.
  """
  return _token_clip("dr_grpo", clip_low, clip_high, dual_clip, "seq-mean-token-sum-norm")


@registry.register("dapo")
def dapo(*, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 10.0) -> Objective:
  """DAPO's clip-higher with a token mean. Source: arXiv 2503.14476 eq. 8; verl's DAPO recipe.

  Its dynamic sampling and overlong reward shaping belong to the data.
  """
  return _token_clip("dapo", clip_low, clip_high, dual_clip, "token-mean")


def clipped(
  r_BT: Array,
  advantages_B: Array,
  mask_BT: Array,
  low: Array | float,
  high: Array | float,
  dual_clip: float = 0.0,
) -> Terms:
  """PPO's terms for ratios `r_BT` with the bounds [low, high]: ratios, not epsilons."""
  a_B1 = advantages_B[:, None]
  too_low_BT = r_BT < low
  losses_BT = jnp.maximum(-a_B1 * r_BT, -a_B1 * jnp.clip(r_BT, low, high))
  if dual_clip:
    too_low_BT |= r_BT > dual_clip
    losses_BT = jnp.where(a_B1 < 0, jnp.minimum(losses_BT, -a_B1 * dual_clip), losses_BT)
  clipped_BT = ((a_B1 > 0) & (r_BT > high)) | ((a_B1 < 0) & too_low_BT)
  metrics = {"objective/clip_fraction": fraction(clipped_BT, mask_BT)}
  return Terms(jnp.where(clipped_BT, 0.0, r_BT), metrics, losses_BT)


def _token_clip(
  name: str, clip_low: float, clip_high: float, dual_clip: float, aggregation: str
) -> Objective:
  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del extras
    r_BT = ratio(log_ratio_BT)
    terms = clipped(r_BT, advantages_B, mask_BT, 1 - clip_low, 1 + clip_high, dual_clip)
    return terms.constant_where(out_of_bounds(log_ratio_BT))

  return Objective(name, terms, aggregation)
