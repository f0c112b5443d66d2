"""How a minibatch is cut into micro-batches, and joined again."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vespo_jax.models import partition
from vespo_jax.types import Array, HostArray


def cut(x: Array, pieces: int) -> Array:
  """[P, ..] -> [pieces, P / pieces, ..]; piece j takes prompts j, j + pieces, .., so that an axis
  sharded over devices stays sharded within each piece."""
  return jnp.moveaxis(x.reshape(len(x) // pieces, pieces, *x.shape[1:]), 1, 0)


def join(x: Array) -> Array:
  """What `cut` made of [P, ..], as it was."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def live_first(advantages_PR: Array, pieces: int) -> Array:
  """The order of prompts in which `cut` has those without an advantage in its last pieces, as
  `reorder` takes it: int32 [D, P / D], within each of the D devices that prompts are spread over.

  No prompt changes its device, so nothing of a minibatch is sent. Where every device cannot have as
  many prompts in each piece, they are ordered as if on one.
  """
  mesh = partition.current_mesh()
  devices = 1 if mesh is None else partition.devices(mesh)
  if len(advantages_PR) % (devices * pieces):
    devices = 1
  without_DK = jnp.all(advantages_PR == 0, axis=1).reshape(devices, -1)
  order_DK = jnp.argsort(without_DK, axis=1, stable=True)
  return jnp.swapaxes(order_DK.reshape(devices, pieces, -1), 1, 2).reshape(devices, -1)


def reorder(x: HostArray, order_DK: Array) -> Array:
  """[P, ..] in an order of `live_first`; with `argsort(order_DK, axis=1)` as it was."""
  in_parts = jnp.asarray(x).reshape(*order_DK.shape, *x.shape[1:])
  return jax.vmap(lambda part, order_K: part[order_K])(in_parts, order_DK).reshape(x.shape)


def any_nonzero(tree: Any) -> Array:
  """Whether a float of a tree is not 0 (NaN is not), a bool scalar."""
  floats = (x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating))
  return functools.reduce(jnp.logical_or, (jnp.any(x != 0) for x in floats))
