"""How published weights travel, what pieces they are cut into, and what that costs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
Box = tuple[tuple[int, int], ...]  # (start, stop) along each axis


@dataclasses.dataclass(frozen=True)
class Wire:
  """How weights travel.

  Attributes:
    dtype: one of `DTYPES`.
    compress: by zstd, bytes of equal significance together.
    chunk_bytes: the most that a piece holds before compression.
  """

  dtype: str = "float32"
  compress: bool = True
  chunk_bytes: int = 1 << 26

  def __post_init__(self):
    if self.dtype not in DTYPES or self.chunk_bytes < 4:
      raise ValueError(f"no such wire: {self}; types: {', '.join(DTYPES)}")


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their paths."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def parts_of(like: Any, shardings: Any) -> dict[str, tuple[int, ...]]:
  """By name, into how many equal parts shardings spread each axis of an array."""
  shapes, spread = (named(tree) for tree in (like, shardings))
  return {
    name: tuple(
      size // max(part, 1)
      for size, part in zip(leaf.shape, spread[name].shard_shape(leaf.shape), strict=True)
    )
    for name, leaf in shapes.items()
  }


def bytes_on_wire(like: Any, learner: Any, sampler: Any, wire: Wire) -> dict[str, int]:
  """What a publication moves, before compression, from shapes and shardings alone.

  Args:
    like: the tree of parameters, anything with a shape.
    learner, sampler: trees of shardings over devices of both sides, real or fake.
    wire: how they travel.

  Returns:
    `written`: bytes that the learner writes, and `written_per_device`, the most of any device;
    `read`: bytes that one sampler reads, whole pieces, if each of its devices has a host of its
    own, and `read_per_device`, the most of any device; `pieces`: how many there are.
  """
  itemsize, written, read, count = DTYPES[wire.dtype].itemsize, {}, {}, 0
  parts, sources, targets = parts_of(like, sampler), named(learner), named(sampler)
  for name, leaf in named(like).items():
    source, target = sources[name], targets[name]
    boxes = {}  # of the learner's parts: the devices that hold each
    for device, index in source.devices_indices_map(leaf.shape).items():
      boxes.setdefault(box_of(index, leaf.shape), []).append(device)
    wanted: dict[Box, list[Any]] = {}
    for device, index in target.devices_indices_map(leaf.shape).items():
      wanted.setdefault(box_of(index, leaf.shape), []).append(device)
    for box, holders in boxes.items():
      for number, part in enumerate(cut(box, leaf.shape, wire, parts[name])):
        size = itemsize * math.prod(stop - start for start, stop in part)
        writer = holders[number % len(holders)]
        written[writer] = written.get(writer, 0) + size
        count += 1
        for target_box, devices in wanted.items():
          if overlap(part, target_box) is not None:
            for device in devices:
              read[device] = read.get(device, 0) + size
  return {
    "written": sum(written.values()),
    "written_per_device": max(written.values()),
    "read": sum(read.values()),
    "read_per_device": max(read.values()),
    "pieces": count,
  }


def cut(
  box: Box, shape: tuple[int, ...], wire: Wire, parts: tuple[int, ...] | None = None
) -> Iterator[Box]:
  """A part of an array of this shape, in pieces of at most `chunk_bytes`.

  None of them is in two of the `parts` that readers spread each axis into; beyond that they are
  whole along the last axes, as far as that goes.
  """
  sides = []
  for (start, stop), size, count in zip(box, shape, parts or (1,) * len(shape), strict=True):
    width = size // count
    edges = [start, *range((start // width + 1) * width, stop, width), stop]
    sides.append(list(itertools.pairwise(edges)))
  for within_parts in itertools.product(*sides):
    yield from _chunks(within_parts, wire)


def _chunks(box: Box, wire: Wire) -> Iterator[Box]:
  room = wire.chunk_bytes // DTYPES[wire.dtype].itemsize  # elements
  steps = []
  for start, stop in reversed(box):
    step = max(min(stop - start, room), 1)
    room = room // step if step == stop - start else 1
    steps.append(range(start, stop, step))
  for starts in itertools.product(*reversed(steps)):
    yield tuple(
      (at, min(at + step.step, step.stop)) for at, step in zip(starts, reversed(steps), strict=True)
    )


def box_of(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
  """The part of an array that slices take."""
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def overlap(one: Box, other: Box) -> Box | None:
  """What two parts have in common, if anything."""
  common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
  return common if all(start < stop for start, stop in common) else None


def within(part: Box, box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Where a part begins in a box, and its sizes."""
  starts = tuple(start - first for (start, _), (first, _) in zip(part, box, strict=True))
  return starts, tuple(stop - start for start, stop in part)
