"""GMPO: the geometric mean of token ratios, clipped token by token (arXiv 2507.20673).

    R = exp(mean_t lc_t),   lc_t = log r_t held to at most clip_high where A > 0 and to at least
                            -clip_low where A < 0,                       L_i = -A R

A clipped token has no gradient, but its bound stays in R.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, fraction, lengths, ratio, registry
from vespo_jax.types import Array


@registry.register("gmpo")
def gmpo(*, clip_low: float = 0.4, clip_high: float = 0.4) -> Objective:
  """GMPO; the bounds are on the log ratio. Source: arXiv 2507.20673 eq. 4; verl `geo_mean`.

  Here the mean of the log ratios is held to +-20, which the sources do not do.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del extras
    a_B1 = advantages_B[:, None]
    clipped_BT = ((a_B1 > 0) & (log_ratio_BT > clip_high)) | (
      (a_B1 < 0) & (log_ratio_BT < -clip_low)
    )
    bounded_BT = jnp.where(
      clipped_BT, jnp.where(a_B1 > 0, clip_high, -clip_low), jnp.where(mask_BT, log_ratio_BT, 0.0)
    )
    mean_B = jnp.sum(jnp.where(mask_BT, bounded_BT, 0.0), axis=1) / lengths(mask_BT)
    r_BT = jnp.broadcast_to(ratio(mean_B)[:, None], mask_BT.shape)
    metrics = {"objective/clip_fraction": fraction(clipped_BT, mask_BT)}
    return Terms(jnp.where(clipped_BT, 0.0, r_BT), metrics, -a_B1 * r_BT)

  return Objective("gmpo", terms, aggregation="seq-mean-token-mean")
