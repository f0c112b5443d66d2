"""SAPO: a soft gate in place of the clip (arXiv 2511.20347).

    L = -A (4 / tau) sigmoid(tau (r - 1)),    tau = tau_pos where A > 0, tau_neg elsewhere

so the coefficient is 4 p (1 - p) r with p = sigmoid(tau (r - 1)): 1 on-policy, and falling off on
both sides.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, out_of_bounds, ratio, registry
from vespo_jax.types import Array


@registry.register("sapo")
def sapo(*, tau_pos: float = 1.0, tau_neg: float = 1.05) -> Objective:
  """SAPO, with temperatures above 0. Source: arXiv 2511.20347 eq. 5-7; verl
  `compute_policy_loss_sapo`; TRL `loss_type="sapo"`."""

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del mask_BT, extras
    a_B1, r_BT = advantages_B[:, None], ratio(log_ratio_BT)
    tau_B1 = jnp.where(a_B1 > 0, tau_pos, tau_neg)
    gate_BT = jax.nn.sigmoid(tau_B1 * (r_BT - 1))
    slope_BT = 4 * gate_BT * jax.nn.sigmoid(-tau_B1 * (r_BT - 1))  # 1 - p without cancellation
    terms = Terms(slope_BT * r_BT, {}, -a_B1 * (4 / tau_B1) * gate_BT)
    return terms.constant_where(out_of_bounds(log_ratio_BT))

  return Objective("sapo", terms, aggregation="seq-mean-token-mean")
