"""Attention of the newest token of each row to its cache, by kernels of an accelerator's own.

They read a row only as far as its tokens go, in pieces, and write no scores to memory. Keys and
values are both [B, K, S, H]: a row of a key/value head is one piece of memory, and to a kernel
every one of the B * K is a sequence with one key/value head.

    flash   flash-decoding on GPU (Triton): the pieces of a sequence are attended to in parallel,
            then merged. Source: Dao et al. (2023), "Flash-Decoding for long-context inference"
    paged   paged attention on TPU; a row's pages lie one after another. JAX's kernel rounds keys
            and values to bfloat16, whatever the cache has
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.types import Array

PAGE = 128  # slots; the slots of a cache are a multiple
_SPLITS = (16, 8, 4, 2, 1)  # pieces of a sequence, and pages read at a time: the most that divide


def attend(
  kernel: str, queries_BNH: Array, keys_BKSH: Array, values_BKSH: Array, lengths_B: Array
) -> Array:
  """softmax(q k / sqrt(H)) v over the first slots of each row, [B, N, H] in the queries' type.

  Args:
    kernel: `flash` or `paged`.
    lengths_B: int32, how many slots of each row; at least 1.

  Sums are float32. Not differentiable. Raises ValueError if S is not a multiple of `PAGE`.
  """
  B, K, S, H = keys_BKSH.shape
  if S % PAGE:
    raise ValueError(f"a cache for attention {kernel!r} has a multiple of {PAGE} slots, not {S}")
  queries = queries_BNH.reshape(B * K, -1, H)
  lengths = jnp.repeat(jnp.minimum(lengths_B, S), K)
  pages = S // PAGE
  pieces = next(n for n in _SPLITS if pages % n == 0)
  if kernel == "flash":
    from jax.experimental.pallas.ops.gpu import decode_attention  # for GPU alone

    keys, values = (x.reshape(B * K, S, H) for x in (keys_BKSH, values_BKSH))
    mixed = decode_attention.mqa(
      queries, keys, values, kv_seq_len=lengths, k_splits=pieces, block_k=PAGE
    )
  else:
    from jax.experimental.pallas.ops.tpu import paged_attention  # for TPU alone

    keys, values = (x.reshape(1, B * K * pages, PAGE, H) for x in (keys_BKSH, values_BKSH))
    mixed = paged_attention.paged_attention(
      queries * jnp.asarray(H**-0.5, queries.dtype),
      keys,
      values,
      lengths,
      jnp.arange(B * K * pages, dtype=jnp.int32).reshape(B * K, pages),
      pages_per_compute_block=pieces,
    )
  return mixed.astype(queries_BNH.dtype).reshape(queries_BNH.shape)
