"""OPSM: off-policy sequence masking, of DeepSeek-V3.2 (arXiv 2512.02556), for any objective.

A sequence is left out where A < 0 and it has become unlikely under the policy:

    mean_t (log mu(y_t) - log pi(y_t)) > delta

mu being the behaviour policy also where the ratio is against the proximal one. The sequence keeps
its place in the denominator of the loss, as in the source.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, fraction, lengths, registry
from vespo_jax.objectives.grpo import grpo
from vespo_jax.types import Array


def mask_off_policy(objective: Objective, delta: float) -> Objective:
  """`objective` with off-policy sequence masking at `delta` nats per token, above 0.

  Raises ValueError otherwise.
  """
  if delta <= 0:
    raise ValueError(f"delta={delta} must be above 0")

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    inner = objective.function(log_ratio_BT, advantages_B, mask_BT, extras)
    drift_BT = extras["behaviour_logprobs"] - extras["policy_logprobs"]
    drift_B = jnp.sum(jnp.where(mask_BT, drift_BT, 0.0), axis=1) / lengths(mask_BT)
    dropped_B1 = ((advantages_B < 0) & (drift_B > delta))[:, None]
    inner.metrics["objective/opsm_fraction"] = fraction(dropped_B1, mask_BT)
    return inner.where(~dropped_B1)

  needs = ("policy_logprobs", "behaviour_logprobs")
  return dataclasses.replace(
    objective, function=terms, needs=tuple(dict.fromkeys(objective.needs + needs))
  )


@registry.register("opsm")
def opsm(
  *, delta: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 0.0
) -> Objective:
  """GRPO with off-policy sequence masking, DeepSeek-V3.2's own combination.

  The paper gives no delta; 0.5 is TRL's suggestion. For another objective set
  `objective.opsm_delta`, or use `mask_off_policy`. Source: arXiv 2512.02556 section 3.1; TRL.
  """
  inner = grpo(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
  return dataclasses.replace(mask_off_policy(inner, delta), name="opsm")
