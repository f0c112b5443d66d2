"""A sampler over several devices: the rule table for layers that are apart, and for the cache.

The model is spread as the learner spreads it over `tensor` (`models.partition`): by heads, columns
and vocabulary, and so is the cache by key/value heads. Each program of the engine sees its device's
part, so kernels of an accelerator work as on one device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from vespo_jax import models, sharding
from vespo_jax.models import KVCache, ModelSpec
from vespo_jax.models.partition import BATCH_AXES, MESH_AXES, RULES
from vespo_jax.models.quantize import Quantized
from vespo_jax.types import Params

TENSOR = (1, 2, 4, 8, 16)  # devices there may be: they divide the tokens of padded prompts
# Specs in the place of arrays: of those whose first axis is rows, whose second is, and a cache's.
ROWS: Any = P(BATCH_AXES)
COLUMNS: Any = P(None, BATCH_AXES)
CACHE: Any = P(BATCH_AXES, "tensor")


def make_mesh(tensor: int) -> Mesh | None:
  """The mesh over the first `tensor` devices of this process; None for one device.

  Raises ValueError if it has fewer.
  """
  devices = jax.local_devices()
  if len(devices) < tensor:
    raise ValueError(f"a sampler over {tensor} devices, and its process has {len(devices)}")
  if tensor == 1:
    return None
  shape = [tensor if axis == "tensor" else 1 for axis in MESH_AXES]
  grid = np.array(devices[:tensor]).reshape(shape)
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check(tensor: int, spec: ModelSpec) -> None:
  """Raises ValueError naming a parameter that does not divide over `tensor` devices."""
  shape = tuple(tensor if axis == "tensor" else 1 for axis in MESH_AXES)
  sharding.param_shardings(AbstractMesh(shape, MESH_AXES), spec)


def param_shardings(mesh: Mesh | None, spec: ModelSpec) -> Params:
  """Where the parameters as they are published go. Raises ValueError naming one that does not
  divide over the mesh."""
  if mesh is not None:
    return sharding.param_shardings(mesh, spec)
  whole = SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda _: whole, models.abstract(spec))


def unstacked_specs(spec: ModelSpec) -> Any:
  """The rule table for parameters whose layers are apart (`models.unstack`)."""
  infos = models.describe(spec)
  one = lambda axes: P(*map(RULES.get, axes))
  layer = {name: one(info.axes[1:]) for name, info in infos["layers"].items()}
  rest = {name: one(info.axes) for name, info in infos.items() if name != "layers"}
  return {**rest, "layers": (layer,) * spec.layers}


def specs_of(params: Params, spec: ModelSpec) -> Any:
  """`unstacked_specs` for these parameters, of which some may be `Quantized`."""

  def one(axes: Any, leaf: Any) -> Any:
    if isinstance(leaf, Quantized):
      scale: Any = P(*axes[:-2], None, axes[-1])  # one for all inputs of an output
      return dataclasses.replace(leaf, values=axes, scale=scale)
    return axes

  return jax.tree.map(one, unstacked_specs(spec), params)


def cache_specs(spec: ModelSpec, attention: str) -> KVCache:
  """Specs in the place of a cache's arrays."""
  layers = (CACHE,) * spec.layers
  return KVCache(layers, layers, ROWS, attention)


def init_cache(mesh: Mesh | None, spec: ModelSpec, *args: Any) -> KVCache:
  """`models.init_cache(spec, *args)`, spread over the mesh."""
  make = lambda: models.init_cache(spec, *args)
  if mesh is None:
    return make()
  specs = cache_specs(spec, jax.eval_shape(make).attention)
  places = jax.tree.map(lambda axes: NamedSharding(mesh, axes), specs)
  return jax.jit(make, out_shardings=places)()
