"""The GGUF container: its metadata and its tensors, which the `gguf` package dequantises.

The package's own reader makes an array of every token of the vocabulary (seconds); this one reads
the same layout with `struct`: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 1 << 26  # large vocabularies take a quarter of it, and in Python much more
_NUMBERS = {  # the codes of `struct`
  0: "B",
  1: "b",
  2: "H",
  3: "h",
  4: "I",
  5: "i",
  6: "f",
  7: "?",
  10: "Q",
  11: "q",
  12: "d",
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the file: its ggml type, its shape (rows first) and where its bytes are."""

  name: str
  kind: Any
  shape: tuple[int, ...]
  start: int
  size: int


@dataclasses.dataclass(frozen=True)
class GGUFFile:
  """What a file says before its numbers begin."""

  path: Path
  metadata: dict[str, Any]
  tensors: dict[str, Tensor]


def read_header(path: Path) -> GGUFFile:
  """The metadata and the list of tensors of the file at `path`.

  Raises:
    ValueError: naming the file, and the tensor, if the file is no GGUF of version 2 or 3, is one of
      several parts, is truncated, its header is longer than `_MAX_HEADER_BYTES`, or a key or a
      tensor is there twice, overlaps another, or is of a type that is not known.
  """
  size = path.stat().st_size
  if size < 8 or path.open("rb").read(4) != MAGIC:
    raise ValueError(f"{path} is not a GGUF file")
  with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    cursor = _Cursor(data)
    try:
      version = cursor.number("I")
      if version not in _VERSIONS:
        raise ValueError(f"{path} is GGUF version {version}; known: 2 and 3, little-endian")
      tensors, keys = cursor.number("Q"), cursor.number("Q")
      metadata = {}
      for _ in range(keys):
        key = cursor.text()
        if key in metadata:
          raise ValueError(f"{path} has the key {key} twice")
        metadata[key] = cursor.value(cursor.number("I"))
      entries = [_entry(cursor) for _ in range(tensors)]
    except (struct.error, UnicodeDecodeError, KeyError, RecursionError) as error:
      raise ValueError(
        f"{path} is truncated or corrupt: its header ends at byte {cursor.at}"
      ) from error
  if metadata.get("split.count", 1) not in (0, 1):
    raise ValueError(
      f"{path} is one of {metadata['split.count']} parts; merge them with gguf-split"
    )
  alignment = metadata.get("general.alignment", 32)
  if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_HEADER_BYTES:
    raise ValueError(f"general.alignment={alignment!r:.50} of {path} is no alignment")
  start = -(-cursor.at // alignment) * alignment
  return GGUFFile(path, metadata, _locate(path, entries, start, size))


def read_tensor(file: BinaryIO, tensor: Tensor) -> np.ndarray:
  """The numbers of `tensor` as float32, or as they are if that is what the file holds.

  Raises ValueError naming the tensor and its type, if it cannot be dequantised.
  """
  from gguf import quants

  file.seek(tensor.start)
  data = np.frombuffer(file.read(tensor.size), np.uint8)
  try:
    return quants.dequantize(data.reshape(*tensor.shape[:-1], -1), tensor.kind)
  except (NotImplementedError, ValueError) as error:
    raise ValueError(
      f"{tensor.name} in {file.name} cannot be read as {tensor.kind.name}: {error}"
    ) from error


class _Cursor:
  """Reads the header forwards; past the end, `struct.error`."""

  def __init__(self, data: mmap.mmap):
    self.data, self.at, self.end = data, len(MAGIC), min(len(data), _MAX_HEADER_BYTES)

  def number(self, code: str) -> Any:
    return self.numbers(1, code)[0]

  def numbers(self, count: int, code: str) -> tuple[Any, ...]:
    code = f"<{count}{code}"
    return struct.unpack_from(code, self.data, self.skip(struct.calcsize(code)))

  def text(self) -> str:
    start = self.skip(self.number("Q"))
    return self.data[start : self.at].decode()

  def skip(self, size: int) -> int:
    """Moves on by `size` bytes; returns where they begin."""
    if size > self.end - self.at:
      raise struct.error
    self.at += size
    return self.at - size

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.text()
    if kind == _FLOAT32:  # the shortest number that is stored so: 1e-05, not 9.99999974e-06
      return float(str(np.float32(self.number("f"))))
    if kind != _ARRAY:
      return self.number(_NUMBERS[kind])
    kind, length = self.number("I"), self.number("Q")
    if kind in _NUMBERS:
      return list(self.numbers(length, _NUMBERS[kind]))
    return [self.value(kind) for _ in range(length)]


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
  """A tensor's name, shape (the file has the fastest axis first), type and offset."""
  name = cursor.text()
  shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
  return name, shape[::-1], cursor.number("I"), cursor.number("Q")


def _locate(
  path: Path, entries: list[tuple[str, tuple[int, ...], int, int]], start: int, size: int
) -> dict[str, Tensor]:
  import gguf

  tensors: dict[str, Tensor] = {}
  for name, shape, kind, offset in entries:
    if name in tensors:
      raise ValueError(f"{name} is in {path} twice")
    if kind not in set(gguf.GGMLQuantizationType):
      raise ValueError(f"{name} in {path} is of the unknown ggml type {kind}")
    kind = gguf.GGMLQuantizationType(kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if not shape or 0 in shape or shape[-1] % block:
      raise ValueError(f"{name} in {path} has shape {shape}, in blocks of {block} ({kind.name})")
    tensors[name] = Tensor(
      name, kind, shape, start + offset, math.prod(shape) // block * block_bytes
    )
  end = start
  for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
    if tensor.start < end:
      raise ValueError(f"{path} is corrupt: {tensor.name} overlaps another tensor")
    end = tensor.start + tensor.size
    if end > size:
      raise ValueError(f"{path} is truncated: {tensor.name} ends at byte {end}, the file at {size}")
  return tensors
