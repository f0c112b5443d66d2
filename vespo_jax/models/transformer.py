"""The decoder, once: three token layouts (rows, cached rows, groups) share the same block.

Dense layers see tokens flattened to [M, D]; only attention knows the layout. Over several devices
(`partition.spread`) the residual stream [M, D] is spread by tokens over `tensor` too, and the dense
layers see all M tokens and their own heads or columns.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from vespo_jax.models import attention, cached_attention, layouts, partition
from vespo_jax.models.cache import KVCache, put
from vespo_jax.models.compute import PLAIN, REMAT, Compute
from vespo_jax.models.layers import linear, rms_norm, rotary_angles, rotate, swiglu
from vespo_jax.models.layouts import Attend, rows, split
from vespo_jax.models.moe import Routing, mixture
from vespo_jax.models.params import unstack
from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array, HostArray, Params

# Up to so many layers, none is a step of a loop: what the backward pass keeps of each is then not
# copied into a stack and out of it again, for a program whose compilation takes as much longer.
UNROLLED = 8

_KEEP_BUT_GATHERED = jax.checkpoint_policies.save_anything_except_these_names(partition.GATHERED)


def forward(
  params: Params,
  spec: ModelSpec,
  tokens_BT: HostArray,
  positions: HostArray | None = None,
  segments: HostArray | None = None,
  cache: KVCache | None = None,
) -> tuple[Array, Any]:
  """Final hidden states and the extended cache: `forward_routed` without what the routers did."""
  return forward_routed(params, spec, tokens_BT, positions, segments, cache)[:2]


def forward_routed(
  params: Params,
  spec: ModelSpec,
  tokens_BT: HostArray,
  positions: HostArray | None = None,
  segments: HostArray | None = None,
  cache: KVCache | None = None,
  expert_ids_LMA: Array | None = None,
  compute: Compute = PLAIN,
  angles: tuple[Array, Array] | None = None,
) -> tuple[Array, Any, Routing | None]:
  """Final hidden states, after the last norm and before the head.

  Args:
    params: as described by `models.params.describe(spec)`, or with a cache as `unstack` has them;
      their type is the compute type.
    tokens_BT: int32 ids.
    positions: [B, T] int32 rotary positions; None counts the real tokens of each segment from 0
      (with a cache: on from the row's length).
    segments: [B, T] int32; 0 is padding, and a token attends only to earlier tokens of its own
      segment, so several sequences can be packed in a row. None: one segment, no padding. With a
      cache, a row is one segment, non-zero means real, and padding follows the real tokens.
    cache: None to attend within `tokens_BT`; else the real tokens are appended to it, each row at
      its own length. There must be room: what goes beyond the cache's end is lost.
    expert_ids_LMA: int32 router choices to replay, M = B * T; None lets the routers choose.
    compute: how, without a cache.
    angles: `rotary_angles` of the positions, for a caller who has them; None: computed here.

  Returns:
    hidden_BTD in the parameters' type (padding positions hold nothing of use); the extended
    `KVCache`, or None where none was given; and the `Routing`, or None of a dense model. Spread
    over `tensor`, the cache is that of this device's key/value heads, and B * T divides.
  """
  chex.assert_rank(tokens_BT, 2)
  B, T = tokens_BT.shape
  segments = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments)
  chex.assert_equal_shape([tokens_BT, segments])
  if positions is None:
    start_B = cache.lengths_B if cache is not None else jnp.zeros((B,), jnp.int32)
    positions = start_B[:, None] + positions_in_segments(segments)
  positions = jnp.asarray(positions)
  chex.assert_equal_shape([tokens_BT, positions])
  hidden_MD = embed(params, tokens_BT.reshape(-1))
  angles = rotary_angles(positions.reshape(-1), spec) if angles is None else angles

  if cache is None:
    attend = layouts.of_rows(segments, compute)
    hidden_MD, routing = _layers(
      params, spec, hidden_MD, angles, attend, (segments != 0).reshape(-1), expert_ids_LMA, compute
    )
  else:
    hidden_MD, cache, routing = _cached_layers(
      params, spec, hidden_MD, angles, segments, cache, expert_ids_LMA
    )
  hidden_MD = rms_norm(hidden_MD, params["final_norm"], spec.norm_epsilon)
  return rows(partition.gather(hidden_MD, "tensor", 0), B), cache, routing


def forward_groups(
  params: Params,
  spec: ModelSpec,
  prompt_tokens_PS: HostArray,
  prompt_mask_PS: HostArray,
  response_tokens_PRT: HostArray,
  response_mask_PRT: HostArray,
  expert_ids_LMA: Array | None = None,
  compute: Compute = PLAIN,
) -> tuple[Array, Routing | None]:
  """The hidden states of each response token's predecessor, prompts computed once per group.

  Each response attends to its prompt's block and, causally, to itself: the same function as
  `forward` on the R concatenated rows, for about 1 / R of the prompt's work.

  Args:
    prompt_tokens_PS, prompt_mask_PS: padded on the left; the mask is True at real tokens.
    response_tokens_PRT, response_mask_PRT: padded on the right; the mask only says which tokens
      count in the routing's statistics.
    expert_ids_LMA: int32 router choices to replay, M = P * (S + R * T), each group's prompt first;
      None lets the routers choose.
    compute: how.

  Returns:
    hidden_PRTD: column t predicts response token t (column 0 comes from the last prompt token);
    and the `Routing`, or None of a dense model. Spread over devices, S and T are those of this one,
    and so is what is returned; sums of the routing are whole.
  """
  chex.assert_rank([prompt_tokens_PS, prompt_mask_PS, response_tokens_PRT], [2, 2, 3])
  prompt_mask_PS = jnp.asarray(prompt_mask_PS)
  P, S = prompt_tokens_PS.shape
  R, T = response_tokens_PRT.shape[1:]
  tokens_PJ = jnp.concatenate([prompt_tokens_PS, response_tokens_PRT.reshape(P, R * T)], axis=1)
  whole_mask_PS = partition.gather(prompt_mask_PS, "sequence", 1)
  place = partition.index("sequence")
  mine = lambda x, width: jax.lax.dynamic_slice_in_dim(x, place * width, width, axis=1)
  prompt_positions_PS = mine(positions_in_segments(whole_mask_PS.astype(jnp.int32)), S)
  lengths_P = jnp.sum(whole_mask_PS, axis=1, dtype=jnp.int32)
  response_positions_PT = lengths_P[:, None] + place * T + jnp.arange(T, dtype=jnp.int32)
  positions_PJ = jnp.concatenate([prompt_positions_PS, jnp.tile(response_positions_PT, R)], axis=1)
  angles = rotary_angles(positions_PJ.reshape(-1), spec)
  attend = layouts.of_groups(whole_mask_PS, R, T, compute)
  real_PJ = jnp.concatenate([prompt_mask_PS, response_mask_PRT.reshape(P, R * T)], axis=1)
  hidden_MD, routing = _layers(
    params,
    spec,
    embed(params, tokens_PJ.reshape(-1)),
    angles,
    attend,
    real_PJ.reshape(-1),
    expert_ids_LMA,
    compute,
  )
  prompt_hidden, hidden = split(partition.gather(hidden_MD, "tensor", 0), P, S, T)
  hidden_PRTD = hidden.reshape(P, R, T, -1)
  first_P1D = partition.from_last(prompt_hidden[:, -1:], "sequence")
  before_PR1D = partition.from_previous(hidden_PRTD[:, :, -1:], "sequence")
  before_PR1D = jnp.where(place == 0, first_P1D[:, None], before_PR1D)
  hidden_PRTD = jnp.concatenate([before_PR1D, hidden_PRTD[:, :, :-1]], axis=2)
  final_norm = partition.gather(params["final_norm"], "fsdp", 0)
  return rms_norm(hidden_PRTD, final_norm, spec.norm_epsilon), routing


def embed(params: Params, tokens_M: HostArray) -> Array:
  """The embedding of every token; over several devices each has the rows of some of them, and
  returns [M / tensor, D]."""
  table_VD = partition.gather(params["embedding"], "fsdp", 1)
  if partition.size("tensor") == 1:
    return table_VD[tokens_M]
  rows = jnp.asarray(tokens_M) - partition.index("tensor") * len(table_VD)
  mine_M1 = ((rows >= 0) & (rows < len(table_VD)))[:, None]
  hidden_MD = jnp.where(mine_M1, table_VD[jnp.clip(rows, 0, len(table_VD) - 1)], 0)
  return partition.add_and_scatter(hidden_MD, "tensor", 0)


def positions_in_segments(segments_BT: Array) -> Array:
  """0, 1, 2, .. over the real tokens of each segment of each row; padding (0) repeats a number."""
  real_BT = segments_BT != 0
  count_BT = jnp.cumsum(real_BT, axis=1, dtype=jnp.int32) - 1
  starts_BT = real_BT & (previous_in_segment(segments_BT) < 0)
  offset_BT = jax.lax.cummax(jnp.where(starts_BT, count_BT, 0), axis=1)
  return jnp.maximum(count_BT - offset_BT, 0)


def previous_in_segment(segments_BT: Array) -> Array:
  """int32 [B, T]: the column of the real token before each one, padding between them left out; -1
  of the first token of a segment and of padding."""
  real_BT = segments_BT != 0
  columns_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
  last_BT = jax.lax.cummax(jnp.where(real_BT, columns_T, -1), axis=1)
  before_BT = jnp.pad(last_BT[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
  its_BT = jnp.take_along_axis(segments_BT, jnp.maximum(before_BT, 0), axis=1)
  return jnp.where(real_BT & (its_BT == segments_BT), before_BT, -1)


def _layers(
  params: Params,
  spec: ModelSpec,
  hidden_MD: Array,
  angles: tuple[Array, Array],
  attend: Attend,
  real_M: Array,
  expert_ids_LMA: Array | None,
  compute: Compute,
) -> tuple[Array, Routing | None]:
  """All blocks, without a cache."""

  def body(hidden_MD: Array, inputs: tuple[Params, Array | None]):
    layer, expert_ids_MA = inputs
    layer = partition.gather_layer(layer, spec)
    return _block(layer, spec, hidden_MD, angles, attend, real_M, expert_ids_MA)

  body = REMAT[compute.remat](body)
  if compute.remat == "none" and partition.size("fsdp") > 1:
    body = jax.checkpoint(body, policy=_KEEP_BUT_GATHERED)
  unroll = spec.layers if spec.layers <= UNROLLED else 1
  return jax.lax.scan(body, hidden_MD, (params["layers"], expert_ids_LMA), unroll=unroll)


def _block(
  layer: Params,
  spec: ModelSpec,
  hidden_MD: Array,
  angles: tuple[Array, Array],
  attend: Attend,
  real_M: Array,
  expert_ids_MA: Array | None,
) -> tuple[Array, Routing | None]:
  """One pre-norm transformer block on flattened tokens, and what its router did, if it has one."""
  whole = lambda x: partition.gather(x, "tensor", 0)  # all tokens, before this device's columns
  x_MD = whole(rms_norm(hidden_MD, layer["attention_norm"], spec.norm_epsilon))
  M = len(x_MD)
  queries = linear(x_MD, layer["query"], layer.get("query_bias")).reshape(M, -1, spec.head_width)
  keys = linear(x_MD, layer["key"], layer.get("key_bias")).reshape(M, -1, spec.head_width)
  values = linear(x_MD, layer["value"], layer.get("value_bias")).reshape(M, -1, spec.head_width)
  if spec.qk_norm:
    queries = rms_norm(queries, layer["query_norm"], spec.norm_epsilon)
    keys = rms_norm(keys, layer["key_norm"], spec.norm_epsilon)
  mixed = attend(rotate(queries, angles), rotate(keys, angles), values)
  hidden_MD = hidden_MD + partition.add_and_scatter(linear(mixed, layer["output"]), "tensor", 0)
  x_MD = whole(rms_norm(hidden_MD, layer["mlp_norm"], spec.norm_epsilon))
  routing = None
  if spec.experts:
    mixed_MD, routing = mixture(x_MD, layer, spec, real_M, expert_ids_MA)
  else:
    mixed_MD = swiglu(x_MD, layer)
  return hidden_MD + partition.add_and_scatter(mixed_MD, "tensor", 0), routing


def _cached_layers(
  params: Params,
  spec: ModelSpec,
  hidden_MD: Array,
  angles: tuple[Array, Array],
  segments_BT: Array,
  cache: KVCache,
  expert_ids_LMA: Array | None,
) -> tuple[Array, KVCache, Routing | None]:
  """All blocks; the tokens' keys and values are written to the cache, which they then attend to.

  Under `jit` with the cache in a loop's carry, or donated, that is in place.
  """
  B, T = segments_BT.shape
  real_BT = segments_BT != 0
  slots_BT = cache.lengths_B[:, None] + jnp.arange(T)  # padding comes after what may be looked at
  seen = lambda queries_t: jnp.arange(cache.slots) <= slots_BT[:, queries_t, None]
  mask = attention.mask_of(seen, T)
  kernel = None if cache.attention == "dense" else cache.attention
  extended = []
  routings = []
  for l, layer in enumerate(unstack(params)["layers"]):

    def attend(queries_MNH: Array, keys_MKH: Array, values_MKH: Array, l: int = l) -> Array:
      queries, keys, values = (rows(x, B) for x in (queries_MNH, keys_MKH, values_MKH))
      keys = put(cache.keys[l], keys, slots_BT, 2 if kernel else 3)
      values = put(cache.values[l], values, slots_BT, 2)
      extended.append((keys, values))
      if kernel and T == 1:
        lengths_B = slots_BT[:, 0] + 1
        mixed = cached_attention.attend(kernel, queries[:, 0], keys, values, lengths_B)
      else:
        keys = jnp.swapaxes(keys, 2, 3) if kernel else keys
        mixed = attention.attend(queries, attention.Block(keys, values, mask))
      return mixed.reshape(B * T, -1)

    hidden_MD, routing = _block(
      layer,
      spec,
      hidden_MD,
      angles,
      attend,
      real_BT.reshape(-1),
      None if expert_ids_LMA is None else expert_ids_LMA[l],
    )
    routings.append(routing)
  keys, values = zip(*extended, strict=True)
  lengths_B = cache.lengths_B + jnp.sum(real_BT, axis=1, dtype=jnp.int32)
  stacked = None if routings[0] is None else jax.tree.map(lambda *x: jnp.stack(x), *routings)
  return hidden_MD, KVCache(keys, values, lengths_B, cache.attention), stacked
