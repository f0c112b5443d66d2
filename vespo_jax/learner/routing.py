"""A mixture of experts in the learner: auxiliary losses, load metrics, and choices to replay.

Routing replay (arXiv 2512.01374): in place of the router, the experts of a token are those of an
earlier forward pass. `R2` replays the proximal policy's over the minibatches of a rollout batch,
`R3` the sampler's. The weights of the experts are the router's own, and it learns through them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vespo_jax.models import Routing
from vespo_jax.types import Array, HostArray, TrainBatch


def auxiliary_losses(routing: Routing, load_LE: Array, tokens: Array) -> tuple[Array, Array]:
  """The load-balance loss and the router z-loss of some tokens, both scalars.

  Means over layers of `E sum_e f_e p_e` (f_e: experts chosen per token that are e, detached; p_e:
  mean probability of e; A where all is even) and of the mean squared log-sum-exp of the router's
  logits. They are sums over the tokens of `routing`, so that pieces add up to the whole.

  Args:
    routing: of the tokens that are differentiated: of a micro-batch.
    load_LE: of the whole minibatch, whatever share of it `routing` is.
    tokens: scalar, real tokens of the whole minibatch.

  Source: Switch Transformer (arXiv 2101.03961) eq. 4-6, with top-k choices counted as in Hugging
  Face's `load_balancing_loss_func` of one layer (of several it pools the tokens, so that layers
  which are uneven in opposite ways would pass for even); ST-MoE (arXiv 2202.08906) eq. 5.
  """
  experts = load_LE.shape[-1]
  balance_L = experts * jnp.sum(load_LE / tokens * routing.importance_LE / tokens, axis=-1)
  return jnp.mean(balance_L), jnp.mean(routing.z_L / tokens)


def token_count(batch: TrainBatch) -> Array:
  """The real tokens of a minibatch, prompts once: what a routing's sums are divided by."""
  return jnp.maximum(jnp.sum(batch.real_PJ), 1).astype(jnp.float32)


def load(expert_ids_PJLA: HostArray, batch: TrainBatch, experts: int) -> Array:
  """float32 [L, E]: the real tokens of a minibatch that these choices send to each expert."""
  real_PJ = batch.real_PJ

  def one_layer(ids_PJA: Array) -> Array:
    real_PJA = jnp.broadcast_to(real_PJ[..., None], ids_PJA.shape).astype(jnp.float32)
    return jnp.bincount(ids_PJA.reshape(-1), real_PJA.reshape(-1), length=experts)

  return jax.lax.map(one_layer, jnp.moveaxis(jnp.asarray(expert_ids_PJLA, jnp.int32), 2, 0))


def by_sequence(expert_ids_PJLA: HostArray, S: int, R: int) -> Array:
  """[P * R, 1, S + T, L, A]: the choices of every sequence with its prompt, as a group of one."""
  prompts = jnp.repeat(expert_ids_PJLA[:, None, :S], R, axis=1)
  P, _, L, A = expert_ids_PJLA.shape
  responses = expert_ids_PJLA[:, S:].reshape(P, R, -1, L, A)
  return jnp.concatenate([prompts, responses], axis=2).reshape(P * R, 1, -1, L, A)


def routing_metrics(routing: Routing, tokens: Array) -> dict[str, Any]:
  """The metrics of a minibatch of `tokens` real tokens.

  `moe/load_max`: tokens of the busiest expert of any layer, in multiples of an even share, and
  `moe/load_entropy`: of the load, mean over layers, 1 being even; `moe/balance_loss` and
  `moe/z_loss` without coefficients; `moe/replay_mismatch_fraction`: of the choices, those that were
  replayed and that the policy's own router would not have made.
  """
  load_LE = routing.load_LE
  experts = load_LE.shape[-1]
  share_LE = load_LE / jnp.maximum(jnp.sum(load_LE, axis=-1, keepdims=True), 1)
  entropy_L = jnp.sum(jax.scipy.special.entr(share_LE), axis=-1)
  balance, z = auxiliary_losses(routing, load_LE, tokens)
  return {
    "moe/load_max": experts * jnp.max(share_LE),
    "moe/load_entropy": jnp.mean(entropy_L) / jnp.log(max(experts, 2)),
    "moe/balance_loss": balance,
    "moe/z_loss": z,
    "moe/replay_mismatch_fraction": jnp.sum(routing.mismatch_L) / jnp.maximum(jnp.sum(load_LE), 1),
  }
