"""Length-normalised sequence ratios under PPO's clip: GSPO, GSPO-token and LUSPO.

With s = (prod_t pi(y_t) / mu(y_t))^(1/T), the geometric mean of token ratios (arXiv 2507.18071):

    L_i = max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high))

whose gradient puts s A / T on every token. The bounds are far narrower than those of token ratios.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, registry, sequence_log_ratio
from vespo_jax.objectives.grpo import clipped
from vespo_jax.types import Array


@registry.register("gspo")
def gspo(*, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
  """GSPO: the mean over sequences of the clipped loss of s. Source: arXiv 2507.18071 eq. 5 and 7;
  TRL `importance_sampling_level="sequence"`."""
  return _sequence_clip("gspo", clip_low, clip_high, "seq-mean-token-mean")


@registry.register("gspo_token")
def gspo_token(*, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
  """GSPO-token, verl's implementation: sg(s) pi / sg(pi) per token, with log s at most 10.

  With one advantage for a whole sequence, as here, value and gradient are those of `gspo` but for
  that bound, beyond which there is no gradient. Source: arXiv 2507.18071 eq. 13-14; verl
  `compute_policy_loss_gspo`.
  """
  return _sequence_clip("gspo_token", clip_low, clip_high, "seq-mean-token-mean", max_log=10.0)


@registry.register("luspo")
def luspo(*, clip_low: float = 2e-3, clip_high: float = 2.5e-3) -> Objective:
  """LUSPO: GSPO's loss of every sequence times its length T. Source: arXiv 2602.05261; TRL."""
  return _sequence_clip("luspo", clip_low, clip_high, "seq-mean-token-sum")


def _sequence_clip(
  name: str, clip_low: float, clip_high: float, aggregation: str, max_log: float = jnp.inf
) -> Objective:
  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del extras
    log_s_B1 = sequence_log_ratio(log_ratio_BT, mask_BT, "linear")[:, None]
    s_BT = jnp.broadcast_to(jnp.exp(jnp.minimum(log_s_B1, max_log)), mask_BT.shape)
    terms = clipped(s_BT, advantages_B, mask_BT, 1 - clip_low, 1 + clip_high)
    return terms.constant_where(log_s_B1 > max_log)

  return Objective(name, terms, aggregation)
