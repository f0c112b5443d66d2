"""VESPO's kernel family phi(W) = W^k exp(lambda (1 - W)): its implicit surrogate and its bounds."""

from __future__ import annotations

import math
import sys

import jax.numpy as jnp
from jax.scipy.special import exp1, gammainc, gammaln

from vespo_jax.objectives.base import clip_log
from vespo_jax.types import Array

_MAX_EXPONENT = 80.0  # exp(88.7) overflows float32; reached only by extreme k with a tiny lambda

_LARGEST_EXPONENT = math.log(sys.float_info.max)


def phi(log_w: Array, k: Array | float, lam: Array | float) -> Array:
  """The kernel W^k exp(lambda (1 - W)) of `log_w` = log W, elementwise, finite for finite input.

  Any k and any lambda >= 0; lambda = 0 is the power W^k, and k = lambda = 0 is 1 (REINFORCE).
  Worked values at (2, 3): phi(0.5) = 1.12042, phi(1) = 1, phi(2) = 0.199148.
  """
  log_w = clip_log(log_w)
  return jnp.exp(jnp.minimum(lam + k * log_w - lam * jnp.exp(log_w), _MAX_EXPONENT))


def surrogate(log_w: Array, k: float, lam: float) -> Array:
  """f(W) with phi(W) = W f'(W): the function of W whose expectation the kernel ascends.

  For k, lambda > 0 it is e^lambda lambda^-k gamma(k, lambda W), gamma being the lower incomplete
  gamma function, which saturates as W grows; it is W^k / k at lambda = 0, log W at k = lambda = 0
  and -e^lambda E1(lambda W) at k = 0. Differentiable with respect to `log_w`.
  Source: arXiv 2602.10693 eq. 40-41, times the e^lambda of the shifted kernel.
  """
  if lam == 0:
    return log_w if k == 0 else jnp.exp(k * log_w) / k
  if k == 0:
    return -jnp.exp(lam) * exp1(lam * jnp.exp(log_w))
  scale = jnp.exp(lam - k * jnp.log(lam) + gammaln(k))
  return scale * gammainc(k, lam * jnp.exp(log_w))


def supremum(k: float, lam: float) -> float:
  """sup phi(W) = (k / lambda)^k exp(lambda - k), at W = k / lambda; infinite at lambda = 0 < k, and
  where it overflows.

  Needs k, lambda >= 0. Source: arXiv 2602.10693 section 3.
  """
  if lam == 0:
    return 1.0 if k == 0 else math.inf
  exponent = lam - k + (k * math.log(k / lam) if k > 0 else 0.0)
  return math.exp(exponent) if exponent < _LARGEST_EXPONENT else math.inf


def ratio_bound(k: float, lam: float) -> float:
  """K = sup phi(W) / W, which is finite exactly for k >= 1 (with lambda > 0 unless k = 1).

  It bounds the second moment: E_mu[phi^2] <= Z K E_Q[W], with Z = E_mu[phi] and Q = mu phi / Z.
  Source: arXiv 2602.10693 proposition 3.1.
  """
  return supremum(k - 1.0, lam) if k >= 1 else math.inf
