"""Log-probabilities of given tokens, without ever building [tokens, V].

The head runs over chunks of tokens and is rematerialised in the backward pass, so its memory is one
chunk of logits, whatever the batch and the vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
  M, D = hidden_MD.shape
  chunks = -(-M // max(128, _CHUNK_LOGITS // table_VD.shape[0]))
  size = -(-M // chunks)
  padding = chunks * size - M

  # Chunk j holds tokens j, j + chunks, ..: a sharded token axis stays sharded within each chunk.
  def cut(x: Array) -> Array:
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(size, chunks, *x.shape[1:]), 1, 0)

  @jax.checkpoint
  def one_chunk(hidden_CD: Array, targets_C: Array) -> tuple[Array, Array]:
    logits_CV = (hidden_CD @ table_VD.T).astype(jnp.float32) / temperature
    log_z_C = jax.nn.logsumexp(logits_CV, axis=-1)
    chosen_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
    probs_CV = jnp.exp(logits_CV - log_z_C[:, None])
    return chosen_C - log_z_C, log_z_C - jnp.sum(probs_CV * logits_CV, axis=-1)

  results = jax.lax.map(lambda args: one_chunk(*args), (cut(hidden_MD), cut(targets_M)))
  logprobs_M, entropy_M = (jnp.moveaxis(x, 0, 1).reshape(-1)[:M] for x in results)
  return logprobs_M, entropy_M


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
  params: Params, spec: ModelSpec, batch: TrainBatch, temperature: float = 1.0
) -> tuple[Array, Array]:
  """Log-prob and entropy of every response token of a batch of groups, float32 [P, R, T]."""
  hidden_PRTD = forward_groups(
    params, spec, batch.prompt_tokens_PS, batch.prompt_mask_PS, batch.response_tokens_PRT
  )
  shape = batch.response_tokens_PRT.shape
  results = chunked_logprobs(
    hidden_PRTD.reshape(-1, hidden_PRTD.shape[-1]),
    head_table(params),
    jnp.asarray(batch.response_tokens_PRT).reshape(-1),
    temperature,
  )
  logprobs_PRT, entropy_PRT = (x.reshape(shape) for x in results)
  return logprobs_PRT, entropy_PRT
