"""Reducing token losses to one number, as (sum, count) pairs so that accumulation is exact."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from vespo_jax.types import Array


def _tokens(mask_BT: Array) -> Array:
  return jnp.sum(mask_BT, dtype=jnp.float32)


def _sequences(mask_BT: Array) -> Array:
  return jnp.sum(jnp.any(mask_BT, axis=1), dtype=jnp.float32)


def _token_sum(values_BT: Array, mask_BT: Array) -> Array:
  return jnp.sum(jnp.where(mask_BT, values_BT, 0.0))


def _sum_of_row_means(values_BT: Array, mask_BT: Array) -> Array:
  lengths_B = jnp.maximum(jnp.sum(mask_BT, axis=1, dtype=jnp.float32), 1.0)
  return jnp.sum(jnp.sum(jnp.where(mask_BT, values_BT, 0.0), axis=1) / lengths_B)


AGGREGATIONS: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]] = {
  "token-mean": (_token_sum, _tokens),
  "token-sum": (_token_sum, lambda mask_BT: jnp.float32(1.0)),
  "seq-mean-token-sum": (_token_sum, _sequences),
  "seq-mean-token-sum-norm": (
    _token_sum,  # Dr.GRPO: a constant, the padded response width, in place of the length
    lambda mask_BT: _sequences(mask_BT) * mask_BT.shape[1],
  ),
  "seq-mean-token-mean": (_sum_of_row_means, _sequences),
}


def _lookup(mode: str) -> tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]:
  if mode not in AGGREGATIONS:
    raise ValueError(f"unknown aggregation {mode!r}; known: {', '.join(AGGREGATIONS)}")
  return AGGREGATIONS[mode]


def count(mask_BT: Array, mode: str) -> Array:
  """The denominator of `mode` for this mask, float32 scalar, at least 1.

  Pass the count of the whole minibatch as `normalizer` of `policy_loss` when it is cut into
  micro-batches. Raises ValueError for an unknown mode.
  """
  return jnp.maximum(_lookup(mode)[1](mask_BT), 1.0)


def aggregate(values_BT: Array, mask_BT: Array, mode: str) -> tuple[Array, Array]:
  """The pair (sum, count) whose quotient is the aggregate of `values_BT` under `mode`.

  Rows without any True in the mask add nothing to either. Raises ValueError for an unknown mode.
  Source: verl `agg_loss` and TRL's loss types (the names are verl's).
  """
  return _lookup(mode)[0](values_BT, mask_BT), count(mask_BT, mode)
