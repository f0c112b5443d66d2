"""Log-probabilities of given tokens, without ever building [tokens, V].

The head runs over chunks of tokens and is rematerialised in the backward pass, so its memory is one
chunk of logits, whatever the batch and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vespo_jax.models.moe import Routing, unpack_expert_ids
from vespo_jax.models.params import head_table
from vespo_jax.models.spec import ModelSpec
from vespo_jax.models.transformer import forward, forward_groups
from vespo_jax.types import Array, Params, TrainBatch

_CHUNK_LOGITS = 1 << 22  # logits alive at a time: 16 MiB of float32


def chunked_logprobs(
  hidden_MD: Array, table_VD: Array, targets_M: Array, temperature: float = 1.0
) -> tuple[Array, Array]:
  """Log-prob of each target and entropy of each distribution, float32 [M], in nats.

  The distribution is softmax(hidden @ table^T / temperature), computed in float32. Both results are
  differentiable with respect to `hidden_MD` and `table_VD`.
  """

  def statistics(logits_CV: Array, targets_C: Array) -> tuple[Array, Array]:
    log_z_C = jax.nn.logsumexp(logits_CV, axis=-1)
    probs_CV = jnp.exp(logits_CV - log_z_C[:, None])
    return _at(logits_CV, targets_C) - log_z_C, log_z_C - jnp.sum(probs_CV * logits_CV, axis=-1)

  return _chunked(statistics, hidden_MD, table_VD, targets_M, temperature)


def _at(values_CV: Array, targets_C: Array) -> Array:
  return jnp.take_along_axis(values_CV, targets_C[:, None], axis=-1)[:, 0]


def _chunked(
  statistics: Callable[[Array, Array], Any],
  hidden_MD: Array,
  table_VD: Array,
  targets_M: Array,
  temperature: float,
) -> Any:
  """`statistics(logits_CV, targets_C)`, arrays [C] each, over chunks of the tokens."""
  M, D = hidden_MD.shape
  chunks = -(-M // max(128, _CHUNK_LOGITS // table_VD.shape[0]))
  size = -(-M // chunks)
  padding = chunks * size - M

  # Chunk j holds tokens j, j + chunks, ..: a sharded token axis stays sharded within each chunk.
  def cut(x: Array) -> Array:
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(size, chunks, *x.shape[1:]), 1, 0)

  @jax.checkpoint
  def one_chunk(hidden_CD: Array, targets_C: Array) -> Any:
    return statistics((hidden_CD @ table_VD.T).astype(jnp.float32) / temperature, targets_C)

  results = jax.lax.map(lambda args: one_chunk(*args), (cut(hidden_MD), cut(targets_M)))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1)[:M], results)


def token_logprobs(
  params: Params,
  spec: ModelSpec,
  tokens_BT: Array,
  temperature: float = 1.0,
  segments: Array | None = None,
) -> tuple[Array, Array]:
  """Log-prob of every token given those before it, and the entropy it was drawn from.

  Args:
    tokens_BT: int32 ids.
    temperature: of the softmax; above 0.
    segments: as in `forward`.

  Returns:
    logprobs_BT, entropy_BT: float32. Column t belongs to token t; column 0 is 0, and so is the
    first token of every segment and all padding.
  """
  B, T = tokens_BT.shape
  hidden_BTD, _ = forward(params, spec, tokens_BT, segments=segments)
  D = hidden_BTD.shape[-1]
  results = chunked_logprobs(
    hidden_BTD[:, :-1].reshape(-1, D),
    head_table(params),
    tokens_BT[:, 1:].reshape(-1),
    temperature,
  )
  logprobs, entropy = (jnp.pad(x.reshape(B, T - 1), [(0, 0), (1, 0)]) for x in results)
  if segments is not None:
    same = (segments == jnp.roll(segments, 1, axis=1)) & (segments != 0)
    logprobs, entropy = jnp.where(same, logprobs, 0.0), jnp.where(same, entropy, 0.0)
  return logprobs, entropy


def group_logprobs(
  params: Params,
  spec: ModelSpec,
  batch: TrainBatch,
  temperature: float = 1.0,
  remat: str = "none",
) -> tuple[Array, Array]:
  """Log-prob and entropy of every response token of a batch of groups, float32 [P, R, T]; `remat`
  as in `forward_groups`."""
  return group_logprobs_routed(params, spec, batch, temperature, remat)[:2]


def group_logprobs_routed(
  params: Params,
  spec: ModelSpec,
  batch: TrainBatch,
  temperature: float = 1.0,
  remat: str = "none",
) -> tuple[Array, Array, Routing | None]:
  """`group_logprobs`, and what the routers did (None of a dense model); they replay the batch's
  expert ids where it has them."""
  hidden_MD, targets_M, routing = _group_hidden(params, spec, batch, remat)
  results = chunked_logprobs(hidden_MD, head_table(params), targets_M, temperature)
  logprobs_PRT, entropy_PRT = (x.reshape(batch.response_tokens_PRT.shape) for x in results)
  return logprobs_PRT, entropy_PRT, routing


def group_logit_norms(
  params: Params, spec: ModelSpec, batch: TrainBatch, temperature: float = 1.0
) -> Array:
  """|d log pi(y_t) / d logits|^2 = 1 - 2 pi(y_t) + sum_v pi(v)^2 of every response token, float32
  [P, R, T], at temperature 1 of the scaled logits."""

  def statistics(logits_CV: Array, targets_C: Array) -> Array:
    probs_CV = jax.nn.softmax(logits_CV, axis=-1)
    return 1 - 2 * _at(probs_CV, targets_C) + jnp.sum(probs_CV**2, axis=-1)

  hidden_MD, targets_M, _ = _group_hidden(params, spec, batch)
  squares_M = _chunked(statistics, hidden_MD, head_table(params), targets_M, temperature)
  return squares_M.reshape(batch.response_tokens_PRT.shape)


def _group_hidden(
  params: Params, spec: ModelSpec, batch: TrainBatch, remat: str = "none"
) -> tuple[Array, Array, Routing | None]:
  hidden_PRTD, routing = forward_groups(
    params,
    spec,
    batch.prompt_tokens_PS,
    batch.prompt_mask_PS,
    batch.response_tokens_PRT,
    batch.response_mask_PRT,
    _replayed(batch),
    remat,
  )
  targets_M = jnp.asarray(batch.response_tokens_PRT).reshape(-1)
  return hidden_PRTD.reshape(-1, hidden_PRTD.shape[-1]), targets_M, routing


def _replayed(batch: TrainBatch) -> Array | None:
  """int32 [L, M, A]: the batch's expert ids, if it has them."""
  ids = batch.expert_ids_PJLA
  return None if ids is None else unpack_expert_ids(ids.reshape(-1, *ids.shape[2:]))
