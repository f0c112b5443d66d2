"""Numerics guards: a bad update is found where it is computed, and never reaches the parameters.

No number goes to the host for it: how many bad updates may still be skipped is an array that one
update gives to the next.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax.types import Array, Params, TrainBatch, TrainState

SKIPS_LEFT, CAUSES, PER_LEAF = "skips_left", "causes", "per_leaf"  # metrics that are not of a row


@dataclasses.dataclass(frozen=True)
class Limits:
  """What makes an update bad, besides a loss, gradient or reward that is not finite.

  Attributes:
    max_grad_norm: of the global norm, before it is clipped.
    max_log_w: of |log W| of any sequence, W = policy / behaviour.
    max_skipped: bad updates in a row that a run goes on without.
  """

  max_grad_norm: float = math.inf
  max_log_w: float = math.inf
  max_skipped: int = 0


Update = Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, Any]]]
GuardedUpdate = Callable[..., tuple[TrainState, dict[str, Any]]]  # (state, batch, skips_left)


def guarded(
  update: Update, limits: Limits, log_w: Callable[[Mapping[str, Any]], Array]
) -> GuardedUpdate:
  """`update(state, batch, skips_left) -> (state, metrics)`, which keeps the state where it is bad.

  A skipped update counts as made, with no change but that of `state.step`. One that there is no
  skip left for is not made, and none is from then on: the state stays exactly what it was before.

  Args:
    update: its metrics have `objective/loss` and `grad/norm`.
    limits: see `Limits`.
    log_w: metrics -> [P, R].

  Metrics get `CAUSES`, a bool by cause (`loss`, `gradient`, `reward`: not finite; `grad_norm`,
  `log_w`: beyond the limit), and `SKIPS_LEFT`, an int32 scalar for the next update, at first
  `max_skipped` and below 0 once the run has to end.
  """

  def call(state: TrainState, batch: TrainBatch, skips_left: Array):
    after, metrics = update(state, batch)
    norm = metrics["grad/norm"]
    causes = {
      "loss": ~jnp.isfinite(metrics["objective/loss"]),
      "gradient": ~jnp.isfinite(norm),
      "reward": ~jnp.all(jnp.isfinite(batch.rewards_PR)),
      "grad_norm": norm > limits.max_grad_norm,
      "log_w": jnp.max(jnp.abs(log_w(metrics))) > limits.max_log_w,
    }
    good = ~jnp.any(jnp.stack(list(causes.values())))
    ended = skips_left < 0
    left = jnp.where(ended, skips_left, jnp.where(good, limits.max_skipped, skips_left - 1))
    kept = jax.tree.map(lambda new, old: jnp.where(good & ~ended, new, old), after, state)
    kept = dataclasses.replace(kept, step=jnp.where(left < 0, state.step, after.step))
    return kept, metrics | {CAUSES: causes, SKIPS_LEFT: left}

  return call


def skips_left(rows: Sequence[Mapping[str, Any]], max_skipped: int) -> np.ndarray:
  """What a run with these rows of metrics goes on with as the next update's `skips_left`."""
  skipped = itertools.takewhile(lambda row: row.get("guard/tripped"), reversed(rows))
  return np.array(max_skipped - len(list(skipped)), np.int32)


def leaf_norms(grads: Params) -> Array:
  """The norm of every leaf, in the order of the tree."""
  return jnp.stack([jnp.linalg.norm(leaf.reshape(-1)) for leaf in jax.tree.leaves(grads)])


def leaf_names(params: Params) -> list[str]:
  """The path of every leaf, in the order of the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
