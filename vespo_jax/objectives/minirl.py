"""MiniRL: token importance sampling under PPO's mask (arXiv 2512.01374).

    c_t = M_t min(pi / mu, ratio_cap),   M_t = 0 where A > 0 and pi / pi_prox > 1 + clip_high, or
                                         A < 0 and pi / pi_prox < 1 - clip_low

The weight is against the behaviour policy, the mask against the proximal one. It therefore wants a
proximal policy (`correction.denominator = "proximal"`) and takes no further correction; without
one the mask is on pi / mu too.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, fraction, ratio, registry
from vespo_jax.types import Array


@registry.register("minirl")
def minirl(*, clip_low: float = 0.2, clip_high: float = 0.27, ratio_cap: float = 5.0) -> Objective:
  """MiniRL; `ratio_cap` = 0 is none. Advantages are R - mean (`advantage.name = "dr_grpo"`).

  Token losses are summed, not averaged over the sequence. There is no official code.
  Source: arXiv 2512.01374; arXiv 2602.04879 appendix C.1 for the anchors, E for the bounds.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    a_B1, r_BT = advantages_B[:, None], ratio(log_ratio_BT)
    masked_BT = ((a_B1 > 0) & (r_BT > 1 + clip_high)) | ((a_B1 < 0) & (r_BT < 1 - clip_low))
    weight_BT = ratio(extras["policy_logprobs"] - extras["behaviour_logprobs"])
    weight_BT = jnp.minimum(weight_BT, ratio_cap) if ratio_cap else weight_BT
    metrics = {"objective/clip_fraction": fraction(masked_BT, mask_BT)}
    return Terms(jnp.where(masked_BT, 0.0, weight_BT), metrics)

  return Objective(
    "minirl",
    terms,
    aggregation="seq-mean-token-sum",
    correction="refuse",
    needs=("policy_logprobs", "behaviour_logprobs"),
  )
