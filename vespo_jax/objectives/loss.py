"""The scalar to differentiate: any objective's coefficients times the policy's log-probs."""

from __future__ import annotations

import chex
import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.objectives import corrections
from vespo_jax.objectives.aggregation import aggregate
from vespo_jax.objectives.base import Extras, Metrics, Objective, at_least_float32
from vespo_jax.objectives.corrections import Correction
from vespo_jax.types import Array

_LOWEST = -1e5  # of a log-prob: beyond every bound on a ratio, and finite times any of them


@flax.struct.dataclass
class TokenWeights:
  """Everything detached that a loss needs beside the policy's log-probs, [B, T] each but the last.

  Attributes:
    weights: w_t; the gradient of the loss is `-sum_t w_t grad log pi(y_t)` over its denominator.
    mask: bool, the tokens that count: the sampled ones that no rejection took out.
    coefficients: c_t, with a rollout correction's weights in it.
    losses: the published loss of every token, or None where that is `-w_t log pi(y_t)`.
    log_correction: [B, 1], the log of a rollout correction that is a factor of W, or None.
  """

  weights: Array
  mask: Array
  coefficients: Array
  losses: Array | None
  log_correction: Array | None = None


def token_weights(
  objective: Objective,
  *,
  policy_logprobs: Array,
  behaviour_logprobs: Array,
  advantages: Array,
  mask: Array,
  proximal_logprobs: Array | None = None,
  correction: Correction | str | None = None,
  extras: Extras | None = None,
) -> tuple[TokenWeights, Metrics]:
  """The detached half of `policy_loss`, which says what each argument is and what is raised.

  It is separate so that a method whose coefficients depend on the whole minibatch can be evaluated
  on all of it, and its gradient accumulated over pieces.
  """
  if isinstance(correction, str):
    correction = corrections.make(correction)
  chex.assert_equal_shape([policy_logprobs, behaviour_logprobs, mask])
  fixed = lambda x: jax.lax.stop_gradient(_above_lowest(x))
  policy, behaviour = fixed(policy_logprobs), fixed(behaviour_logprobs)
  advantages = jax.lax.stop_gradient(at_least_float32(advantages))
  proximal = None if proximal_logprobs is None else fixed(proximal_logprobs)
  denominator = behaviour if proximal is None else proximal
  log_ratio = jnp.where(mask, policy - denominator, 0.0)
  extras = {"policy_logprobs": policy, "behaviour_logprobs": behaviour, **(extras or {})}
  if proximal is not None:
    extras["proximal_logprobs"] = proximal
  factor: Array | float = 1.0
  log_correction = None
  metrics: Metrics = {}
  if correction is not None and correction.name != "none":
    check_correction(objective, correction, proximal is not None)
    numerator = policy if proximal is None else proximal
    log_mismatch = jnp.where(mask, numerator - behaviour, 0.0)
    corrected, metrics = correction(log_mismatch, mask)
    mask = corrected.mask
    if objective.correction == "fold":
      extras["log_correction"] = corrected.log_weights_B
      log_correction = corrected.log_weights_B[:, None]
    else:
      factor = corrected.weights
  terms = objective.terms(log_ratio, advantages, mask, extras)
  coefficients = terms.coefficients_BT * factor
  weights = coefficients * jnp.where(jnp.any(mask, axis=1), advantages, 0.0)[:, None]
  losses = terms.losses_BT
  if terms.penalty_BT is not None:
    weights -= terms.penalty_BT * factor
  if losses is not None:
    losses = losses * factor
  found = TokenWeights(weights, mask, coefficients, losses, log_correction)
  return found, metrics | terms.metrics


def weighted_loss(
  weights: TokenWeights,
  policy_logprobs: Array,
  aggregation: str,
  normalizer: Array | float | None = None,
) -> Array:
  """The scalar whose gradient with respect to `policy_logprobs` [B, T] is `weights` over a count.

  `aggregation` and `normalizer` are those of `policy_loss`.
  """
  logprobs = jnp.where(weights.mask, _above_lowest(policy_logprobs), 0.0)
  total, own_count = aggregate(-weights.weights * logprobs, weights.mask, aggregation)
  if weights.losses is not None:  # keep the gradient, report the published value
    value, _ = aggregate(weights.losses, weights.mask, aggregation)
    total += jax.lax.stop_gradient(value - total)
  return total / (own_count if normalizer is None else normalizer)


def _above_lowest(logprobs: Array) -> Array:
  """Float32 or wider; an impossible token's -inf as a number that sums and products survive."""
  return jnp.maximum(at_least_float32(logprobs), _LOWEST)


def policy_loss(
  objective: Objective,
  *,
  policy_logprobs: Array,
  behaviour_logprobs: Array,
  advantages: Array,
  mask: Array,
  proximal_logprobs: Array | None = None,
  correction: Correction | str | None = None,
  aggregation: str | None = None,
  normalizer: Array | float | None = None,
  extras: Extras | None = None,
) -> tuple[Array, Metrics]:
  """The loss of `objective`: published value, and exactly the published surrogate's gradient.

  Only `policy_logprobs` is differentiated; everything else is detached.

  Args:
    objective: from `objectives.make`.
    policy_logprobs: [B, T] float, of the sampled tokens under the policy being differentiated.
    behaviour_logprobs: [B, T] float, under the distribution that sampled them.
    advantages: [B] float.
    mask: [B, T] bool, True at sampled tokens. What stands elsewhere, NaN included, has no effect.
    proximal_logprobs: [B, T] float, under the trainer's own recomputation at the start of the
      rollout batch; it is then the denominator of the ratio instead of the behaviour policy.
    correction: the rollout correction, from `objectives.corrections.make` or the name of a preset.
      With a proximal policy it is between behaviour and proximal (the decoupled form); without
      one, between behaviour and policy, for `reinforce` alone or as a rejection.
    aggregation: one of `AGGREGATIONS`; None for the method's own.
    normalizer: the global denominator when this is one micro-batch of several; None for this
      batch's own count.
    extras: further arrays some objectives need; see `Objective.terms`.

  Returns:
    The float32 scalar loss, and the metrics of the objective and of the correction.

  Raises:
    ValueError: for an unknown aggregation or correction, a correction that the objective cannot
      take, or an extra that it needs.
  """
  weights, metrics = token_weights(
    objective,
    policy_logprobs=policy_logprobs,
    behaviour_logprobs=behaviour_logprobs,
    advantages=advantages,
    mask=mask,
    proximal_logprobs=proximal_logprobs,
    correction=correction,
    extras=extras,
  )
  mode = aggregation or objective.aggregation
  return weighted_loss(weights, policy_logprobs, mode, normalizer), metrics


def check_correction(objective: Objective, correction: Correction, has_proximal: bool) -> None:
  """Raises ValueError if `objective` cannot take the weights of `correction`."""
  if not correction.has_weights:
    return
  if objective.correction == "refuse":
    raise ValueError(
      f"objective {objective.name!r} corrects for the behaviour policy itself; "
      f"the weights of correction {correction.name!r} would count it twice"
    )
  if objective.has_ratio and not has_proximal:
    raise ValueError(
      f"objective {objective.name!r} has the behaviour policy in its ratio; the weights of "
      f"correction {correction.name!r} would count it twice: give a proximal policy"
    )
