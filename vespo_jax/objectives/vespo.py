"""VESPO: variational sequence-level soft policy optimisation (arXiv 2602.10693).

The gradient of a sequence is weighted by a closed-form kernel of its importance weight
`W = prod_t pi(y_t) / mu(y_t)`, without length normalisation and without a clip (eq. 20):

    phi(W) = W^k exp(lambda (1 - W)),      phi(1) = 1

with (k, lambda) = (2, 3) where A >= 0 and (3, 2) where A < 0. The kernel is detached. A rollout
correction is folded into W. Default aggregation is the mean over the global minibatch's tokens; the
released veRL recipe takes the mean of each micro-batch instead, its docstring states other defaults
than its code, and it adds a sequence-level correction to log W once per token.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from vespo_jax.objectives.base import (
  LENGTH_NORMS,
  Extras,
  Metrics,
  Objective,
  Terms,
  clip_log,
  lengths,
  registry,
  sequence_log_ratio,
)
from vespo_jax.objectives.kernel import phi, ratio_bound
from vespo_jax.registry import check_option
from vespo_jax.types import Array

SYMMETRIC = ("none", "positive", "negative")


@registry.register("vespo")
def vespo(
  *,
  k_pos: float = 2.0,
  lambda_pos: float = 3.0,
  k_neg: float = 3.0,
  lambda_neg: float = 2.0,
  length_norm: str = "none",
  length_reference: int = 0,
  symmetric: str = "none",
) -> Objective:
  """VESPO with kernel (k_pos, lambda_pos) where A >= 0 and (k_neg, lambda_neg) where A < 0.

  Args:
    k_pos, lambda_pos, k_neg, lambda_neg: the kernel; any k, and lambda >= 0.
    length_norm: `none`; or the ablation of section 4.7, which takes W^(1/sqrt(T)) (`sqrt`) or
      W^(1/T) (`linear`) in place of W.
    length_reference: 0; or tokens L, and k and lambda of a response of T > L tokens are both
      divided by T / L, so the kernel is phi^(L/T). Where log W is normal with a variance in
      proportion to T, Z = E_mu[phi] then hardly changes with T; as it is, it vanishes. Ours, not
      the paper's. K is infinite where k L / T < 1, and the bound of the second moment is reported
      as infinite whatever the lengths.
    symmetric: `none`; or the ablation of figure 7, which uses the `positive` or the `negative`
      kernel for both signs.

  Raises ValueError for a negative lambda or length, an unknown option, or a length_reference beside
  a length_norm. Source: arXiv 2602.10693 eq. 20 and section 4.1; FloyedShen/VESPO core_algos.py,
  whose bounds on the log ratio (+-20 per token and per sequence) are kept. Where it bounds lambda
  from below by 1e-4, 0 is exact here.
  """
  check_option("symmetric", symmetric, SYMMETRIC)
  check_option("length_norm", length_norm, LENGTH_NORMS)
  for option, value in (("lambda_pos", lambda_pos), ("lambda_neg", lambda_neg)):
    if value < 0:
      raise ValueError(f"{option}={value} must be at least 0: the kernel would not be bounded")
  if length_reference < 0:
    raise ValueError(f"length_reference={length_reference} must be at least 0")
  if length_reference and length_norm != "none":
    raise ValueError(
      f"length_reference={length_reference} is of W, not of length_norm={length_norm!r}"
    )
  if symmetric == "positive":
    k_neg, lambda_neg = k_pos, lambda_pos
  elif symmetric == "negative":
    k_pos, lambda_pos = k_neg, lambda_neg
  bound_pos, bound_neg = ratio_bound(k_pos, lambda_pos), ratio_bound(k_neg, lambda_neg)
  if length_reference:
    bound_pos = bound_neg = math.inf  # of the k of long enough responses, which is below 1

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    log_correction_B = extras.get("log_correction", 0.0)
    log_ratio_BT = clip_log(log_ratio_BT)
    log_w_B = sequence_log_ratio(log_ratio_BT, mask_BT, length_norm, log_correction_B)
    positive_B = advantages_B >= 0
    k_B = jnp.where(positive_B, k_pos, k_neg)
    lambda_B = jnp.where(positive_B, lambda_pos, lambda_neg)
    if length_reference:
      share_B = jnp.minimum(length_reference / lengths(mask_BT).astype(log_w_B.dtype), 1.0)
      k_B, lambda_B = k_B * share_B, lambda_B * share_B
    phi_B = phi(log_w_B, k_B, lambda_B)
    valid_B, w_B = jnp.any(mask_BT, axis=1), jnp.exp(log_w_B)
    metrics = {
      **_bound_metrics("pos", phi_B, w_B, positive_B & valid_B, bound_pos),
      **_bound_metrics("neg", phi_B, w_B, ~positive_B & valid_B, bound_neg),
    }
    return Terms(jnp.broadcast_to(phi_B[:, None], mask_BT.shape), metrics)

  return Objective("vespo", terms, aggregation="token-mean", correction="fold")


def _bound_metrics(sign: str, phi_B: Array, w_B: Array, where_B: Array, bound: float) -> Metrics:
  """E_mu[phi^2] and its bound Z K E_Q[W] = K E_mu[phi W] (proposition 3.1) over the sequences of
  one sign, as sample means; the bound holds for every sample, infinite where K is."""
  n = jnp.maximum(jnp.sum(where_B, dtype=jnp.float32), 1.0)
  bounds_B = jnp.full_like(phi_B, jnp.inf) if math.isinf(bound) else bound * phi_B * w_B
  return {
    f"weight/second_moment_{sign}": jnp.sum(jnp.where(where_B, phi_B**2, 0.0)) / n,
    f"weight/second_moment_bound_{sign}": jnp.sum(jnp.where(where_B, bounds_B, 0.0)) / n,
  }
