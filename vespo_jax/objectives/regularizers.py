"""Terms added to any objective: KL to a reference policy, and a proximal step.

Each is a per-token loss [B, T], differentiable with respect to the policy's log-probs, which the
update aggregates like the objective itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.objectives.base import at_least_float32, clip_log
from vespo_jax.registry import check_option
from vespo_jax.types import Array

KL_ESTIMATORS = ("k1", "k2", "k3", "low_var")
DIVERGENCES = ("none", "kl", "tv")


def kl_estimate(logprobs_BT: Array, anchor_logprobs_BT: Array, estimator: str) -> Array:
  """Estimates KL(policy || anchor) at sampled tokens, in nats.

  With x = log anchor - log policy: `k1` = -x, unbiased in value, but of zero expected gradient in a
  loss; `k2` = x^2 / 2, whose gradient is that of the KL on-policy; `k3` = e^x - 1 - x, unbiased and
  non-negative; `low_var` = k3 held to +-10, as in verl. x is held to +-20 in the last two.

  Args:
    logprobs_BT: of the policy, differentiated.
    anchor_logprobs_BT: of the anchor, detached.
    estimator: one of `KL_ESTIMATORS`; ValueError otherwise.

  Source: Schulman, "Approximating KL divergence" (2020); verl `kl_penalty`.
  """
  check_option("estimator", estimator, KL_ESTIMATORS)
  x_BT = jax.lax.stop_gradient(at_least_float32(anchor_logprobs_BT)) - at_least_float32(logprobs_BT)
  if estimator == "k1":
    return -x_BT
  if estimator == "k2":
    return 0.5 * x_BT**2
  k3_BT = jnp.expm1(clip_log(x_BT)) - clip_log(x_BT)
  return jnp.clip(k3_BT, -10.0, 10.0) if estimator == "low_var" else k3_BT


def proximal_divergence(logprobs_BT: Array, proximal_logprobs_BT: Array, divergence: str) -> Array:
  """The divergence of a proximal step, at tokens that the proximal policy sampled.

  With r = policy / proximal: `kl` is r - 1 - log r, an unbiased estimate of KL(proximal || policy)
  whose gradient is unbiased too; `tv` is |r - 1| / 2, of their total variation. A loss with
  1 / step_size of it takes one step of the minimising-movement (JKO) scheme from the proximal
  policy: policy' = argmin loss + D / step_size.

  Args:
    logprobs_BT: of the policy, differentiated.
    proximal_logprobs_BT: of the policy at the start of the rollout batch, detached.
    divergence: `kl` or `tv`; ValueError otherwise.

  Source: the reading of policy iterates as JKO steps of arXiv 2510.15388, with a divergence of
  token distributions in place of the Wasserstein distance of actions.
  """
  check_option("divergence", divergence, DIVERGENCES[1:])
  proximal_BT = jax.lax.stop_gradient(at_least_float32(proximal_logprobs_BT))
  log_r_BT = clip_log(at_least_float32(logprobs_BT) - proximal_BT)
  if divergence == "kl":
    return jnp.expm1(log_r_BT) - log_r_BT
  return 0.5 * jnp.abs(jnp.expm1(log_r_BT))
