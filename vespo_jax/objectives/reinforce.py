"""REINFORCE: every coefficient is 1, whatever policy sampled (Williams, 1992).

On-policy it is the unbiased gradient; off-policy it is the "no correction" baseline.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, registry
from vespo_jax.types import Array


@registry.register("reinforce")
def reinforce() -> Objective:
  """Coefficient 1 on every token. Source: Williams (1992); verl's REINFORCE policy loss."""

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del advantages_B, mask_BT, extras
    return Terms(jnp.ones_like(log_ratio_BT), {})

  return Objective("reinforce", terms, aggregation="seq-mean-token-sum", has_ratio=False)
