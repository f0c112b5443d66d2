"""MinPRO: the least prefix ratio in place of their product (arXiv 2601.22718).

The exact off-policy gradient weighs token t by the product of all ratios up to it. MinPRO keeps the
token's own ratio and the smallest one before it, and clips:

    c_t = clip(min_{i < t} r_i * r_t, 1 - clip_low, 1 + clip_high),      an empty minimum being 1
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, clip_log, fraction, ratio, registry
from vespo_jax.types import Array


@registry.register("minpro")
def minpro(
  *, clip_low: float = 1.0, clip_high: float = 0.28, cap_prefix: bool = False
) -> Objective:
  """MinPRO.

  Args:
    clip_low, clip_high: epsilons of the clip. The paper's values were not found in any source;
      these are ours: no lower bound, and the upper one of clip-higher.
    cap_prefix: take min(1, .) of the prefix, which the formula does not state.

  There is no official code. Source: arXiv 2601.22718.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del advantages_B, extras
    log_ratio_BT = clip_log(log_ratio_BT)  # finite: an infinite minimum below is an empty one
    running_BT = jax.lax.cummin(jnp.where(mask_BT, log_ratio_BT, jnp.inf), axis=1)
    before_BT = jnp.pad(running_BT[:, :-1], [(0, 0), (1, 0)], constant_values=jnp.inf)
    prefix_BT = jnp.where(jnp.isinf(before_BT), 0.0, before_BT)
    prefix_BT = jnp.minimum(prefix_BT, 0.0) if cap_prefix else prefix_BT
    raw_BT = ratio(prefix_BT + log_ratio_BT)
    bounded_BT = jnp.clip(raw_BT, 1 - clip_low, 1 + clip_high)
    return Terms(bounded_BT, {"objective/clip_fraction": fraction(bounded_BT != raw_BT, mask_BT)})

  return Objective("minpro", terms, aggregation="token-mean")
