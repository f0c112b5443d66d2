"""Attention by fused kernels, of rows that are trees: a prompt, then samples that share it.

Scores are never written to memory, and neither kernel gives out a log-sum-exp that can be
differentiated, so a tree is not attended to in two blocks as in `attention`. Instead

    splash   has the tree as its static mask, of which it visits only what is not empty: the prompt
             is computed once, and no sample looks at another
    cudnn    knows causal rows alone: every sample becomes a row with the prompt before it, for the
             attention only, so that the prompt's own is computed once for each sample

Both sum in float32 whatever the type of their arguments.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash_lib

from vespo_jax.types import Array

# (queries_BJNH, keys_BJKH, values_BJKH) -> mixed_BJNH
Attend = Callable[[Array, Array, Array], Array]

_LANES = 128  # of a TPU's vector unit: blocks of the mask are multiples of it
_BLOCKS = (512, 256, _LANES)


@dataclasses.dataclass(frozen=True)
class Tree:
  """A row of J = prompt + samples * response tokens: who may look at whom, padding aside.

  A prompt token looks at those before it; a sample's token at the whole prompt and, of its own
  sample, at those before it. Without samples it is a causal row.
  """

  prompt: int
  samples: int = 0
  response: int = 0

  @property
  def tokens(self) -> int:
    """J."""
    return self.prompt + self.samples * self.response

  def sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """bool: whether each query's place may look at each key's, by broadcasting."""
    sample = lambda places: (places - self.prompt) // max(self.response, 1)
    shared = (keys < self.prompt) | (sample(keys) == sample(queries))
    return (keys <= queries) & shared


def cudnn(tree: Tree, segments_BJ: Array) -> Attend:
  """cuDNN's attention, through `jax.nn.dot_product_attention`; arguments as `splash`.

  Packed rows have a mask of [B, 1, J, J] besides; groups have none.
  """
  S, R, T = tree.prompt, tree.samples, tree.response
  if not R:
    mask_B1JJ = (segments_BJ[:, :, None] == segments_BJ[:, None, :])[:, None]
    return functools.partial(_causal_by_cudnn, mask_B1JJ=mask_B1JJ)
  padding_P = jnp.sum(segments_BJ[:, :S] == 0, axis=1)  # which stands on the left

  def shift(x_PRJNH: Array, places_P: Array) -> Array:
    return jax.vmap(lambda x, places: jnp.roll(x, places, axis=1))(x_PRJNH, places_P)

  def mix(*arrays: Array) -> Array:
    rows = []
    for x in arrays:
      P, _, N, H = x.shape
      prompt = jnp.broadcast_to(x[:, None, :S], (P, R, S, N, H))
      x = jnp.concatenate([prompt, x[:, S:].reshape(P, R, T, N, H)], axis=2)
      rows.append(shift(x, -padding_P).reshape(P * R, S + T, N, H))  # padding comes last
    mixed = shift(_causal_by_cudnn(*rows).reshape(P, R, S + T, *arrays[0].shape[2:]), padding_P)
    return jnp.concatenate([mixed[:, 0, :S], mixed[:, :, S:].reshape(P, R * T, -1, H)], axis=1)

  return mix


def _causal_by_cudnn(
  queries: Array, keys: Array, values: Array, mask_B1JJ: Array | None = None
) -> Array:
  odd = queries.shape[1] % 2  # backward it takes rows of even length
  pad = lambda x: jnp.pad(x, [(0, 0), (0, odd), (0, 0), (0, 0)])
  if mask_B1JJ is not None:
    mask_B1JJ = jnp.pad(mask_B1JJ, [(0, 0), (0, 0), (0, odd), (0, odd)], constant_values=True)
  mixed = jax.nn.dot_product_attention(
    pad(queries), pad(keys), pad(values), mask=mask_B1JJ, is_causal=True, implementation="cudnn"
  )
  return mixed[:, : queries.shape[1]]


def splash(tree: Tree, segments_BJ: Array) -> Attend:
  """Splash attention, of JAX's Pallas kernels for TPU.

  Args:
    tree: of every row.
    segments_BJ: int32; a token looks only at those of its own segment. In groups 0 is the padding
      on the left of prompts, all else 1; in rows as in `transformer.forward_routed`. What padding
      gets is of no use.
  """
  even = _even(tree)
  segments_BJ = _spaced(segments_BJ, tree, even)
  segment_ids = splash_lib.SegmentIds(segments_BJ, segments_BJ)
  block = next(b for b in _BLOCKS if not (even.prompt % b or even.response % b))
  sizes = splash_lib.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )

  def mix(queries: Array, keys: Array, values: Array) -> Array:
    N, H = queries.shape[2:]
    masks = splash_lib.MultiHeadMask([_TreeMask(even)] * N)
    kernel = splash_lib.make_splash_mha(masks, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    queries = queries * jnp.asarray(H**-0.5, queries.dtype)
    heads = (jnp.swapaxes(_spaced(x, tree, even), 1, 2) for x in (queries, keys, values))
    mixed: Any = jax.vmap(kernel)(*heads, segment_ids)
    return _unspaced(jnp.swapaxes(mixed, 1, 2), tree, even)

  return mix


@dataclasses.dataclass(frozen=True)
class _TreeMask(splash_lib.Mask):
  """A `Tree` as the library takes static masks."""

  tree: Tree

  @property
  def shape(self) -> tuple[int, int]:
    return self.tree.tokens, self.tree.tokens

  def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
    queries, keys = (np.arange(self.tree.tokens)[part] for part in idx)
    return self.tree.sees(queries[:, None], keys[None, :])


def _even(tree: Tree) -> Tree:
  """With prompt and samples as long as blocks divide: then blocks are empty, full, or one and the
  same triangle."""
  up = lambda tokens: -(-tokens // _LANES) * _LANES
  return Tree(up(tree.prompt), tree.samples, up(tree.response))


def _spaced(x_BJ: Array, tree: Tree, even: Tree) -> Array:
  """Tokens of a tree where they stand in the longer one: prompts at the end of theirs if there are
  samples, all else at the beginning; zeros between."""
  S, more = tree.prompt, even.prompt - tree.prompt
  rest = [(0, 0)] * (x_BJ.ndim - 2)
  left = [(more, 0)] if tree.samples else [(0, more)]
  prompt = jnp.pad(x_BJ[:, :S], [(0, 0), *left, *rest])
  samples = x_BJ[:, S:].reshape(len(x_BJ), tree.samples, tree.response, *x_BJ.shape[2:])
  samples = jnp.pad(samples, [(0, 0), (0, 0), (0, even.response - tree.response), *rest])
  return _joined(prompt, samples)


def _unspaced(x_BJ: Array, tree: Tree, even: Tree) -> Array:
  start = even.prompt - tree.prompt if tree.samples else 0
  prompt = x_BJ[:, start : start + tree.prompt]
  samples = x_BJ[:, even.prompt :].reshape(len(x_BJ), even.samples, even.response, *x_BJ.shape[2:])
  return _joined(prompt, samples[:, :, : tree.response])


def _joined(prompt_BS: Array, samples_BRT: Array) -> Array:
  B, R, T = samples_BRT.shape[:3]
  samples_BS = samples_BRT.reshape(B, R * T, *samples_BRT.shape[3:])
  return jnp.concatenate([prompt_BS, samples_BS], axis=1)
