"""What a minibatch says about its own off-policyness. Arrays in, scalars out, cheap enough to be
always on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.types import Array


def ess_fraction(log_w_B: Array, valid_B: Array) -> Array:
  """Effective sample size of the weights exp(log_w) over their number: (sum w)^2 / (n sum w^2).

  Computed in log space, so it is in (0, 1] for any finite log weights; 0 if nothing is valid.
  """
  log_w_B = jnp.where(valid_B, log_w_B, -jnp.inf)
  n = jnp.sum(valid_B, dtype=jnp.float32)
  log_ess = 2 * jax.nn.logsumexp(log_w_B) - jax.nn.logsumexp(2 * log_w_B)
  return jnp.where(n > 0, jnp.exp(log_ess) / jnp.maximum(n, 1.0), 0.0)


def _mean(values: Array, where: Array) -> Array:
  total = jnp.sum(jnp.where(where, values, 0.0))
  return total / jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)


def off_policy_metrics(
  log_ratio_BT: Array, coefficients_BT: Array, advantages_B: Array, mask_BT: Array
) -> dict[str, Array]:
  """Statistics of the importance weights and of the coefficients of one whole minibatch.

  Args:
    log_ratio_BT: log policy - log behaviour per token, float32.
    coefficients_BT: the objective's coefficients.
    advantages_B: float32.
    mask_BT: bool. Rows without any True are left out.

  Returns:
    float32 scalars: `weight/log_w_{mean,std,min,max}` of log W = sum_t log ratio (unclipped);
    `weight/ess_fraction`; `kl/behaviour_policy`, KL(behaviour || policy) per token in nats by the
    non-negative k3 estimator; `objective/coefficient_{mean,mean_pos,mean_neg}`, over tokens, all
    and by the sign of the advantage.
  """
  valid_B = jnp.any(mask_BT, axis=1)
  log_ratio_BT = jnp.where(mask_BT, log_ratio_BT, 0.0)
  log_w_B = jnp.sum(log_ratio_BT, axis=1)
  mean = _mean(log_w_B, valid_B)
  any_valid = jnp.any(valid_B)
  low = jnp.min(jnp.where(valid_B, log_w_B, jnp.inf))
  high = jnp.max(jnp.where(valid_B, log_w_B, -jnp.inf))
  positive_BT = mask_BT & (advantages_B[:, None] > 0)
  negative_BT = mask_BT & (advantages_B[:, None] < 0)
  return {
    "weight/log_w_mean": mean,
    "weight/log_w_std": jnp.sqrt(_mean((log_w_B - mean) ** 2, valid_B)),
    "weight/log_w_min": jnp.where(any_valid, low, 0.0),
    "weight/log_w_max": jnp.where(any_valid, high, 0.0),
    "weight/ess_fraction": ess_fraction(log_w_B, valid_B),
    "kl/behaviour_policy": _mean(jnp.expm1(log_ratio_BT) - log_ratio_BT, mask_BT),
    "objective/coefficient_mean": _mean(coefficients_BT, mask_BT),
    "objective/coefficient_mean_pos": _mean(coefficients_BT, positive_BT),
    "objective/coefficient_mean_neg": _mean(coefficients_BT, negative_BT),
  }
