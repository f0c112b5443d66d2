"""How a minibatch is cut into micro-batches, and joined again."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vespo_jax.types import Array


def cut(x: Array, pieces: int) -> Array:
  """[P, ..] -> [pieces, P / pieces, ..]; piece j takes prompts j, j + pieces, .., so that an axis
  sharded over devices stays sharded within each piece."""
  return jnp.moveaxis(x.reshape(len(x) // pieces, pieces, *x.shape[1:]), 1, 0)


def join(x: Array) -> Array:
  """What `cut` made of [P, ..], as it was."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def live_first(advantages_PR: Array, pieces: int) -> Array:
  """The order of prompts, int32 [P], in which `cut` has those without an advantage in its last
  pieces."""
  without_P = jnp.all(advantages_PR == 0, axis=1)
  return jnp.argsort(without_P, stable=True).reshape(pieces, -1).T.reshape(-1)


def any_nonzero(tree: Any) -> Array:
  """Whether a float of a tree is not 0 (NaN is not), a bool scalar."""
  floats = (x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating))
  return functools.reduce(jnp.logical_or, (jnp.any(x != 0) for x in floats))
