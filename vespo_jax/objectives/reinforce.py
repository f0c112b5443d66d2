"""REINFORCE: every coefficient is 1, whatever policy sampled (Williams, 1992).

On-policy it is the unbiased gradient; off-policy it is the "no correction" baseline.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Metrics, Objective, registry
from vespo_jax.types import Array


@registry.register("reinforce")
def reinforce() -> Objective:
  """Coefficient 1 on every token. Source: Williams (1992); verl's REINFORCE policy loss."""

  def coefficients(
    log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras
  ) -> tuple[Array, Metrics]:
    del advantages_B, mask_BT, extras
    return jnp.ones_like(log_ratio_BT), {}

  return Objective("reinforce", coefficients, aggregation="seq-mean-token-sum")
