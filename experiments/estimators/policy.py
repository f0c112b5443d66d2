"""The policy on the tree: a real transformer's logits at every prefix, and their derivatives.

Logits are the model's float32; probabilities and scores are made of them in float64, so that sums
over all responses are exact to round-off.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.estimators.tree import Tree
from vespo_jax import models
from vespo_jax.models import ModelSpec
from vespo_jax.types import Array, Params

_KERNEL_SCALE = (
  10.0  # the initial policy is far from uniform: a width this small needs more than 0.02
)
_CHUNK = 256  # prefixes whose derivatives are alive at a time, inside the compiled program


def initial(spec: ModelSpec, seed: int) -> Params:
  """The project's initial weights with all but the norms' scales enlarged tenfold."""
  params = models.init(spec, jax.random.key(seed))
  return jax.tree.map(
    lambda x, info: x if info.scale is None else _KERNEL_SCALE * x, params, models.describe(spec)
  )


@functools.partial(jax.jit, static_argnums=1)
def logits(params: Params, spec: ModelSpec, prefixes_XT: Array, last_X: Array) -> Array:
  """[X, V] float32: the logits of the next token after each prefix; see `Tree` for the inputs."""
  hidden_XTD, _ = models.forward(params, spec, prefixes_XT)
  hidden_XD = hidden_XTD[jnp.arange(hidden_XTD.shape[0]), last_X]
  return (hidden_XD @ models.head_table(params).T).astype(jnp.float32)


def log_probs(params: Params, spec: ModelSpec, tree: Tree) -> np.ndarray:
  """[X, V] float64: the log-probabilities of the next token after each prefix of the tree."""
  return log_softmax(logits(params, spec, tree.prefixes_XT, tree.last_X))


def log_softmax(logits_XV: np.ndarray | Array) -> np.ndarray:
  """The log-probabilities of logits, in float64."""
  logits_XV = np.asarray(logits_XV, np.float64)
  logits_XV = logits_XV - logits_XV.max(axis=1, keepdims=True)
  return logits_XV - np.log(np.exp(logits_XV).sum(axis=1, keepdims=True))


def scores(params: Params, spec: ModelSpec, tree: Tree) -> np.ndarray:
  """[X V, Z] float64: grad log pi(token | prefix) of every edge, for all Z parameters."""
  flat_Z, unravel = ravel_pytree(params)
  jacobian_XVZ = _jacobian(flat_Z, unravel, spec, tree.prefixes_XT, tree.last_X)
  scores_XVZ = np.asarray(jacobian_XVZ, np.float64)
  probs_XV = np.exp(log_probs(params, spec, tree))
  scores_XVZ -= np.einsum("XV,XVZ->XZ", probs_XV, scores_XVZ)[:, None]
  return scores_XVZ.reshape(-1, flat_Z.size)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _jacobian(flat_Z: Array, unravel, spec: ModelSpec, prefixes_XT: Array, last_X: Array) -> Array:
  def one(inputs: tuple[Array, Array]) -> Array:
    prefix_T, last = inputs
    return jax.jacrev(lambda z: logits(unravel(z), spec, prefix_T[None], last[None])[0])(flat_Z)

  return jax.lax.map(one, (prefixes_XT, last_X), batch_size=_CHUNK)


def expected_reward(params: Params, spec: ModelSpec, tree: Tree, rewards_B: np.ndarray) -> Array:
  """float32 scalar J = sum over all responses of pi(y) R(y); differentiable."""
  logprobs_XV = jax.nn.log_softmax(logits(params, spec, tree.prefixes_XT, tree.last_X))
  logprobs_BT = jnp.where(tree.mask_BT, logprobs_XV.reshape(-1)[tree.edges_BT], 0.0)
  return jnp.sum(jnp.exp(jnp.sum(logprobs_BT, axis=1)) * rewards_B.astype(np.float32))
