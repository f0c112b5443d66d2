"""The mesh, and the shardings that the rule table of `models.partition` gives on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vespo_jax.models import ModelSpec, describe
from vespo_jax.models.params import ParamInfo
from vespo_jax.models.partition import BATCH_AXES, MESH_AXES, RULES
from vespo_jax.types import HostArray, Params

HOST = "pinned_host"  # what JAX calls memory of the host that a device reads by itself


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of the given axis sizes; one axis may be -1 and takes the devices that are left.

  It is of all devices, of all processes, unless `devices` are given.

  Raises ValueError naming the axis, if one is unknown or the sizes do not give the device count.
  """
  unknown = set(sizes) - set(MESH_AXES)
  if unknown:
    raise ValueError(f"unknown mesh axis {sorted(unknown)[0]!r}; known: {', '.join(MESH_AXES)}")
  count = jax.device_count() if devices is None else len(devices)
  shape = [sizes.get(axis, 1) for axis in MESH_AXES]
  if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
    raise ValueError(f"mesh sizes must be positive, one may be -1: {dict(sizes)}")
  if -1 in shape:
    shape[shape.index(-1)] = max(count // -math.prod(shape), 1)
  if math.prod(shape) != count:
    raise ValueError(
      f"mesh {dict(zip(MESH_AXES, shape, strict=True))} needs {math.prod(shape)} devices, "
      f"there are {count}"
    )
  types = (AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=types)


def param_shardings(mesh: Mesh | AbstractMesh, spec: ModelSpec) -> Params:
  """The tree of `NamedSharding` of the parameters of `spec`.

  Raises ValueError naming the parameter, if two of its axes fall on one mesh axis or a sharded axis
  does not divide.
  """

  whole = {"heads": spec.heads, "kv_heads": spec.kv_heads}  # a head is not divided

  def one(path: tuple, info: ParamInfo) -> NamedSharding:
    name = jax.tree_util.keystr(path)
    axes = [
      RULES.get(axis) if mesh.shape[RULES.get(axis, "data")] > 1 else None for axis in info.axes
    ]
    used = [axis for axis in axes if axis]
    if len(set(used)) < len(used):
      raise ValueError(f"two axes of parameter {name} {info.axes} fall on one mesh axis: {used}")
    for size, logical, axis in zip(info.shape, info.axes, axes, strict=True):
      size = whole.get(logical, size)
      if axis and size % mesh.shape[axis]:
        raise ValueError(
          f"parameter {name}: its {logical!r} axis of {size} does not divide over the "
          f"{mesh.shape[axis]} devices of mesh axis {axis!r}"
        )
    return NamedSharding(mesh, P(*axes))

  return jax.tree_util.tree_map_with_path(one, describe(spec))


def like_params(mesh: Mesh, spec: ModelSpec, tree: object) -> Any:
  """Shardings for a tree (an optimizer state) that contains copies of the parameter tree.

  A leaf whose path ends with the path of a parameter of the same shape is sharded like it;
  everything else is replicated.
  """
  shardings = jax.tree_util.tree_flatten_with_path(param_shardings(mesh, spec))[0]
  shapes = dict(jax.tree_util.tree_flatten_with_path(describe(spec))[0])
  known = [(path, shapes[path].shape, sharding) for path, sharding in shardings]

  def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    for suffix, shape, sharding in known:
      if path[-len(suffix) :] == suffix and leaf.shape == shape:
        return sharding
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(one, tree)


def place(tree: Any, shardings: Any) -> Any:
  """Arrays that every process has alike, laid out: each process gives its own devices their parts.

  `shardings` is a tree like that of the arrays, or one for all of them. What is spread so over the
  devices of several processes already stays as it is.
  """

  def one(leaf: HostArray, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
      return leaf
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

  if isinstance(shardings, NamedSharding):
    return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
  return jax.tree.map(one, tree, shardings)


def fetch(tree: Any) -> Any:
  """Whole arrays on this host, all processes making the call: those spread over the devices of
  several are gathered, one after another, so that a device holds one of them at a time."""

  def one(leaf: HostArray) -> HostArray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
      return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf

  return jax.device_get(jax.tree.map(one, tree))


def on_host(shardings: Any, tree: object) -> Any:
  """The same shardings, with the arrays of `tree` (scalars stay) in the host's pinned memory."""
  place = lambda sharding, leaf: sharding.with_memory_kind(HOST) if leaf.ndim else sharding
  return jax.tree.map(place, shardings, tree)


def check_host_memory(device: jax.Device) -> None:
  """Raises ValueError naming the memories there are, if `on_host` has none."""
  kinds = [memory.kind for memory in device.addressable_memories()]
  if HOST not in kinds:
    raise ValueError(f"{device.platform} has no memory {HOST!r}, only {', '.join(kinds)}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of every array of a `TrainBatch`: its first axis, prompts, over `BATCH_AXES`."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, P())
