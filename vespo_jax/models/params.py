"""One description tree; the initial values, the shardings and the restore targets come from it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class ParamInfo:
  """One parameter: its shape, the logical name of each axis, and the scale it starts at.

  `scale` is the standard deviation of the normal it is drawn from; 0 means zeros, None means ones.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  scale: float | None


def describe(spec: ModelSpec) -> Params:
  """The tree of `ParamInfo`. Kernels are stored [in, out]; layers are stacked on a leading axis L.

  Standard deviations are 0.02, and 0.02 / sqrt(2 L) for the two projections that write to the
  residual stream (GPT-2).
  """
  L, D, F = spec.layers, spec.width, spec.mlp_width
  query, key = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
  residual = 0.02 / math.sqrt(2 * L)

  def layer(*shape: tuple[int, str], scale: float | None) -> ParamInfo:
    sizes, axes = zip(*shape, strict=True)
    return ParamInfo((L, *sizes), ("layers", *axes), scale)

  layers = {
    "attention_norm": layer((D, "embed"), scale=None),
    "query": layer((D, "embed"), (query, "heads"), scale=0.02),
    "key": layer((D, "embed"), (key, "kv_heads"), scale=0.02),
    "value": layer((D, "embed"), (key, "kv_heads"), scale=0.02),
    "output": layer((query, "heads"), (D, "embed"), scale=residual),
    "mlp_norm": layer((D, "embed"), scale=None),
  }
  if spec.experts:
    E = (spec.experts, "expert")
    layers |= {
      "router": layer((D, "embed"), E, scale=0.02),
      "expert_gate": layer(E, (D, "embed"), (F, "mlp"), scale=0.02),
      "expert_up": layer(E, (D, "embed"), (F, "mlp"), scale=0.02),
      "expert_down": layer(E, (F, "mlp"), (D, "embed"), scale=residual),
    }
  else:
    layers |= {
      "gate": layer((D, "embed"), (F, "mlp"), scale=0.02),
      "up": layer((D, "embed"), (F, "mlp"), scale=0.02),
      "down": layer((F, "mlp"), (D, "embed"), scale=residual),
    }
  if spec.qk_norm:
    layers["query_norm"] = layer((spec.head_width, "head_width"), scale=None)
    layers["key_norm"] = layer((spec.head_width, "head_width"), scale=None)
  if spec.qkv_bias:
    layers["query_bias"] = layer((query, "heads"), scale=0.0)
    layers["key_bias"] = layer((key, "kv_heads"), scale=0.0)
    layers["value_bias"] = layer((key, "kv_heads"), scale=0.0)
  tree = {
    "embedding": ParamInfo((spec.vocab_size, D), ("vocab", "embed"), 0.02),
    "layers": layers,
    "final_norm": ParamInfo((D,), ("embed",), None),
  }
  if not spec.tied_embeddings:
    tree["head"] = ParamInfo((spec.vocab_size, D), ("vocab", "embed"), 0.02)
  return tree


def abstract(spec: ModelSpec, dtype: jnp.dtype = jnp.float32) -> Params:
  """The tree of `jax.ShapeDtypeStruct` of the parameters, for restoring and compiling ahead."""
  return jax.tree.map(lambda info: jax.ShapeDtypeStruct(info.shape, dtype), describe(spec))


def init(spec: ModelSpec, key: Array, dtype: jnp.dtype = jnp.float32) -> Params:
  """Random parameters; each tensor has its own key, derived from its path."""
  leaves, tree = jax.tree.flatten(describe(spec))
  keys = jax.random.split(key, len(leaves))

  def draw(info: ParamInfo, key: Array) -> Array:
    if info.scale is None:
      return jnp.ones(info.shape, dtype)
    return (info.scale * jax.random.normal(key, info.shape)).astype(dtype)

  return jax.tree.unflatten(tree, [draw(*pair) for pair in zip(leaves, keys, strict=True)])


def count(spec: ModelSpec) -> int:
  """The number of parameters."""
  return sum(math.prod(info.shape) for info in jax.tree.leaves(describe(spec)))


def unstack(params: Params) -> Params:
  """The same parameters, `layers` a tuple of one tree for each: as generation, which reads every
  kernel again for every token, takes them without copying slices of the stack."""
  layers = params["layers"]
  return params if isinstance(layers, tuple) else {**params, "layers": _unstacked(layers)}


@jax.jit
def _unstacked(layers: Params) -> tuple[Params, ...]:
  leaves, tree = jax.tree.flatten(layers)
  return tuple(tree.unflatten(parts) for parts in zip(*leaves, strict=True))


def head_table(params: Params) -> Array:
  """The output projection, [V, D]: the head, or the embedding where it is tied."""
  return params.get("head", params["embedding"])
