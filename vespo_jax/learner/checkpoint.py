"""Run state on disk (orbax): what an interrupted run needs to continue bit for bit.

A checkpoint is taken between rollout batches, where nothing sampled is waiting to be trained on.
Data position and sampling keys are functions of the update number, so parameters, optimizer state
and that number are the whole state.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vespo_jax.types import TrainState


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: made if missing.
    keep: how many of the newest are kept.
  """

  def __init__(self, directory: Path, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

  def save(self, state: TrainState, step: int) -> None:
    """Starts saving the state after `step` updates, without what is frozen; a later call waits for
    it to end."""
    if step not in self._manager.all_steps():
      trained = dataclasses.replace(state, frozen=None)
      self._manager.save(step, args=ocp.args.StandardSave(trained))

  def restore(self, abstract: TrainState, at_most: int) -> TrainState | None:
    """The newest state of at most `at_most` updates, or None.

    `abstract` has the shapes, types and shardings to restore to.
    """
    steps = [step for step in self._manager.all_steps() if step <= at_most]
    if not steps:
      return None
    args = ocp.args.StandardRestore(dataclasses.replace(abstract, frozen=None))
    restored: Any = self._manager.restore(max(steps), args=args)
    return restored

  def close(self) -> None:
    """Waits for a save under way and lets go."""
    self._manager.close()


def abstract_like(state: TrainState, shardings: Any) -> TrainState:
  """Shapes, types and shardings of a state, as `Checkpoints.restore` needs them."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    state,
    shardings,
  )
