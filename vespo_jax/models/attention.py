"""Grouped-query attention over up to two blocks of keys, merged by their max and sum.

A row attends to its *own* block (its own tokens, causally) and, where rows share a prompt, to the
*prefix* block of the prompt, stored once per prompt. Keys are held [.., H, S] and values
[.., S, H], so that both products are plain batched matrix products; queries of the G heads of a
key/value head, and of the R samples of a prompt, are rows of one product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vespo_jax.types import Array

Mask = Callable[[Array], Array]  # queries [t] -> bool, broadcastable to [B, t, S]


@dataclasses.dataclass(frozen=True)
class Block:
  """Keys, values and who may look at them.

  Attributes:
    keys_BKHS, values_BKSH: B is the rows of an own block, the prompts of a prefix block.
    mask: bool, broadcastable to [B, T, S]: True where query t of row b may attend to slot s; or a
      `Mask`, which makes that of some queries. For a prefix block it does not depend on the query:
      [P, 1, S].
  """

  keys_BKHS: Array
  values_BKSH: Array
  mask: Array | Mask


def block(keys_BTKH: Array, values_BTKH: Array, mask: Array | Mask) -> Block:
  """The `Block` of keys and values that come in token-major order."""
  return Block(keys_BTKH.transpose(0, 2, 3, 1), values_BTKH.transpose(0, 2, 1, 3), mask)


QUERY_BLOCK = 1024  # longer rows of queries are attended in such pieces


def mask_of(mask: Mask, queries: int) -> Array | Mask:
  """The mask of so many queries: whole where they are attended at once, so that layers share it."""
  return mask(jnp.arange(queries)) if queries <= QUERY_BLOCK else mask


def attend(queries_BTNH: Array, own: Block, prefix: Block | None = None) -> Array:
  """softmax(q k / sqrt(H)) v over both blocks; returns [B, T, N * H] in the queries' type.

  The B rows of a call with a prefix are prompt-major, R rows to each of the prefix's P prompts.
  Each product is in the queries' type, and what is between and after them float32. A query that may
  attend to nothing gets zeros.

  Beyond `QUERY_BLOCK` queries, whose own mask is then a `Mask`, memory grows with T and not with
  T^2: pieces of so many follow one another, and the mask and the scores of each are computed again
  in the backward pass.
  """
  B, T = queries_BTNH.shape[:2]
  if T <= QUERY_BLOCK:
    return _attend(queries_BTNH, own, prefix)
  assert callable(own.mask), "a whole mask of as many queries grows with T^2"
  mask, pieces = own.mask, -(-T // QUERY_BLOCK)
  queries = jnp.pad(queries_BTNH, [(0, 0), (0, pieces * QUERY_BLOCK - T), (0, 0), (0, 0)])

  @jax.checkpoint
  def piece(start: Array) -> Array:
    some = jax.lax.dynamic_slice_in_dim(queries, start, QUERY_BLOCK, axis=1)
    at = jnp.minimum(start + jnp.arange(QUERY_BLOCK), T - 1)
    # else JAX would make the masks of all pieces once for all layers, as large as the scores are
    at, some = jax.lax.optimization_barrier((at, some))
    return _attend(some, dataclasses.replace(own, mask=mask(at)), prefix)

  mixed = jax.lax.map(piece, QUERY_BLOCK * jnp.arange(pieces))
  return jnp.moveaxis(mixed, 0, 1).reshape(B, -1, mixed.shape[-1])[:, :T]


def _attend(queries_BTNH: Array, own: Block, prefix: Block | None) -> Array:
  B, T, N, H = queries_BTNH.shape
  K = own.keys_BKHS.shape[1]
  scaled = queries_BTNH * jnp.asarray(H**-0.5, queries_BTNH.dtype)
  queries_BKGTH = scaled.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  sums, weights, peaks = _partial(queries_BKGTH, own)
  if prefix is not None:
    P = prefix.keys_BKHS.shape[0]
    grouped = queries_BKGTH.reshape(P, B // P, K, N // K, T, H).transpose(0, 2, 1, 3, 4, 5)
    grouped = grouped.reshape(P, K, -1, T, H)  # rows of all samples of a prompt together
    parts = _partial(grouped, prefix)

    def ungroup(x: Array) -> Array:
      x = x.reshape(P, K, B // P, N // K, *x.shape[3:])
      return jnp.moveaxis(x, 2, 1).reshape(B, K, N // K, *x.shape[4:])

    prefix_sums, prefix_weights, prefix_peaks = (ungroup(x) for x in parts)
    peak = jnp.maximum(peaks, prefix_peaks)
    own_scale, prefix_scale = jnp.exp(peaks - peak), jnp.exp(prefix_peaks - peak)
    sums = sums * own_scale[..., None] + prefix_sums * prefix_scale[..., None]
    weights = weights * own_scale + prefix_weights * prefix_scale
  mixed = sums / jnp.maximum(weights, 1e-30)[..., None]
  return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, N * H).astype(queries_BTNH.dtype)


_HIDDEN = -1e30  # finite, so that a fully hidden row gives zeros and no NaN


def _partial(queries_BKGTH: Array, block: Block) -> tuple[Array, Array, Array]:
  """Unnormalised mix [B, K, G, T, H], its weight and its peak score [B, K, G, T], float32."""
  B, K, G, T, H = queries_BKGTH.shape
  rows = queries_BKGTH.reshape(B, K, G * T, H)
  scores = (rows @ block.keys_BKHS).astype(jnp.float32).reshape(B, K, G, T, -1)
  mask_BTS = block.mask(jnp.arange(T)) if callable(block.mask) else block.mask
  mask = mask_BTS[:, None, None]
  scores = jnp.where(mask, scores, _HIDDEN)
  peaks = jax.lax.stop_gradient(jnp.max(scores, axis=-1))  # cancels in the softmax
  weights = jnp.where(mask, jnp.exp(scores - peaks[..., None]), 0.0)
  mixed = weights.astype(rows.dtype).reshape(B, K, G * T, -1) @ block.values_BKSH
  return mixed.astype(jnp.float32).reshape(B, K, G, T, H), jnp.sum(weights, axis=-1), peaks
