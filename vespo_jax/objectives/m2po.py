"""M2PO: a clip whose bounds keep the second moment of log ratios in a budget (arXiv 2510.01161).

Two different methods go by the name. `m2po` is the official code's: of the tokens that leave the
trust region in the direction of their advantage (A > 0 and r > 1, or A < 0 and r < 1) it caps
|log r| at the largest tau that keeps the mean of their squares within the budget, widens the bounds
exp(-tau), exp(tau) to at least a floor, and clips as PPO does. `m2po_mask` is AReaL's: it drops the
tokens of largest mismatch between behaviour and proximal policy until the rest is within a
threshold, then clips as PPO does. Statistics are of the global minibatch; the official code takes
those of every micro-batch.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import (
  Extras,
  Objective,
  Terms,
  clip_log,
  fraction,
  largest,
  ratio,
  registry,
)
from vespo_jax.objectives.grpo import clipped
from vespo_jax.types import Array

_UNBOUNDED = 1e5  # the official code's upper bound where nothing needs clipping


@registry.register("m2po")
def m2po(*, budget: float = 0.04, clip_low: float = 0.3, clip_high: float = 0.5) -> Objective:
  """M2PO, official form.

  Args:
    budget: of the mean squared log ratio of trust-region tokens.
    clip_low, clip_high: the floor, as epsilons: bounds are never narrower.

  tau is the official code's grid solution, the largest squared log ratio that fits, less 1e-12.
  Source: arXiv 2510.01161; Infini-AI-Lab/M2PO core_algos.py `kpo_clip_harmful_tokens`.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del extras
    a_B1 = advantages_B[:, None]
    leaving_BT = (((a_B1 > 0) & (log_ratio_BT > 0)) | ((a_B1 < 0) & (log_ratio_BT < 0))) & mask_BT
    tau = _tau(jnp.where(leaving_BT, clip_log(log_ratio_BT) ** 2, 0.0), leaving_BT, budget)
    unbounded = tau < 0
    low = jnp.minimum(jnp.where(unbounded, 0.0, jnp.exp(-tau)), 1 - clip_low)
    high = jnp.maximum(jnp.where(unbounded, _UNBOUNDED, jnp.exp(tau)), 1 + clip_high)
    terms = clipped(ratio(log_ratio_BT), advantages_B, mask_BT, low, high)
    terms.metrics.update({"objective/ratio_low": low, "objective/ratio_high": high})
    return terms

  return Objective("m2po", terms, aggregation="token-mean", batch_wide=True)


def _tau(squares_BT: Array, where_BT: Array, budget: float) -> Array:
  """The cap on |log r|; -1 where the budget holds without one."""
  n = jnp.sum(where_BT)
  padding = squares_BT.size - n
  ascending = jnp.sort(squares_BT.reshape(-1))  # the padding is zeros, which sort first
  total = jnp.cumsum(ascending)
  index = jnp.arange(squares_BT.size)
  capped_sum = total + ascending * (squares_BT.size - 1 - index)  # sum of min(square, this one)
  too_much = (capped_sum >= budget * n) & (index >= padding)
  first = jnp.argmax(too_much)
  largest_fitting = jnp.where(first > padding, ascending[jnp.maximum(first - 1, 0)], 0.0)
  tau = jnp.sqrt(jnp.maximum(largest_fitting - 1e-12, 0.0))
  return jnp.where(total[-1] <= budget * n, -1.0, tau)


@registry.register("m2po_mask")
def m2po_mask(
  *, threshold: float = 0.04, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 0.0
) -> Objective:
  """M2PO as AReaL has it: the token mask, then PPO's clip on the denominator's ratio.

  The mismatch is that of behaviour and denominator policy where they differ (a proximal policy is
  given), and of behaviour and policy where they do not. One token is always kept. AReaL's threshold
  has no default; 0.04 is the official budget. A dropped token stays in the denominator of the loss.
  Source: inclusionAI/AReaL areal/trainer/ppo/actor.py.
  """

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    policy_BT, behaviour_BT = extras["policy_logprobs"], extras["behaviour_logprobs"]
    denominator_BT = policy_BT - log_ratio_BT
    proximal = extras.get("proximal_logprobs")
    mismatch_BT = (policy_BT if proximal is None else denominator_BT) - behaviour_BT
    square_BT = jnp.where(mask_BT, clip_log(mismatch_BT) ** 2, jnp.inf)
    ascending = jnp.sort(square_BT.reshape(-1))
    finite = jnp.isfinite(ascending)
    kept_mean = jnp.cumsum(jnp.where(finite, ascending, 0.0)) / jnp.arange(1, ascending.size + 1)
    fitting = jnp.sum(finite & (kept_mean < threshold))  # the mean of the k smallest grows with k
    kept_BT = largest(-square_BT, jnp.maximum(fitting, 1)) & mask_BT
    terms = clipped(
      ratio(log_ratio_BT), advantages_B, mask_BT, 1 - clip_low, 1 + clip_high, dual_clip
    )
    terms.metrics["objective/dropped_fraction"] = fraction(~kept_BT, mask_BT)
    return terms.where(kept_BT)

  return Objective(
    "m2po_mask",
    terms,
    aggregation="token-mean",
    batch_wide=True,
    needs=("policy_logprobs", "behaviour_logprobs"),
  )
