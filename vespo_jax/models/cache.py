"""The key/value cache of generation: an own block per row, and the shared prompt block."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp

from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array


@flax.struct.dataclass
class Prefix:
  """The finished prompt blocks: keys_LPKHS, values_LPKSH, mask_PS (bool, True at real tokens)."""

  keys_LPKHS: Array
  values_LPKSH: Array
  mask_PS: Array


@flax.struct.dataclass
class KVCache:
  """What `forward` reads and extends.

  Attributes:
    keys_LBKHS, values_LBKSH: the own blocks; slots from `length` on are unused.
    mask_BS: bool, True at slots that hold a real token.
    positions_B: int32, the rotary position the next token of each row gets by default.
    length: int32 scalar, the next slot to write, the same for all rows.
    prefix: prompt blocks shared by B / P consecutive rows each, or None.
  """

  keys_LBKHS: Array
  values_LBKSH: Array
  mask_BS: Array
  positions_B: Array
  length: Array
  prefix: Prefix | None = None


def init_cache(spec: ModelSpec, batch: int, slots: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
  """An empty cache of `slots` tokens for each of `batch` rows."""
  L, K, H = spec.layers, spec.kv_heads, spec.head_width
  return KVCache(
    keys_LBKHS=jnp.zeros((L, batch, K, H, slots), dtype),
    values_LBKSH=jnp.zeros((L, batch, K, slots, H), dtype),
    mask_BS=jnp.zeros((batch, slots), bool),
    positions_B=jnp.zeros((batch,), jnp.int32),
    length=jnp.int32(0),
  )


def fork(cache: KVCache, spec: ModelSpec, samples: int, slots: int) -> KVCache:
  """A cache for `samples` continuations of each row, which share the row's tokens as a prefix.

  Nothing is copied but positions: the own blocks of `cache` (which must have no prefix of its own)
  become the prefix, and each of the B * samples rows gets `slots` empty slots.
  """
  if cache.prefix is not None:
    raise ValueError("a cache that already has a prefix cannot be forked")
  rows = cache.positions_B.shape[0] * samples
  empty = init_cache(spec, rows, slots, cache.keys_LBKHS.dtype)
  return dataclasses.replace(
    empty,
    positions_B=jnp.repeat(cache.positions_B, samples),
    prefix=Prefix(cache.keys_LBKHS, cache.values_LBKSH, cache.mask_BS),
  )
