"""The key/value cache of generation: rows that are each as long as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.models import partition
from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array


@flax.struct.dataclass
class KVCache:
  """What `forward` reads and extends.

  Attributes:
    keys, values: an array of each layer, [B, K, H, S] and [B, K, S, H]: both products of attention
      are plain ones, and a layer is no slice of anything that would have to be copied. The tokens
      of row b are in its slots 0, 1, .. without a gap; slots from its length on hold nothing of
      use.
    lengths_B: int32, the tokens of each row: slot and rotary position of its next one.
    attention: one of `DECODE_ATTENTION`: what attends to it. To kernels, keys are [B, K, S, H] too.
  """

  keys: tuple[Array, ...]
  values: tuple[Array, ...]
  lengths_B: Array
  attention: str = flax.struct.field(pytree_node=False, default="dense")

  @property
  def slots(self) -> int:
    """S."""
    return self.values[0].shape[2]


def init_cache(
  spec: ModelSpec,
  batch: int,
  slots: int,
  dtype: jnp.dtype = jnp.float32,
  attention: str = "dense",
) -> KVCache:
  """An empty cache of `slots` tokens for each of `batch` rows, for one of `DECODE_ATTENTION`; in a
  function that is spread over devices, of this one's key/value heads."""
  K, H, layers = spec.kv_heads // partition.size("tensor"), spec.head_width, range(spec.layers)
  return KVCache(
    keys=tuple(
      jnp.zeros((batch, K, H, slots) if attention == "dense" else (batch, K, slots, H), dtype)
      for _ in layers
    ),
    values=tuple(jnp.zeros((batch, K, slots, H), dtype) for _ in layers),
    lengths_B=jnp.zeros((batch,), jnp.int32),
    attention=attention,
  )


def put(cache: Array, new_BTKH: Array, slots_BT: Array, slot_axis: int) -> Array:
  """A layer's keys or values with new ones in their slots; those beyond its end are lost.

  Head by head, so that what is written is a vector of H, and the order of the other axes is free:
  by whole tokens, a TPU's compiler keeps the cache in an order of its own for writing, and copies
  all of it for reading, every step.

  Args:
    cache: [B, K, S, H], or [B, K, H, S].
    slot_axis: where S is: 2 or 3.
  """
  B, K, *rest = cache.shape
  heads_I1 = jnp.arange(B * K)[:, None]
  slots_IT = jnp.repeat(slots_BT, K, axis=0)
  new_ITH = jnp.swapaxes(new_BTKH, 1, 2).reshape(B * K, slots_BT.shape[1], -1)
  at = (heads_I1, slots_IT) if slot_axis == 2 else (heads_I1, slice(None), slots_IT)

  def write(flat: Array, new_ITH: Array) -> Array:
    return flat.at[at].set(new_ITH, mode="drop", unique_indices=True)

  return _in_place(write, cache.reshape(B * K, *rest), new_ITH).reshape(cache.shape)


def copy_rows(
  cache: KVCache, source: KVCache, source_rows_I: Array, rows_I: Array, count: Array
) -> KVCache:
  """The cache with row `rows_I[i]` holding what row `source_rows_I[i]` of `source` does, i < count.

  `count` is a scalar array, so that one program copies any number of rows; under `jit` with `cache`
  donated nothing else moves. Rows of the source must be no longer than the cache has slots.
  """
  slots = min(cache.slots, source.slots)
  axis = 3 if source.attention == "dense" else 2
  source = dataclasses.replace(
    source,
    keys=tuple(jax.lax.slice_in_dim(keys, 0, slots, axis=axis) for keys in source.keys),
    values=tuple(values[..., :slots, :] for values in source.values),
  )

  def copy(i: Array, cache: KVCache) -> KVCache:
    def put(into: Array, rows: Array) -> Array:
      row = jax.lax.dynamic_slice_in_dim(rows, source_rows_I[i], 1)
      at = (rows_I[i], *(0,) * (into.ndim - 1))
      return _in_place(lambda into, row: jax.lax.dynamic_update_slice(into, row, at), into, row)

    return jax.tree.map(put, cache, source)

  return jax.lax.fori_loop(0, count, copy, cache)


def _in_place(write: Callable[[Array, Array], Array], into: Array, new: Array) -> Array:
  """`write(into, new)`, of the bits where a CPU writes bfloat16: XLA makes all of `into` float32
  there, and bfloat16 again, for every write. Of bits it makes one copy for a scatter, else none."""
  new = new.astype(into.dtype)
  if into.dtype != jnp.bfloat16:
    return write(into, new)

  def write_bits(into: Array, new: Array) -> Array:
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (into, new))
    return jax.lax.bitcast_convert_type(write(*bits), jnp.bfloat16)

  return jax.lax.platform_dependent(into, new, cpu=write_bits, default=write)
