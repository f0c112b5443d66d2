"""Ring attention: keys and values go round the devices of `sequence`, and none ever has them all.

Every device keeps the queries of its tokens and sees each other's keys and values once, as they
pass; what it mixes of them is merged by maximum and sum. The backward pass sends them round again,
with their gradients, so that neither pass holds more than two devices' share. What comes from a
device with later tokens is not attended to, but for the prompts, which samples see whole.

Queries are [I, P, R, K, G, T, H], cut into I pieces, so that scores are never larger than one piece
against one device's keys; prompts are R = 1. Source: Liu, Zaharia and Abbeel (arXiv 2310.01889);
the gradient from the log-sum-exp alone is that of FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.models import partition
from vespo_jax.models.attention import QUERY_BLOCK
from vespo_jax.types import Array

_AXIS = "sequence"
_HIDDEN = -1e30  # finite, so that a fully hidden row gives zeros and no NaN


@flax.struct.dataclass
class Chunk:
  """One device's keys and values, of its tokens of every prompt and of every sample."""

  prompt_keys_PKSH: Array
  prompt_values_PKSH: Array
  keys_PRKTH: Array
  values_PRKTH: Array


def attend(
  prompts: tuple[Array, Array, Array], samples: tuple[Array, Array, Array], mask_PS: Array
) -> tuple[Array, Array]:
  """softmax(q k / sqrt(H)) v of groups whose tokens are spread over `sequence`.

  Args:
    prompts, samples: this device's queries [.., N, H], keys and values [.., K, H]: [P, S, ..] and,
      prompt-major, [P * R, T, ..].
    mask_PS: bool, True at real tokens of the whole prompts.

  Returns:
    [P, S, N * H] and [P * R, T, N * H] in the queries' type; scores and sums are float32. A query
    that sees nothing gets zeros. Differentiable, once and in reverse.
  """
  P, K = len(mask_PS), prompts[1].shape[2]
  keys, values = (_by_head(x, P, K)[:, :, :, 0] for x in samples[1:])
  prompt_keys, prompt_values = (_by_head(x, P, K)[:, 0, :, 0] for x in prompts[1:])
  scaled = lambda x: x * jnp.asarray(x.shape[-1] ** -0.5, x.dtype)
  queries = (
    _cut(_by_head(scaled(prompts[0]), P, K)),
    _cut(_by_head(scaled(samples[0]), P, K)),
  )
  mixed = _ring(queries, Chunk(prompt_keys, prompt_values, keys, values), mask_PS)
  return _flat(mixed[0], *prompts[0].shape[:2]), _flat(mixed[1], *samples[0].shape[:2])


def _by_head(x_BTNH: Array, prompts: int, K: int) -> Array:
  """[P * R, T, K * G, H] -> [P, R, K, G, T, H]."""
  B, T, N, H = x_BTNH.shape
  return x_BTNH.reshape(prompts, B // prompts, T, K, N // K, H).transpose(0, 1, 3, 4, 2, 5)


def _cut(x_PRKGTH: Array) -> Array:
  """Into pieces of at most `QUERY_BLOCK` tokens, the last with zeros at its end."""
  *rest, T, H = x_PRKGTH.shape
  pieces = -(-T // QUERY_BLOCK)
  width = -(-T // pieces)
  x = jnp.pad(x_PRKGTH, [(0, 0)] * 4 + [(0, pieces * width - T), (0, 0)])
  return jnp.moveaxis(x.reshape(*rest, pieces, width, H), 4, 0)


def _flat(x_IPRKGTH: Array, rows: int, T: int) -> Array:
  """The inverse of `_by_head` and `_cut`: [P * R, T, N * H]."""
  x = jnp.moveaxis(x_IPRKGTH, (0, 5), (2, 3))  # [P, R, I, T / I, K, G, H]
  return x.reshape(rows, x.shape[2] * x.shape[3], -1)[:, :T]


@jax.custom_vjp
def _ring(queries: tuple[Array, Array], chunk: Chunk, mask_PS: Array) -> tuple[Array, Array]:
  return _ring_forward(queries, chunk, mask_PS)[0]


def _ring_forward(queries: tuple[Array, Array], chunk: Chunk, mask_PS: Array) -> tuple[Any, Any]:
  place, devices = partition.index(_AXIS), partition.size(_AXIS)

  def visit(sums: tuple, chunk: Chunk, source: Array | int) -> tuple:
    """What both sets of queries have mixed, with this chunk."""

    def of(which: int, near: bool) -> Callable[[tuple], tuple]:
      def piece(inputs: tuple) -> tuple:
        start, queries, sums = inputs
        blocks = _blocks(chunk, mask_PS, which, near, place, source, start, queries.shape[4])
        return _merged(sums, _weigh(queries, blocks))

      starts = _starts(queries[which])
      return lambda sums: jax.lax.map(piece, (starts, queries[which], sums))

    near = source <= place
    return (
      jax.lax.cond(near, of(0, True), lambda sums: sums, sums[0]),
      jax.lax.cond(near, of(1, True), of(1, False), sums[1]),
    )

  def step(s: Array, carry: tuple) -> tuple:
    chunk, sums = carry
    chunk = _passed_on(chunk)
    return chunk, visit(sums, chunk, (place - s) % devices)

  sums = visit(tuple(map(_nothing, queries)), chunk, place)
  _, sums = jax.lax.fori_loop(1, devices, step, (chunk, sums))
  mixed = tuple(total / jnp.maximum(weight, 1e-30)[..., None] for total, weight, _ in sums)
  peaks = tuple(  # of the whole softmax: exp(score - this) is the probability
    jnp.where(weight > 0, peak + jnp.log(jnp.maximum(weight, 1e-30)), 0.0)
    for _, weight, peak in sums
  )
  mixed = tuple(x.astype(q.dtype) for x, q in zip(mixed, queries, strict=True))
  return mixed, (queries, chunk, mask_PS, mixed, peaks)


def _ring_backward(kept: tuple, of_mixed: tuple[Array, Array]) -> tuple[Any, Any, None]:
  queries, chunk, mask_PS, mixed, peaks = kept
  place, devices = partition.index(_AXIS), partition.size(_AXIS)
  of_mixed = (of_mixed[0].astype(jnp.float32), of_mixed[1].astype(jnp.float32))
  through = tuple(jnp.sum(d * x, axis=-1) for d, x in zip(of_mixed, mixed, strict=True))

  def visit(sums: tuple, of_chunk: Chunk, chunk: Chunk, source: Array | int) -> tuple:
    """The gradients of both sets of queries, and of this chunk, with what it gave to them."""

    def of(which: int, near: bool) -> Callable[[tuple], tuple]:
      def piece(of_chunk: Chunk, inputs: tuple) -> tuple[Chunk, Array]:
        start, queries, peaks, of_mixed, through, of_queries = inputs

        def given(queries: Array, chunk: Chunk) -> Array:
          """Its gradient is that of the softmax: p (dp - sum_s p dp) for each score."""
          blocks = _blocks(chunk, mask_PS, which, near, place, source, start, queries.shape[4])
          mixed, weight, _ = _weigh(queries, blocks, peaks)
          return jnp.sum(of_mixed * mixed) - jnp.sum(through * weight)

        more = jax.grad(given, argnums=(0, 1))(queries, chunk)
        add = lambda total, x: total + x.astype(jnp.float32)
        return jax.tree.map(add, of_chunk, more[1]), add(of_queries, more[0])

      whole = (queries[which], peaks[which], of_mixed[which], through[which])
      return lambda sums: jax.lax.scan(piece, sums[0], (_starts(queries[which]), *whole, sums[1]))

    near = source <= place
    of_chunk, of_prompts = jax.lax.cond(near, of(0, True), lambda x: x, (of_chunk, sums[0]))
    of_chunk, of_samples = jax.lax.cond(near, of(1, True), of(1, False), (of_chunk, sums[1]))
    return of_chunk, (of_prompts, of_samples)

  def step(s: Array, carry: tuple) -> tuple:
    chunk, of_chunk, sums = carry
    chunk, of_chunk = _passed_on(chunk), _passed_on(of_chunk)
    of_chunk, sums = visit(sums, of_chunk, chunk, (place - s) % devices)
    return chunk, of_chunk, sums

  zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), tree)
  of_chunk, sums = visit(zeros(queries), zeros(chunk), chunk, place)
  _, of_chunk, sums = jax.lax.fori_loop(1, devices, step, (chunk, of_chunk, sums))
  like = lambda tree, types: jax.tree.map(lambda x, y: x.astype(y.dtype), tree, types)
  return like(sums, queries), like(_passed_on(of_chunk), chunk), None


_ring.defvjp(_ring_forward, _ring_backward)


def _passed_on(tree: Any) -> Any:
  """Every device's to the next."""
  return jax.tree.map(functools.partial(partition.from_previous_in_ring, axis=_AXIS), tree)


def _starts(queries_IPRKGTH: Array) -> Array:
  """The first token of each piece, among this device's."""
  return queries_IPRKGTH.shape[5] * jnp.arange(len(queries_IPRKGTH))


def _blocks(
  chunk: Chunk,
  mask_PS: Array,
  which: int,
  near: bool,
  place: Array | int,
  source: Array | int,
  start: Array,
  width: int,
) -> list[tuple[Array, Array, Array]]:
  """Keys, values and who may look at them: of a piece of this device's prompts (0) or samples (1),
  in the chunk of `source`, whose tokens are not later if it is `near`."""
  S, T = chunk.prompt_keys_PKSH.shape[2], chunk.keys_PRKTH.shape[3]
  real_PS = jax.lax.dynamic_slice_in_dim(mask_PS, source * S, S, axis=1)[:, None, None, None, None]

  def causal(length: int) -> Array:
    queries = place * length + start + jnp.arange(width)
    return queries[:, None] >= source * length + jnp.arange(length)

  prompt = (chunk.prompt_keys_PKSH, chunk.prompt_values_PKSH)
  if which == 0:
    return [(*prompt, real_PS & causal(S))]
  own = [(chunk.keys_PRKTH, chunk.values_PRKTH, causal(T))] if near else []
  return [(*prompt, real_PS), *own]


def _weigh(
  queries: Array, blocks: list[tuple[Array, Array, Array]], peaks: Array | None = None
) -> tuple[Array, Array, Array]:
  """sum_s exp(score_s - peak) v_s [P, R, K, G, T, H], sum_s exp(score_s - peak) and the peak
  [P, R, K, G, T], float32; the peak is that of these scores where none is given."""
  scores = []
  for keys, _, mask in blocks:
    letters = "pksh" if keys.ndim == 4 else "prksh"
    found = jnp.einsum(
      f"prkgth,{letters}->prkgts", queries, keys, preferred_element_type=jnp.float32
    )
    scores.append(jnp.where(mask, found, _HIDDEN))
  if peaks is None:
    peaks = functools.reduce(jnp.maximum, [jnp.max(x, axis=-1) for x in scores])
  mixed, weight = jnp.zeros(queries.shape, jnp.float32), jnp.zeros(peaks.shape, jnp.float32)
  for found, (_, values, mask) in zip(scores, blocks, strict=True):
    letters = "pksh" if values.ndim == 4 else "prksh"
    weights = jnp.where(mask, jnp.exp(found - peaks[..., None]), 0.0)
    mixed += jnp.einsum(
      f"prkgts,{letters}->prkgth",
      weights.astype(values.dtype),
      values,
      preferred_element_type=jnp.float32,
    )
    weight += jnp.sum(weights, axis=-1)
  return mixed, weight, peaks


def _nothing(queries: Array) -> tuple[Array, Array, Array]:
  """What `_weigh` makes of no block."""
  zeros = jnp.zeros(queries.shape, jnp.float32)
  return zeros, zeros[..., 0], jnp.full_like(zeros[..., 0], _HIDDEN)


def _merged(left: tuple, right: tuple) -> tuple[Array, Array, Array]:
  (mixed, weight, peak), (more, heavier, higher) = left, right
  top = jnp.maximum(peak, higher)
  old, new = jnp.exp(peak - top), jnp.exp(higher - top)
  return mixed * old[..., None] + more * new[..., None], weight * old + heavier * new, top
