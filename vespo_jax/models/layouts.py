"""Attention of the two layouts of training, rows and groups, by the implementation that is named.

Tokens come flattened to [M]: B rows of T, or P groups of J = S + R * T, each its prompt, then its R
samples. Spread over `sequence`, a device has some tokens of every prompt and every sample.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vespo_jax.models import attention, partition, ring
from vespo_jax.models.compute import Compute
from vespo_jax.types import Array

# (queries_MNH, keys_MKH, values_MKH) -> mixed [M, N * H]
Attend = Callable[[Array, Array, Array], Array]


def of_rows(segments_BT: Array, compute: Compute) -> Attend:
  """Causal attention within the segments of each row; see `transformer.forward_routed`."""
  B, T = segments_BT.shape
  if compute.attention != "dense":
    mix = _fused(compute.attention, segments_BT, T)
    return lambda *arrays: mix(*(rows(x, B) for x in arrays)).reshape(B * T, -1)

  def visible(queries_t: Array) -> Array:
    same_BtS = segments_BT[:, queries_t, None] == segments_BT[:, None, :]
    return same_BtS & (segments_BT != 0)[:, None, :] & causal(queries_t, T)

  mask = attention.mask_of(visible, T)

  def attend(*arrays: Array) -> Array:
    queries, keys, values = (rows(x, B) for x in arrays)
    mixed = attention.attend(queries, attention.block(keys, values, mask))
    return mixed.reshape(B * T, -1)

  return attend


def of_groups(mask_PS: Array, samples: int, width: int, compute: Compute) -> Attend:
  """Attention of R samples, so wide on this device, to themselves, causally, and to their prompts.

  Args:
    mask_PS: bool, True at real tokens of whole prompts, which are padded on the left.

  Several devices along `sequence` gather a layer's keys and values while these are at most
  `compute.gathered_mb` on each, and send them round otherwise.
  """
  P, whole = mask_PS.shape
  parts = partition.size("sequence")
  S, R, T = whole // parts, samples, width
  if compute.attention != "dense":
    segments_PJ = jnp.pad(mask_PS.astype(jnp.int32), [(0, 0), (0, R * T)], constant_values=1)
    mix = _fused(compute.attention, segments_PJ, S, R, T)
    return lambda *arrays: mix(*(rows(x, P) for x in arrays)).reshape(P * (S + R * T), -1)
  place = partition.index("sequence")

  def visible(queries_t: Array, width: int) -> Array:
    return causal(place * width + queries_t, width * parts)[None]

  own_mask = attention.mask_of(functools.partial(visible, width=T), T)
  prompt_mask = attention.mask_of(lambda at: mask_PS[:, None, :] & visible(at, S), S)

  def attend(queries_MNH: Array, keys_MKH: Array, values_MKH: Array) -> Array:
    gathered_bytes = (keys_MKH.nbytes + values_MKH.nbytes) * parts
    if parts > 1 and gathered_bytes > compute.gathered_mb * 2**20:
      in_parts = (split(x, P, S, T) for x in (queries_MNH, keys_MKH, values_MKH))
      prompts, samples = zip(*in_parts, strict=True)
      return join(*ring.attend(prompts, samples, mask_PS))
    prompt_queries, queries = split(queries_MNH, P, S, T)
    gathered = lambda x: partition.gather(x, "sequence", 1)
    prompt_keys, keys = map(gathered, split(keys_MKH, P, S, T))
    prompt_values, values = map(gathered, split(values_MKH, P, S, T))
    prompt = attention.block(prompt_keys, prompt_values, prompt_mask)
    prefix = dataclasses.replace(prompt, mask=mask_PS[:, None, :])
    mixed_prompt = attention.attend(prompt_queries, prompt)
    mixed = attention.attend(queries, attention.block(keys, values, own_mask), prefix)
    return join(mixed_prompt, mixed)

  return attend


def _fused(name: str, segments_BJ: Array, *tree: int) -> Callable[..., Array]:
  """A fused kernel for rows that are `fused.Tree(*tree)`; as XLA cannot divide it over a mesh that
  the caller is not spread over, here it is: by rows, if these divide, and by heads."""
  from vespo_jax.models import fused  # what it imports takes a while

  make = lambda segments: getattr(fused, name)(fused.Tree(*tree), segments)
  mesh = partition.current_mesh()
  if mesh is None:
    return make(segments_BJ)
  by_row = None if len(segments_BJ) % partition.devices(mesh) else partition.BATCH_AXES
  heads = PartitionSpec(by_row, None, "tensor")
  local = lambda segments, *arrays: make(segments)(*arrays)
  mix = partition.spread(local, mesh, (PartitionSpec(by_row), heads, heads, heads), heads)
  return lambda *arrays: mix(segments_BJ, *arrays)


def causal(queries_t: Array, slots: int) -> Array:
  """bool [t, S]: True where the query at a place may look at a slot, its own or one before."""
  return jnp.arange(slots) <= queries_t[:, None]


def rows(x_M: Array, count: int) -> Array:
  """[M, ..] -> [count, M / count, ..]."""
  return x_M.reshape(count, -1, *x_M.shape[1:])


def split(x_M: Array, prompts: int, S: int, T: int) -> tuple[Array, Array]:
  """[M, ..] -> prompts [P, S, ..] and samples [P * R, T, ..]."""
  x_PJ = rows(x_M, prompts)
  return x_PJ[:, :S], x_PJ[:, S:].reshape(-1, T, *x_PJ.shape[2:])


def join(prompts_PSX: Array, samples_BTX: Array) -> Array:
  """The inverse of `split`: [M, X]."""
  P, _, X = prompts_PSX.shape
  return jnp.concatenate([prompts_PSX, samples_BTX.reshape(P, -1, X)], axis=1).reshape(-1, X)
