"""How a model is spread over devices: the rule table, and the collectives that its code asks for.

The learner's forward pass runs inside `shard_map` (`spread`): every function sees its own device's
part of each array, and what must come from, or be added up over, other devices is asked for here,
by the name of a mesh axis. Outside, and for axes of one device, everything here is the identity, so
that one model serves one core and a pod.

    data, expert   prompts are spread over them (data parallelism)
    fsdp           so too, and each parameter over it besides; a layer is gathered when it is used
                   and again for its gradient (ZeRO-3, Rajbhandari et al., arXiv 1910.02054)
    tensor         heads, feed-forward width and vocabulary are spread over it, and between them
                   the tokens (Megatron with sequence-parallel norms, Korthikanti et al.,
                   arXiv 2205.05198)
    expert         the experts are spread over it; tokens are gathered by all, or, where there are
                   more devices than choices of a token, sent to their experts (`moe`)
    sequence       the tokens of every prompt and every response; keys and values are gathered, or,
                   above a size, sent round (`ring`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from vespo_jax.models.params import describe
from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array, Params

MESH_AXES = ("data", "fsdp", "tensor", "expert", "sequence")
BATCH_AXES = ("data", "fsdp", "expert")  # prompts are spread over these

# Logical axis of a parameter -> mesh axis. Axes that are not listed are replicated.
RULES: Mapping[str, str] = {
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "expert": "expert",
}
GATHERED = "gathered"  # what a layer's gathered parameters are called, for rematerialisation


def param_specs(spec: ModelSpec, params: Params | None = None) -> Any:
  """The `PartitionSpec` of every parameter, by `RULES`; with `params` a tree like theirs.

  Adapters, which `params` may have in the place of a kernel, are spread over `tensor` where the
  kernel's rows (A's) or columns (B's) are, and nowhere else.
  """
  specs = jax.tree.map(lambda info: P(*map(RULES.get, info.axes)), describe(spec))
  if params is None:
    return specs

  def one(path: tuple, leaf: Array) -> P:
    known: Any = specs
    for entry in path:
      if not isinstance(entry, jax.tree_util.DictKey):
        over_tensor = [axis if axis == "tensor" else None for axis in known]
        adapters = {"a": P(*over_tensor[:2], None), "b": P(None, None, *over_tensor[2:])}
        return adapters.get(entry.name, known)
      known = known[entry.key]
    return known

  return jax.tree_util.tree_map_with_path(one, params)


def spread(
  local: Callable[..., Any], mesh: AbstractMesh | Mesh, in_specs: Sequence[Any], out_specs: Any
) -> Callable[..., Any]:
  """`local`, which sees its device's parts, as a function of whole arrays.

  Replication is not checked by types but by the tests that compare layouts.
  """
  return jax.shard_map(
    local, mesh=mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False
  )


def over(mesh: Mesh) -> AbstractContextManager[Any]:
  """While it is entered, in a function that is being traced, `spread` is over this mesh."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def current_mesh() -> AbstractMesh | None:
  """The mesh to spread over: that of `over`, if it has several devices and the caller is not spread
  already."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def devices(mesh: Mesh | AbstractMesh, axes: Sequence[str] = BATCH_AXES) -> int:
  """How many devices these axes of a mesh have together; without `axes`, those that prompts are
  spread over."""
  return math.prod(mesh.shape[axis] for axis in axes)


def size(*axes: str) -> int:
  """The devices along these axes that the caller is spread over."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in axes if axis in mesh.manual_axes)


def index(axis: str) -> Array | int:
  """This device's place along an axis."""
  return jax.lax.axis_index(axis) if size(axis) > 1 else 0


def gather(x: Array, axis: str, dimension: int) -> Array:
  """The whole of `x`, whose `dimension` is spread over `axis`; its gradient is scattered back."""
  if size(axis) == 1:
    return x
  return jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def add(x: Array, *axes: str) -> Array:
  """The sum over all devices along `axes`."""
  axes = tuple(axis for axis in axes if size(axis) > 1)
  return jax.lax.psum(x, axes) if axes else x


def largest(x: Array, *axes: str) -> Array:
  """The maximum over all devices along `axes`; not differentiable."""
  axes = tuple(axis for axis in axes if size(axis) > 1)
  return jax.lax.pmax(x, axes) if axes else x


def exchange(x: Array, axis: str) -> Array:
  """What the devices along `axis` send each other: the n-th of equal parts of `x` goes to the n-th,
  and what comes is in their order."""
  return jax.lax.all_to_all(x, axis, 0, 0, tiled=True) if size(axis) > 1 else x


def add_and_scatter(x: Array, axis: str, dimension: int) -> Array:
  """This device's part, along `dimension`, of the sum over `axis`."""
  if size(axis) == 1:
    return x
  return jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)


def from_previous(x: Array, axis: str) -> Array:
  """What the device before this one along `axis` has; the first gets zeros."""
  n = size(axis)
  if n == 1:
    return jnp.zeros_like(x)
  return jax.lax.ppermute(x, axis, [(i, i + 1) for i in range(n - 1)])


def from_previous_in_ring(x: Array, axis: str) -> Array:
  """What the device before this one along `axis` has; the first gets what the last one has."""
  n = size(axis)
  return jax.lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])


def from_last(x: Array, axis: str) -> Array:
  """What the last device along `axis` has."""
  if size(axis) == 1:
    return x
  return add(jnp.where(index(axis) == size(axis) - 1, x, jnp.zeros_like(x)), axis)


def gather_layer(layer: Params, spec: ModelSpec) -> Params:
  """One layer's parameters with their `embed` axis whole; named, so that a backward pass gathers
  them again rather than keep them."""
  if size("fsdp") == 1:
    return layer
  infos = describe(spec)["layers"]

  def one(path: tuple, leaf: Array) -> Array:
    if len(path) > 1 and path[1].name != "base":  # an adapter
      return leaf
    axes = infos[path[0].key].axes[1:]
    if "embed" not in axes:
      return leaf
    return checkpoint_name(gather(leaf, "fsdp", axes.index("embed")), GATHERED)

  return jax.tree_util.tree_map_with_path(one, layer)
