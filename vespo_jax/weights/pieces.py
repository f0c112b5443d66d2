"""Weights from one layout over devices to another, without any host ever holding the model.

A publication is a directory. Each process of the learner writes the parts of every array that its
own devices hold, in pieces of bounded size, and an index that says where in the whole array each
piece belongs; copies of a part are shared out, so that every element is written once and all that
hold it write equally. A reader with any other layout reads the pieces that overlap with what its
own devices are to hold, one after another. So a host needs a few pieces of memory on either side.

    traffic = pieces.write(directory, 12, params, wire)                  # in every learner process
    params, traffic = pieces.read(pieces.open_publication(directory), like)  # in every sampler

What travels has the type of `Wire.dtype`: `float32` is exact, `bfloat16` half of it and rounded.
With a `base`, a version that both sides have, it is the bits that differ (exclusive or), which
compress better and add no error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vespo_jax import files
from vespo_jax.types import Array, HostArray, Params
from vespo_jax.weights.wire import DTYPES, Box, Wire, box_of, cut, named, overlap, within

FORMAT = 1


@dataclasses.dataclass
class Traffic:
  """What one process wrote or read.

  Attributes:
    pieces: how many.
    raw_bytes: of them before compression.
    wire_bytes: of them as they travel.
    peak_bytes: the most that buffers of this module held at once on the host.
  """

  pieces: int = 0
  raw_bytes: int = 0
  wire_bytes: int = 0
  peak_bytes: int = 0

  def count(self, raw: int, wire: int, *buffers: HostArray | bytes) -> None:
    """Adds a piece, and the buffers that were held for it."""
    held = sum(len(b) if isinstance(b, bytes) else b.nbytes for b in buffers)
    self.pieces, self.raw_bytes, self.wire_bytes, self.peak_bytes = (
      self.pieces + 1,
      self.raw_bytes + raw,
      self.wire_bytes + wire,
      max(self.peak_bytes, held),
    )


@dataclasses.dataclass(frozen=True)
class Piece:
  """Where a piece belongs and where it lies: `size` bytes from `offset` of `file`."""

  box: Box
  file: Path
  offset: int
  size: int
  checksum: int


@dataclasses.dataclass(frozen=True)
class Publication:
  """A whole publication, of which only the indices were read.

  Attributes:
    version: of the weights.
    base: the version that it differs from, or None.
    wire: how it travels.
    shapes: of the whole arrays, by name.
    pieces: of each.
  """

  version: int
  base: int | None
  wire: Wire
  shapes: Mapping[str, tuple[int, ...]]
  pieces: Mapping[str, list[Piece]]


def write(
  directory: Path,
  version: int,
  params: Params,
  wire: Wire,
  base: tuple[int, Params] | None = None,
  parts: Mapping[str, tuple[int, ...]] | None = None,
) -> Traffic:
  """Writes this process's pieces of the weights; every process that has some makes the call.

  Args:
    directory: of this publication alone, on a file system that all share; made if missing.
    version: of the weights.
    params: jax arrays, spread over devices in any way.
    wire: how they travel, the same in all processes.
    base: a version that every reader has, and its weights, laid out like `params`.
    parts: from `wire.parts_of`, how readers spread the arrays, so that no piece is for two of them;
      any other layout can be read too.

  Raises OSError if there is no room; the publication is then never whole.
  """
  directory.mkdir(parents=True, exist_ok=True)
  mine, traffic = _index_name(jax.process_index(), jax.process_count()), Traffic()
  olds = {} if base is None else named(base[1])
  index: dict[str, list[Any]] = {}
  with (directory / mine).with_suffix(".bin").open("wb") as file:
    for name, array in named(params).items():
      index[name] = []
      for shard, part in _mine(array, wire, (parts or {}).get(name)):
        raw = _fetch(shard.data, shard.index, array.shape, part, wire)
        old = None
        if name in olds:
          old = _fetch(_on(olds[name], shard.device), shard.index, array.shape, part, wire)
        planes = _planes(raw, old) if wire.compress or old is not None else raw.reshape(-1)
        data = _compressed(planes) if wire.compress else planes.tobytes()
        index[name].append([part, file.tell(), len(data), zlib.crc32(data)])
        file.write(data)
        traffic.count(raw.nbytes, len(data), raw, *([] if old is None else [old]), planes, data)
  about = {
    "format": FORMAT,
    "version": version,
    "base": None if base is None else base[0],
    "wire": dataclasses.asdict(wire),
    "shapes": {name: array.shape for name, array in named(params).items()},
    "pieces": index,
  }
  files.write(directory / mine, json.dumps(about))  # last, and whole
  return traffic


def is_whole(directory: Path) -> bool:
  """Whether a publication has the pieces of all processes, by the names of its files alone."""
  found = sorted(path.name for path in directory.glob("*.json"))
  return bool(found) and found == [_index_name(i, len(found)) for i in range(len(found))]


def _index_name(process: int, count: int) -> str:
  return f"{process:05d}-of-{count:05d}.json"


def open_publication(directory: Path) -> Publication:
  """The publication in a directory.

  Raises:
    FileNotFoundError: if it is not whole yet.
    ValueError: if its indices cannot be read, or disagree.
  """
  if not is_whole(directory):
    raise FileNotFoundError(f"{directory} has not the pieces of all processes")
  found = sorted(directory.glob("*.json"))
  try:
    indices = {path: json.loads(path.read_bytes()) for path in found}
    heads = [{k: v for k, v in i.items() if k != "pieces"} for i in indices.values()]
    if any(head != heads[0] for head in heads) or heads[0]["format"] != FORMAT:
      raise ValueError("its indices are not of one publication")
    pieces: dict[str, list[Piece]] = {name: [] for name in heads[0]["shapes"]}
    for path, index in indices.items():
      for name, entries in index["pieces"].items():
        for box, offset, size, checksum in entries:
          box = tuple((start, stop) for start, stop in box)
          sides = zip(box, heads[0]["shapes"][name], strict=True)
          if not all(0 <= start < stop <= side for (start, stop), side in sides):
            raise ValueError(f"a piece of {name} is at {box}")
          pieces[name].append(Piece(box, path.with_suffix(".bin"), offset, size, checksum))
    return Publication(
      heads[0]["version"],
      heads[0]["base"],
      Wire(**heads[0]["wire"]),
      {name: tuple(shape) for name, shape in heads[0]["shapes"].items()},
      pieces,
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{directory} is no publication of weights: {error}") from error


def read(
  publication: Publication, like: Any, base: tuple[int, Params] | None = None
) -> tuple[Params, Traffic]:
  """The weights as this process's devices are to hold them.

  Args:
    publication: from `open_publication`.
    like: the tree of parameters as `jax.ShapeDtypeStruct`, with the shardings and types to have.
    base: the version that the publication differs from and its weights, laid out like `like` and of
      the wire's type.

  Raises ValueError naming the piece that is damaged, the array that differs or lacks a piece, or
  the base that is wanted; OSError.
  """
  if publication.base is not None and (base is None or base[0] != publication.base):
    raise ValueError(
      f"version {publication.version} is given as what differs from version "
      f"{publication.base}, which is not at hand"
    )
  olds = {} if publication.base is None or base is None else named(base[1])
  traffic, leaves = Traffic(), named(like)
  made = {name: _read(publication, name, leaf, olds, traffic) for name, leaf in leaves.items()}
  return jax.tree.unflatten(jax.tree.structure(like), made.values()), traffic


def _read(
  publication: Publication,
  name: str,
  leaf: jax.ShapeDtypeStruct,
  olds: Mapping[str, Array],
  traffic: Traffic,
) -> Array:
  """One array, put together on the devices piece by piece."""
  if publication.shapes.get(name) != leaf.shape:
    there = publication.shapes.get(name, "missing")
    raise ValueError(f"{name} is {there} in the publication and {leaf.shape} here")
  sharding: Any = leaf.sharding
  places: dict[Box, list[Any]] = {}
  for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
    places.setdefault(box_of(index, leaf.shape), []).append(device)
  shards = {
    box: jax.device_put(np.zeros([stop - start for start, stop in box], leaf.dtype), devices[0])
    for box, devices in places.items()
  }
  missing = {box: math.prod(shard.shape) for box, shard in shards.items()}
  for piece in publication.pieces[name]:
    overlaps = {box: common for box in shards if (common := overlap(piece.box, box)) is not None}
    if not overlaps:
      continue
    data, bits = _load(piece, publication.wire, publication.base is not None, name)
    for box, common in overlaps.items():
      start, sizes = within(common, piece.box)
      part = bits[tuple(slice(at, at + n) for at, n in zip(start, sizes, strict=True))]
      start, _ = within(common, box)
      if name in olds:
        old = np.asarray(_take(_on(olds[name], places[box][0]), start, sizes))
        if old.dtype != DTYPES[publication.wire.dtype]:
          raise ValueError(f"{name} of the base is {old.dtype}, not {publication.wire.dtype}")
        part = part ^ old.view(part.dtype)
      part = np.ascontiguousarray(part).view(DTYPES[publication.wire.dtype])
      shards[box] = _put(shards[box], part, start)
      missing[box] -= part.size
      held = len(data) + 2 * bits.nbytes + 3 * part.nbytes
      traffic.peak_bytes = max(traffic.peak_bytes, held)
    traffic.count(bits.nbytes, len(data), data, bits)
  if any(missing.values()):
    raise ValueError(f"{name} lacks pieces in the publication, or has some twice")
  parts = [
    jax.device_put(shards[box], device) for box, devices in places.items() for device in devices
  ]
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)


@functools.partial(jax.jit, static_argnums=2)
def _take(shard: Array, start: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
  return jax.lax.dynamic_slice(shard, start, sizes)


@functools.partial(jax.jit, donate_argnums=0)
def _put(shard: Array, part: Array, start: tuple[int, ...]) -> Array:
  return jax.lax.dynamic_update_slice(shard, part.astype(shard.dtype), start)


def _mine(array: Array, wire: Wire, parts: tuple[int, ...] | None) -> Iterator[tuple[Any, Box]]:
  """(shard, piece) of what this process writes: of a part with n copies, copy r has every n-th."""
  boxes = [box_of(i, array.shape) for i in array.sharding.devices_indices_map(array.shape).values()]
  for shard in array.addressable_shards:
    box = box_of(shard.index, array.shape)
    for number, part in enumerate(cut(box, array.shape, wire, parts)):
      if number % boxes.count(box) == shard.replica_id:
        yield shard, part


def _fetch(
  data: Array, index: tuple[slice, ...], shape: tuple[int, ...], part: Box, wire: Wire
) -> np.ndarray:
  """A piece of a shard, copied to the host in the type of the wire."""
  piece = _take(data, *within(part, box_of(index, shape)))
  return np.asarray(piece.astype(DTYPES[wire.dtype]))


def _planes(raw: np.ndarray, old: np.ndarray | None) -> np.ndarray:
  """uint8 [itemsize, elements]: the bits, or those that differ, by significance."""
  bits = raw.reshape(-1).view(f"u{raw.itemsize}")
  if old is not None:
    bits = bits ^ old.reshape(-1).view(bits.dtype)
  return np.ascontiguousarray(bits.view(np.uint8).reshape(-1, raw.itemsize).T)


def _load(piece: Piece, wire: Wire, differs: bool, name: str) -> tuple[bytes, np.ndarray]:
  """The bytes of a piece, and its bits, of the piece's shape. Raises ValueError."""
  shape = [stop - start for start, stop in piece.box]
  dtype = np.dtype(f"u{DTYPES[wire.dtype].itemsize}")
  size = math.prod(shape) * dtype.itemsize
  with piece.file.open("rb") as file:
    file.seek(piece.offset)
    data = file.read(piece.size)
  if len(data) != piece.size or zlib.crc32(data) != piece.checksum:
    raise ValueError(f"a piece of {name} is damaged: {piece.file}, from byte {piece.offset}")
  whole = _decompressed(data, size) if wire.compress else data
  flat = np.frombuffer(whole, np.uint8)
  if wire.compress or differs:
    flat = np.ascontiguousarray(flat.reshape(dtype.itemsize, -1).T).reshape(-1)
  return data, flat.view(dtype).reshape(shape)


def _compressed(planes: np.ndarray) -> bytes:
  import pyarrow as pa

  return pa.Codec("zstd", 1).compress(planes, asbytes=True)


def _decompressed(data: bytes, size: int) -> bytes:
  import pyarrow as pa

  return pa.Codec("zstd").decompress(data, size, asbytes=True)


def _on(array: Array, device: jax.Device) -> Array:
  """What a device holds of an array."""
  return next(shard.data for shard in array.addressable_shards if shard.device == device)
