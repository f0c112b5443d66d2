"""VESPO: variational sequence-level soft policy optimisation (arXiv 2602.10693).

The gradient of a sequence is weighted by a closed-form kernel of its importance weight
`W = prod_t pi(y_t) / mu(y_t)`, without length normalisation and without a clip (eq. 20):

    phi(W) = W^k exp(lambda (1 - W)),      phi(1) = 1

with (k, lambda) = (2, 3) where A >= 0 and (3, 2) where A < 0. The kernel is detached. Default
aggregation is the mean over the global minibatch's tokens; the released veRL recipe takes the mean
of each micro-batch instead, and its docstring states other defaults than its code.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import (
  MAX_LOG_RATIO,
  Extras,
  Metrics,
  Objective,
  registry,
)
from vespo_jax.types import Array

_MAX_EXPONENT = 80.0  # exp(88.7) overflows float32; reached only by extreme k with a tiny lambda


def phi(log_w: Array, k: Array | float, lam: Array | float) -> Array:
  """The kernel W^k exp(lambda (1 - W)) of `log_w` = log W, elementwise, finite for finite input.

  Worked values at (2, 3): phi(0.5) = 1.12042, phi(1) = 1, phi(2) = 0.199148.
  """
  log_w = jnp.clip(log_w, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  return jnp.exp(jnp.minimum(lam + k * log_w - lam * jnp.exp(log_w), _MAX_EXPONENT))


@registry.register("vespo")
def vespo(
  *, k_pos: float = 2.0, lambda_pos: float = 3.0, k_neg: float = 3.0, lambda_neg: float = 2.0
) -> Objective:
  """VESPO with kernel (k_pos, lambda_pos) where A >= 0 and (k_neg, lambda_neg) where A < 0.

  Source: arXiv 2602.10693 eq. 20 and section 4.1; FloyedShen/VESPO core_algos.py, whose bounds on
  the log ratio (+-20 per token and per sequence) are kept.
  """

  def coefficients(
    log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras
  ) -> tuple[Array, Metrics]:
    del extras
    log_w_B = jnp.sum(jnp.clip(log_ratio_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO), axis=1)
    positive_B = advantages_B >= 0
    k_B = jnp.where(positive_B, k_pos, k_neg)
    lambda_B = jnp.where(positive_B, lambda_pos, lambda_neg)
    phi_B = phi(log_w_B, k_B, lambda_B)
    return jnp.broadcast_to(phi_B[:, None], mask_BT.shape), {}

  return Objective("vespo", coefficients, aggregation="token-mean")
