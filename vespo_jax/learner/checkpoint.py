"""Run state on disk (orbax): what an interrupted run needs to continue bit for bit.

A checkpoint is taken when weights are published. Data position and sampling keys are functions of
the update number, so parameters, optimizer state, that number and what the integrity monitor knows
are the whole state of a sync run. An asynchronous run also has minibatches under way; after a
restart they are sampled anew, by the restored weights: no prompt is lost or trained on twice.
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

  def save(self, state: TrainState, monitor: dict[str, Any], step: int) -> None:
    """Starts saving the state after `step` updates, without what is frozen, and the integrity
    monitor's plain values; a later call waits for it to end."""
    if step not in self._manager.all_steps():
      args = ocp.args.Composite(
        state=ocp.args.StandardSave(dataclasses.replace(state, frozen=None)),
        monitor=ocp.args.JsonSave(monitor),
      )
      self._manager.save(step, args=args)

  def restore(self, abstract: TrainState, at_most: int) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest state of at most `at_most` updates and its monitor, or None.

    `abstract` has the shapes, types and shardings to restore to.
    """
    steps = [step for step in self._manager.all_steps() if step <= at_most]
    if not steps:
      return None
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(dataclasses.replace(abstract, frozen=None)),
      monitor=ocp.args.JsonRestore(),
    )
    restored: Any = self._manager.restore(max(steps), args=args)
    return restored["state"], restored["monitor"]

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
