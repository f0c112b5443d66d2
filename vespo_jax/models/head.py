"""Log-probabilities of given tokens, without ever building [tokens, V].

The head runs over blocks of the vocabulary, each of which is read once in the forward pass and once
in the backward pass, where the gradient of its rows is complete when it is left. Its memory is one
block of logits, whatever the batch and the vocabulary. Over several devices each has some rows of
the table; the sums over the vocabulary are added up over `tensor`.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax.models import partition
from vespo_jax.models.params import head_table
from vespo_jax.models.spec import ModelSpec
from vespo_jax.models.transformer import forward, previous_in_segment
from vespo_jax.types import Array, Params

_BLOCK_LOGITS = 1 << 22  # logits alive at a time: 16 MiB of float32
_LEAST_COLUMNS = 128  # of a block, for products that are worth their overhead


@flax.struct.dataclass
class Statistics:
  """Of the distributions softmax(logits) of M tokens, float32 [M] each.

  Attributes:
    logit_M: of the target.
    log_z_M: log sum exp of all logits.
    mean_M: sum_v p_v logit_v.
    squares_M: sum_v p_v^2.
  """

  logit_M: Array
  log_z_M: Array
  mean_M: Array
  squares_M: Array


def chunked_logprobs(
  hidden_MD: Array, table_VD: Array, targets_M: Array, temperature: Array | float = 1.0
) -> tuple[Array, Array]:
  """Log-prob of each target and entropy of each distribution, float32 [M], in nats.

  The distribution is softmax(hidden @ table^T / temperature), computed in float32. Both results are
  differentiable, once and in reverse, with respect to `hidden_MD` and `table_VD`.
  """
  return _logprobs(hidden_MD, table_VD, jnp.asarray(targets_M), jnp.float32(temperature))


@jax.custom_vjp
def _logprobs(
  hidden_MD: Array, table_VD: Array, targets_M: Array, temperature: Array
) -> tuple[Array, Array]:
  return _logprobs_forward(hidden_MD, table_VD, targets_M, temperature)[0]


def _logprobs_forward(hidden_MD: Array, table_VD: Array, targets_M: Array, temperature: Array):
  found = statistics(hidden_MD, table_VD, targets_M, temperature)
  entropy_M = found.log_z_M - found.mean_M
  kept = (hidden_MD, table_VD, targets_M, temperature, found.log_z_M, entropy_M)
  return (found.logit_M - found.log_z_M, entropy_M), kept


def _logprobs_backward(kept: tuple, gradients: tuple[Array, Array]):
  """With p = softmax(l): d log p_y / dl = 1[y] - p, and d entropy / dl = -p (log p + entropy)."""
  hidden_MD, table_VD, targets_M, temperature, log_z_M, entropy_M = kept
  # both results are sums over `tensor`, so what they are differentiated by is that of all devices
  of_logprob_M, of_entropy_M = (partition.add(x, "tensor") for x in gradients)

  def block(j: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
    of_hidden_MD, of_table_VD = sums
    rows_CD, logits_MC, ids_C, fresh_C = _block(j, hidden_MD, table_VD, temperature)
    logp_MC = jnp.where(fresh_C, logits_MC - log_z_M[:, None], -jnp.inf)
    p_MC = jnp.exp(logp_MC)
    factor_MC = of_logprob_M[:, None] + of_entropy_M[:, None] * jnp.where(
      fresh_C, logp_MC + entropy_M[:, None], 0.0
    )
    hit_MC = (ids_C == targets_M[:, None] - _first_row(table_VD)) & fresh_C
    of_logits_MC = jnp.where(hit_MC, of_logprob_M[:, None], 0.0) - p_MC * factor_MC
    of_logits_MC = (of_logits_MC / temperature).astype(hidden_MD.dtype)
    of_rows_CD = jax.lax.dynamic_slice_in_dim(of_table_VD, ids_C[0], len(ids_C))
    of_rows_CD += of_logits_MC.T @ hidden_MD
    of_hidden_MD += jnp.matmul(of_logits_MC, rows_CD, preferred_element_type=jnp.float32)
    return (
      of_hidden_MD,
      jax.lax.dynamic_update_slice_in_dim(of_table_VD, of_rows_CD, ids_C[0], 0),
    )

  # the sum over blocks is float32 whatever the parameters are; a row of the table is of one block
  start = (jnp.zeros_like(hidden_MD, jnp.float32), jnp.zeros_like(table_VD))
  blocks = _blocks(len(hidden_MD), len(table_VD))[0]
  of_hidden_MD, of_table_VD = jax.lax.fori_loop(0, blocks, block, start)
  return of_hidden_MD.astype(hidden_MD.dtype), of_table_VD, None, None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward)


def _blocks(tokens: int, vocabulary: int) -> tuple[int, int]:
  """How many blocks of the vocabulary there are, and the columns of each."""
  columns = max(_LEAST_COLUMNS, _BLOCK_LOGITS // max(tokens, 1))
  count = -(-vocabulary // columns)
  return count, -(-vocabulary // count)


def _first_row(table_VD: Array) -> Array | int:
  """The token id of this device's first row."""
  return partition.index("tensor") * len(table_VD)


def _block(
  j: Array, hidden_MD: Array, table_VD: Array, temperature: Array | float
) -> tuple[Array, Array, Array, Array]:
  """Rows of the table, their logits, their ids, and which of them no block before has had: the last
  block begins early enough to be whole."""
  V = len(table_VD)
  columns = _blocks(len(hidden_MD), V)[1]
  start = jnp.minimum(j * columns, V - columns)
  rows_CD = jax.lax.dynamic_slice_in_dim(table_VD, start, columns)
  logits_MC = jnp.matmul(hidden_MD, rows_CD.T, preferred_element_type=jnp.float32) / temperature
  ids_C = start + jnp.arange(columns)
  return rows_CD, logits_MC, ids_C, ids_C >= j * columns


def statistics(
  hidden_MD: Array, table_VD: Array, targets_M: Array, temperature: Array | float
) -> Statistics:
  """The `Statistics` of softmax(hidden @ table^T / temperature) at each target; not
  differentiable."""

  def block(j: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
    peak_M, one_M, two_M, first_M, logit_M = sums
    _, logits_MC, ids_C, fresh_C = _block(j, hidden_MD, table_VD, temperature)
    new_M = jnp.maximum(peak_M, jnp.max(logits_MC, axis=-1))  # an old column changes no maximum
    shrunk_M = jnp.exp(peak_M - new_M)
    exp_MC = jnp.where(fresh_C, jnp.exp(logits_MC - new_M[:, None]), 0.0)
    hit_MC = (ids_C == targets_M[:, None] - _first_row(table_VD)) & fresh_C
    return (
      new_M,
      one_M * shrunk_M + jnp.sum(exp_MC, axis=-1),
      two_M * shrunk_M**2 + jnp.sum(exp_MC**2, axis=-1),
      first_M * shrunk_M + jnp.sum(exp_MC * logits_MC, axis=-1),
      logit_M + jnp.sum(jnp.where(hit_MC, logits_MC, 0.0), axis=-1),
    )

  zeros_M = jnp.zeros(len(hidden_MD), jnp.float32)
  start = (jnp.full_like(zeros_M, -jnp.inf), zeros_M, zeros_M, zeros_M, zeros_M)
  blocks = _blocks(len(hidden_MD), len(table_VD))[0]
  peak_M, one_M, two_M, first_M, logit_M = jax.lax.fori_loop(0, blocks, block, start)
  if partition.size("tensor") > 1:
    mine_M, peak_M = peak_M, partition.largest(peak_M, "tensor")
    shrunk_M = jnp.exp(mine_M - peak_M)
    one_M, two_M, first_M, logit_M = (
      partition.add(x, "tensor")
      for x in (one_M * shrunk_M, two_M * shrunk_M**2, first_M * shrunk_M, logit_M)
    )
  return Statistics(logit_M, peak_M + jnp.log(one_M), first_M / one_M, two_M / one_M**2)


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
    first token of every segment and all padding, which may also be between tokens of a segment.

  Raises ValueError if a token is not in the vocabulary; traced ones are not looked at.
  """
  B, T = tokens_BT.shape
  if not isinstance(tokens_BT, jax.core.Tracer):
    ids = np.asarray(tokens_BT)
    beyond = ids[(ids < 0) | (ids >= spec.vocab_size)]
    if beyond.size:
      raise ValueError(f"token {beyond[0]} is not in a vocabulary of {spec.vocab_size}")
  hidden_BTD, _ = forward(params, spec, tokens_BT, segments=segments)
  hidden_BTD, D = hidden_BTD[:, :-1], hidden_BTD.shape[-1]
  known_BT = None
  if segments is not None:
    before_BT = previous_in_segment(jnp.asarray(segments))
    known_BT, columns = before_BT >= 0, jnp.maximum(before_BT[:, 1:, None], 0)
    hidden_BTD = jnp.take_along_axis(hidden_BTD, columns, axis=1)
  results = chunked_logprobs(
    hidden_BTD.reshape(-1, D),
    head_table(params),
    tokens_BT[:, 1:].reshape(-1),
    temperature,
  )
  logprobs, entropy = (jnp.pad(x.reshape(B, T - 1), [(0, 0), (1, 0)]) for x in results)
  if known_BT is not None:
    logprobs, entropy = jnp.where(known_BT, logprobs, 0.0), jnp.where(known_BT, entropy, 0.0)
  return logprobs, entropy
