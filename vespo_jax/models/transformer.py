"""The decoder, once: three token layouts (rows, cached rows, groups) share the same block.

Dense layers see tokens flattened to [M, D]; only attention knows the layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from vespo_jax.models import attention
from vespo_jax.models.cache import KVCache
from vespo_jax.models.layers import linear, rms_norm, rotary_angles, rotate, swiglu
from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array, HostArray, Params

# (queries_MNH, keys_MKH, values_MKH) -> mixed [M, N * H]
Attend = Callable[[Array, Array, Array], Array]


def forward(
  params: Params,
  spec: ModelSpec,
  tokens_BT: HostArray,
  positions: HostArray | None = None,
  segments: HostArray | None = None,
  cache: KVCache | None = None,
) -> tuple[Array, Any]:
  """Final hidden states, after the last norm and before the head.

  Args:
    params: as described by `models.params.describe(spec)`; their type is the compute type.
    tokens_BT: int32 ids.
    positions: [B, T] int32 rotary positions; None counts the real tokens of each segment from 0
      (with a cache: on from where the row stands).
    segments: [B, T] int32; 0 is padding, and a token attends only to earlier tokens of its own
      segment, so several sequences can be packed in a row. None: one segment, no padding. With a
      cache, a row is one segment and non-zero means real.
    cache: None to attend within `tokens_BT`; else the tokens are appended to it. There must be
      room: slots beyond the cache's end are not checked here.

  Returns:
    hidden_BTD in the parameters' type (padding positions hold nothing of use), and the extended
    `KVCache`, or None where none was given.
  """
  chex.assert_rank(tokens_BT, 2)
  B, T = tokens_BT.shape
  segments = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments)
  chex.assert_equal_shape([tokens_BT, segments])
  if positions is None:
    start_B = cache.positions_B if cache is not None else jnp.zeros((B,), jnp.int32)
    positions = start_B[:, None] + positions_in_segments(segments)
  positions = jnp.asarray(positions)
  chex.assert_equal_shape([tokens_BT, positions])
  hidden_MD = params["embedding"][tokens_BT.reshape(-1)]
  angles = rotary_angles(positions.reshape(-1), spec.head_width, spec.rope_theta)

  if cache is None:
    same_BTS = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, None, :]
    mask_BTS = same_BTS & jnp.tri(T, dtype=bool)

    def attend(queries_MNH: Array, keys_MKH: Array, values_MKH: Array) -> Array:
      queries, keys, values = (_rows(x, B) for x in (queries_MNH, keys_MKH, values_MKH))
      mixed = attention.attend(queries, attention.block(keys, values, mask_BTS))
      return mixed.reshape(B * T, -1)

    def body(hidden_MD: Array, layer: Params) -> tuple[Array, None]:
      return _block(layer, spec, hidden_MD, angles, attend), None

    hidden_MD, _ = jax.lax.scan(body, hidden_MD, params["layers"])
  else:
    hidden_MD, cache = _cached_layers(params, spec, hidden_MD, angles, segments, cache)
  hidden_MD = rms_norm(hidden_MD, params["final_norm"], spec.norm_epsilon)
  return _rows(hidden_MD, B), cache


def forward_groups(
  params: Params,
  spec: ModelSpec,
  prompt_tokens_PS: HostArray,
  prompt_mask_PS: HostArray,
  response_tokens_PRT: HostArray,
) -> Array:
  """The hidden states that predict each response token, prompts computed once per group.

  Each response attends to its prompt's block and, causally, to itself: the same function as
  `forward` on the R concatenated rows, for about 1 / R of the prompt's work.

  Args:
    prompt_tokens_PS, prompt_mask_PS: padded on the left; the mask is True at real tokens.
    response_tokens_PRT: padded on the right.

  Returns:
    hidden_PRTD: column t predicts response token t (column 0 comes from the last prompt token).
  """
  chex.assert_rank([prompt_tokens_PS, prompt_mask_PS, response_tokens_PRT], [2, 2, 3])
  prompt_mask_PS = jnp.asarray(prompt_mask_PS)
  P, S = prompt_tokens_PS.shape
  R, T = response_tokens_PRT.shape[1:]
  tokens_PJ = jnp.concatenate([prompt_tokens_PS, response_tokens_PRT.reshape(P, R * T)], axis=1)
  prompt_positions_PS = positions_in_segments(prompt_mask_PS.astype(jnp.int32))
  lengths_P = jnp.sum(prompt_mask_PS, axis=1, dtype=jnp.int32)
  response_positions_PT = lengths_P[:, None] + jnp.arange(T, dtype=jnp.int32)
  positions_PJ = jnp.concatenate([prompt_positions_PS, jnp.tile(response_positions_PT, R)], axis=1)
  angles = rotary_angles(positions_PJ.reshape(-1), spec.head_width, spec.rope_theta)
  prompt_mask_PSS = prompt_mask_PS[:, None, :] & jnp.tri(S, dtype=bool)
  causal_1TT = jnp.tri(T, dtype=bool)[None]

  def split(x: Array) -> tuple[Array, Array]:  # [M, ..] -> prompts [P, S, ..], samples [PR, T, ..]
    x = _rows(x, P)
    return x[:, :S], x[:, S:].reshape(P * R, T, *x.shape[2:])

  def attend(queries_MNH: Array, keys_MKH: Array, values_MKH: Array) -> Array:
    prompt_queries, queries = split(queries_MNH)
    prompt_keys, keys = split(keys_MKH)
    prompt_values, values = split(values_MKH)
    prompt = attention.block(prompt_keys, prompt_values, prompt_mask_PSS)
    prefix = dataclasses.replace(prompt, mask=prompt_mask_PS[:, None, :])
    mixed_prompt = attention.attend(prompt_queries, prompt)
    mixed = attention.attend(queries, attention.block(keys, values, causal_1TT), prefix)
    return jnp.concatenate([mixed_prompt, mixed.reshape(P, R * T, -1)], axis=1).reshape(
      P * (S + R * T), -1
    )

  def body(hidden_MD: Array, layer: Params) -> tuple[Array, None]:
    return _block(layer, spec, hidden_MD, angles, attend), None

  hidden_MD, _ = jax.lax.scan(body, params["embedding"][tokens_PJ.reshape(-1)], params["layers"])
  prompt_hidden, hidden = split(hidden_MD)
  first_PR1D = jnp.broadcast_to(prompt_hidden[:, None, -1:], (P, R, 1, hidden.shape[-1]))
  hidden_PRTD = jnp.concatenate([first_PR1D, hidden.reshape(P, R, T, -1)[:, :, :-1]], axis=2)
  return rms_norm(hidden_PRTD, params["final_norm"], spec.norm_epsilon)


def positions_in_segments(segments_BT: Array) -> Array:
  """0, 1, 2, .. over the real tokens of each segment of each row; padding (0) repeats a number."""
  real_BT = segments_BT != 0
  count_BT = jnp.cumsum(real_BT, axis=1, dtype=jnp.int32) - 1
  starts_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
  offset_BT = jax.lax.cummax(jnp.where(starts_BT & real_BT, count_BT, 0), axis=1)
  return jnp.maximum(count_BT - offset_BT, 0)


def _block(
  layer: Params, spec: ModelSpec, hidden_MD: Array, angles: tuple[Array, Array], attend: Attend
) -> Array:
  """One pre-norm transformer block on flattened tokens."""
  M = hidden_MD.shape[0]
  x_MD = rms_norm(hidden_MD, layer["attention_norm"], spec.norm_epsilon)
  queries = linear(x_MD, layer["query"], layer.get("query_bias")).reshape(M, -1, spec.head_width)
  keys = linear(x_MD, layer["key"], layer.get("key_bias")).reshape(M, -1, spec.head_width)
  values = linear(x_MD, layer["value"], layer.get("value_bias")).reshape(M, -1, spec.head_width)
  if spec.qk_norm:
    queries = rms_norm(queries, layer["query_norm"], spec.norm_epsilon)
    keys = rms_norm(keys, layer["key_norm"], spec.norm_epsilon)
  mixed = attend(rotate(queries, angles), rotate(keys, angles), values)
  hidden_MD = hidden_MD + linear(mixed, layer["output"])
  x_MD = rms_norm(hidden_MD, layer["mlp_norm"], spec.norm_epsilon)
  return hidden_MD + swiglu(x_MD, layer)


def _cached_layers(
  params: Params,
  spec: ModelSpec,
  hidden_MD: Array,
  angles: tuple[Array, Array],
  segments_BT: Array,
  cache: KVCache,
) -> tuple[Array, KVCache]:
  """All blocks, with the tokens' keys and values written into the cache in place.

  The stacked cache is the carry of the loop, so that under `jit` each layer writes its T new slots
  and nothing is copied.
  """
  B, T = segments_BT.shape
  mask_BS = jax.lax.dynamic_update_slice(cache.mask_BS, segments_BT != 0, (0, cache.length))
  slots_S = jnp.arange(mask_BS.shape[1])
  causal_TS = slots_S[None, :] <= (cache.length + jnp.arange(T))[:, None]
  own_mask_BTS = mask_BS[:, None, :] & causal_TS

  def body(carry: tuple[Array, Array, Array], inputs: tuple[Params, Array]):
    hidden_MD, keys_LBKHS, values_LBKSH = carry
    layer, l = inputs
    written = []  # the extended caches leave `attend` this way

    def attend(queries_MNH: Array, keys_MKH: Array, values_MKH: Array) -> Array:
      queries, keys, values = (_rows(x, B) for x in (queries_MNH, keys_MKH, values_MKH))
      new = attention.block(keys, values, own_mask_BTS)
      zero = jnp.int32(0)
      all_keys = jax.lax.dynamic_update_slice(
        keys_LBKHS, new.keys_BKHS[None], (l, zero, zero, zero, cache.length)
      )
      all_values = jax.lax.dynamic_update_slice(
        values_LBKSH, new.values_BKSH[None], (l, zero, zero, cache.length, zero)
      )
      written.extend([all_keys, all_values])
      own = attention.Block(all_keys[l], all_values[l], own_mask_BTS)
      prefix = None
      if cache.prefix is not None:
        prefix = attention.Block(
          cache.prefix.keys_LPKHS[l],
          cache.prefix.values_LPKSH[l],
          cache.prefix.mask_PS[:, None, :],
        )
      return attention.attend(queries, own, prefix).reshape(B * T, -1)

    hidden_MD = _block(layer, spec, hidden_MD, angles, attend)
    return (hidden_MD, *written), None

  (hidden_MD, keys_LBKHS, values_LBKSH), _ = jax.lax.scan(
    body,
    (hidden_MD, cache.keys_LBKHS, cache.values_LBKSH),
    (params["layers"], jnp.arange(spec.layers)),
  )
  new_positions_B = cache.positions_B + jnp.sum(segments_BT != 0, axis=1, dtype=jnp.int32)
  return hidden_MD, dataclasses.replace(
    cache,
    keys_LBKHS=keys_LBKHS,
    values_LBKSH=values_LBKSH,
    mask_BS=mask_BS,
    positions_B=new_positions_B,
    length=cache.length + T,
  )


def _rows(x: Array, rows: int) -> Array:
  return x.reshape(rows, -1, *x.shape[1:])
