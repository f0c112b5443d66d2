"""Layouts of a number of devices: which are possible, which fit, and which is predicted fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from experiments.scale.costs import UpdateTime, expected_transfers, update_time
from experiments.scale.hardware import USABLE, Hardware
from experiments.scale.memory import UpdateMemory, update_memory
from experiments.scale.workload import Sizes, Workload
from vespo_jax.sharding import MESH_AXES


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and micro-batching, and what the model says of it."""

  sizes: Sizes
  micro_batches: int
  memory: UpdateMemory
  time: UpdateTime

  @property
  def flags(self) -> str:
    """What gives a run this layout, whatever its config says."""
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in self.sizes.items()]
    return " ".join([*mesh, f"--config.batch.micro_batches={self.micro_batches}"])

  @property
  def words(self) -> str:
    """Like `fsdp 16, sequence 2, 8 micro-batches`."""
    axes = [f"{axis} {size}" for axis, size in self.sizes.items() if size > 1]
    return ", ".join([*axes, f"{self.micro_batches} micro-batches"])


class BadLayout(ValueError):
  """A layout that cannot be made of a model and a batch, whatever the memory."""


def examine(work: Workload, sizes: Sizes, hardware: Hardware) -> Layout:
  """What the model says of one layout. Raises BadLayout naming what does not divide."""
  groups = work.groups(sizes)
  if groups != int(groups):
    raise BadLayout(
      f"{work.prompts} prompts in {work.micro_batches} micro-batches do not divide over "
      f"data {sizes['data']} x fsdp {sizes['fsdp']} x expert {sizes['expert']} devices"
    )
  if sizes["expert"] > 1 and not work.spec.experts:
    raise BadLayout("a dense model has no experts to spread over mesh axis 'expert'")
  if sizes["sequence"] > 1 and work.attention != "dense":
    raise BadLayout(f"{work.attention!r} attention sees whole sequences: mesh axis 'sequence' is 1")
  try:
    memory = update_memory(work, sizes)
  except ValueError as error:
    raise BadLayout(str(error)) from error
  time = update_time(work, sizes, hardware, expected_transfers(work, sizes))
  return Layout(dict(sizes), work.micro_batches, memory, time)


def fits(memory: UpdateMemory, hardware: Hardware) -> bool:
  """Whether the model's total is within what is usable of a device."""
  return memory.total <= USABLE * hardware.chip.memory_bytes


def propose(work: Workload, hardware: Hardware) -> Layout | None:
  """The layout that fits and is predicted fastest, of equal ones that with the most memory left;
  None if none fits. Every factorisation of the devices over the mesh axes is tried."""
  found = [layout for layout in _possible(work, hardware) if fits(layout.memory, hardware)]
  key = lambda layout: (round(layout.time.high_s, 2), layout.memory.total)
  return min(found, key=key, default=None)


def nearest(work: Workload, hardware: Hardware) -> Layout | None:
  """The layout that takes the least memory, whether or not it fits; None if none divides."""
  return min(_possible(work, hardware), key=lambda x: x.memory.total, default=None)


def _possible(work: Workload, hardware: Hardware) -> Iterator[Layout]:
  pieces = [n for n in range(1, work.prompts + 1) if work.prompts % n == 0]
  for shape in _factorisations(hardware.devices, len(MESH_AXES)):
    sizes = dict(zip(MESH_AXES, shape, strict=True))
    for micro_batches in pieces:
      candidate = dataclasses.replace(work, micro_batches=micro_batches)
      try:
        yield examine(candidate, sizes, hardware)
      except BadLayout:
        continue


def _factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
  """Every way to write a number as an ordered product of so many."""
  if parts == 1:
    yield (number,)
    return
  for first in (n for n in range(1, number + 1) if number % n == 0):
    for rest in _factorisations(number // first, parts - 1):
      yield (first, *rest)
