"""The scalar to differentiate: any objective's coefficients times the policy's log-probs."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from vespo_jax.objectives.aggregation import aggregate
from vespo_jax.objectives.base import Extras, Metrics, Objective, at_least_float32
from vespo_jax.types import Array


def policy_loss(
  objective: Objective,
  *,
  policy_logprobs: Array,
  behaviour_logprobs: Array,
  advantages: Array,
  mask: Array,
  proximal_logprobs: Array | None = None,
  correction: str | None = None,
  aggregation: str | None = None,
  normalizer: Array | float | None = None,
  extras: Extras = None,
) -> tuple[Array, Metrics]:
  """The loss of `objective`: published value, and exactly the published surrogate's gradient.

  Only `policy_logprobs` is differentiated; everything else is detached.

  Args:
    objective: from `objectives.make`.
    policy_logprobs: [B, T] float, of the sampled tokens under the policy being differentiated.
    behaviour_logprobs: [B, T] float, under the distribution that sampled them.
    advantages: [B] float.
    mask: [B, T] bool, True at sampled tokens. What stands elsewhere, NaN included, has no effect.
    proximal_logprobs, correction: the decoupled form; not supported yet.
    aggregation: one of `AGGREGATIONS`; None for the method's own.
    normalizer: the global denominator when this is one micro-batch of several; None for this
      batch's own count.
    extras: further per-token arrays some objectives need.

  Returns:
    The float32 scalar loss, and the objective's metrics.

  Raises:
    ValueError: for an unknown aggregation.
    NotImplementedError: if `proximal_logprobs` or `correction` is given.
  """
  if proximal_logprobs is not None or correction not in (None, "none"):
    raise NotImplementedError("rollout correction against a proximal policy is not built yet")
  chex.assert_equal_shape([policy_logprobs, behaviour_logprobs, mask])
  mode = aggregation or objective.aggregation
  policy_logprobs = jnp.where(mask, at_least_float32(policy_logprobs), 0.0)
  log_ratio = jnp.where(mask, policy_logprobs - at_least_float32(behaviour_logprobs), 0.0)
  log_ratio, advantages = jax.lax.stop_gradient((log_ratio, at_least_float32(advantages)))

  coefficients, metrics = objective(log_ratio, advantages, mask, extras)
  total, own_count = aggregate(-coefficients * advantages[:, None] * policy_logprobs, mask, mode)
  if objective.surrogate is not None:  # keep the gradient, report the published value
    value, _ = aggregate(objective.surrogate(log_ratio, advantages), mask, mode)
    total += jax.lax.stop_gradient(value - total)
  return total / (own_count if normalizer is None else normalizer), metrics
