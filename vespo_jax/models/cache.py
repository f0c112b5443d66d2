"""The key/value cache of generation: rows that are each as long as they are."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array


@flax.struct.dataclass
class KVCache:
  """What `forward` reads and extends.

  Attributes:
    keys_LBKHS, values_LBKSH: the tokens of row b are in its slots 0, 1, .. without a gap; slots
      from its length on hold nothing of use.
    lengths_B: int32, the tokens of each row: slot and rotary position of its next one.
  """

  keys_LBKHS: Array
  values_LBKSH: Array
  lengths_B: Array


def init_cache(spec: ModelSpec, batch: int, slots: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
  """An empty cache of `slots` tokens for each of `batch` rows."""
  L, K, H = spec.layers, spec.kv_heads, spec.head_width
  return KVCache(
    keys_LBKHS=jnp.zeros((L, batch, K, H, slots), dtype),
    values_LBKSH=jnp.zeros((L, batch, K, slots, H), dtype),
    lengths_B=jnp.zeros((batch,), jnp.int32),
  )


def copy_rows(
  cache: KVCache, source: KVCache, source_rows_I: Array, rows_I: Array, count: Array
) -> KVCache:
  """The cache with row `rows_I[i]` holding what row `source_rows_I[i]` of `source` does, i < count.

  `count` is a scalar array, so that one program copies any number of rows; under `jit` with `cache`
  donated nothing else moves. Rows of the source must be no longer than the cache has slots.
  """
  slots = min(cache.keys_LBKHS.shape[-1], source.keys_LBKHS.shape[-1])
  source_keys, source_values = source.keys_LBKHS[..., :slots], source.values_LBKSH[..., :slots, :]

  def copy(i: Array, cache: KVCache) -> KVCache:
    def put(into: Array, rows: Array) -> Array:
      row = jax.lax.dynamic_slice_in_dim(rows, source_rows_I[i], 1, axis=1)
      return jax.lax.dynamic_update_slice(into, row, (0, rows_I[i], 0, 0, 0))

    return dataclasses.replace(
      cache,
      keys_LBKHS=put(cache.keys_LBKHS, source_keys),
      values_LBKSH=put(cache.values_LBKSH, source_values),
      lengths_B=cache.lengths_B.at[rows_I[i]].set(source.lengths_B[source_rows_I[i]]),
    )

  return jax.lax.fori_loop(0, count, copy, cache)
