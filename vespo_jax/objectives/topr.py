"""TOPR: tapered off-policy REINFORCE (arXiv 2503.14286).

    c = 1 where A > 0,   clip(W, 0, 1) where A < 0,      W = prod_t pi(y_t) / mu(y_t)

Good samples are imitated whatever policy they came from; bad ones are unlearned only as far as the
policy still produces them. The paper uses rewards of +-1 without a baseline.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import (
  LENGTH_NORMS,
  Extras,
  Objective,
  Terms,
  ratio,
  registry,
  sequence_log_ratio,
)
from vespo_jax.registry import check_option
from vespo_jax.types import Array


@registry.register("topr")
def topr(*, length_norm: str = "none", level: str = "sequence") -> Objective:
  """TOPR with the full sequence ratio, as published.

  Args:
    length_norm: `linear` takes W^(1/T) in its place, as in the VESPO paper's description of it.
    level: `token` takes the ratio of each token instead, as in Trinity-RFT.

  Raises ValueError for another value of either, or a norm of token ratios. Source: arXiv 2503.14286
  eq. 10, canonical bounds.
  """
  check_option("length_norm", length_norm, LENGTH_NORMS)
  check_option("level", level, ("sequence", "token"))
  if level == "token" and length_norm != "none":
    raise ValueError(f"length_norm={length_norm!r} is of level='sequence', not of token ratios")

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del extras
    if level == "token":
      r_BT = ratio(log_ratio_BT)
    else:
      r_BT = jnp.exp(sequence_log_ratio(log_ratio_BT, mask_BT, length_norm))[:, None]
    tapered_BT = jnp.where(advantages_B[:, None] < 0, jnp.minimum(r_BT, 1.0), 1.0)
    return Terms(jnp.broadcast_to(tapered_BT, mask_BT.shape), {})

  return Objective("topr", terms, aggregation="seq-mean-token-mean")
