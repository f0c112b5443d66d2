"""The kernel of every objective: phi as a function of W, and the f it implicitly ascends.

A response of `LENGTH` tokens shares W equally: every token's ratio is W^(1 / LENGTH). phi is the
coefficient the objective then gives its tokens, as a batch of its own (which is what the bounds of
a `batch_wide` objective then come from). f has phi(W) = W f'(W) and f(1) = 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax import objectives
from vespo_jax.objectives import Objective, kernel
from vespo_jax.types import Array

LENGTH = 8
TOKEN_PROBABILITY = 0.5  # of the behaviour policy
LOG_W = np.linspace(np.log(0.02), np.log(50.0), 601)


def phi(objective: Objective, advantage: float) -> np.ndarray:
  """phi at `LOG_W`, for an advantage of this sign."""
  with jax.enable_x64(True):
    return np.asarray(_phi(objective, jnp.asarray(LOG_W), advantage))


@functools.partial(jax.jit, static_argnums=0)
def _phi(objective: Objective, log_w_W: Array, advantage: Array) -> Array:
  behaviour_1T = jnp.full((1, LENGTH), np.log(TOKEN_PROBABILITY))

  def one(log_w: Array) -> Array:
    weights, _ = objectives.token_weights(
      objective,
      policy_logprobs=behaviour_1T + log_w / LENGTH,
      behaviour_logprobs=behaviour_1T,
      advantages=jnp.full((1,), advantage),
      mask=jnp.ones(behaviour_1T.shape, bool),
    )
    return jnp.mean(weights.coefficients)

  return jax.vmap(one)(log_w_W)


def integral(phi_W: np.ndarray) -> np.ndarray:
  """f at `LOG_W` by the trapezoid rule: f = int phi(W) / W dW = int phi d log W, from W = 1."""
  steps = np.diff(LOG_W) * (phi_W[1:] + phi_W[:-1]) / 2
  f_W = np.concatenate([[0.0], np.cumsum(steps)])
  return f_W - np.interp(0.0, LOG_W, f_W)


def surrogate(objective: Objective, advantage: float) -> np.ndarray:
  """f at `LOG_W`: in closed form for VESPO, else integrated numerically."""
  if objective.name != "vespo":
    return integral(phi(objective, advantage))
  sign = "pos" if advantage >= 0 else "neg"
  options = objectives.defaults("vespo")
  k, lam = options[f"k_{sign}"], options[f"lambda_{sign}"]
  with jax.enable_x64(True):
    f_W = kernel.surrogate(jnp.asarray(LOG_W), k, lam)
    return np.asarray(f_W - kernel.surrogate(jnp.zeros(()), k, lam))
