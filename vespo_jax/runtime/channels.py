"""Weights through shared memory: whole immutable sets, in memory that has no name.

A set lies in one of n slots. The slot's header holds its version and the checksum of its bytes, and
a checksum of its own, so that whatever a reader copies while the writer is at work (it takes no
lock, and may die at any moment) either is one published set or is seen not to be.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
import zlib
from typing import IO

import jax
import numpy as np

from vespo_jax import sharding
from vespo_jax.models import ModelSpec, abstract
from vespo_jax.types import Params

_HEADER = struct.Struct("<qI")  # version, crc32 of the slot; followed by the crc32 of these bytes
_HEADER_CHECK = struct.Struct("<I")
_ALIGN = 64
_RETRY_S = 0.001


class WeightLayout:
  """A policy's parameters as one block of float32 bytes; both sides derive it from the spec.

  Attributes:
    nbytes: of a block.
  """

  def __init__(self, spec: ModelSpec):
    leaves, self._tree = jax.tree.flatten(abstract(spec))
    self._shapes = [leaf.shape for leaf in leaves]
    sizes = [-(-leaf.size * 4 // _ALIGN) * _ALIGN for leaf in leaves]
    self._offsets = np.cumsum([0, *sizes]).tolist()
    self.nbytes: int = self._offsets[-1]

  def write(self, params: Params, block: np.ndarray) -> None:
    """Copies parameters of any float type into `block`, uint8 [nbytes]; what is spread over several
    hosts is gathered, all of them making the call."""
    leaves = self._tree.flatten_up_to(params)
    for leaf, target in zip(leaves, self._views(block), strict=True):
      np.copyto(target, sharding.fetch(leaf))  # one array at a time is whole

  def read(self, block: np.ndarray) -> Params:
    """The parameters in `block`, as views of it."""
    return jax.tree.unflatten(self._tree, self._views(block))

  def _views(self, block: np.ndarray) -> list[np.ndarray]:
    return [
      np.ndarray(shape, np.float32, block, offset)
      for shape, offset in zip(self._shapes, self._offsets, strict=False)
    ]


class SharedWeights:
  """A `WeightChannel` in shared memory, and its writing side.

  One process creates it and publishes; others open it on the inherited file descriptor. The file
  has no name, so that nothing is left behind whoever dies.

  Args:
    spec: of the policy.
    slots: versions kept, at least 2; a new one takes the place of the oldest.
    fd: None to create the memory, else the descriptor of an existing one.

  Raises:
    ValueError: for fewer than 2 slots.
    OSError: if there is no room for the memory.
  """

  def __init__(self, spec: ModelSpec, slots: int = 2, fd: int | None = None):
    if slots < 2:
      raise ValueError(f"slots={slots}: readers need one while the other is written")
    self._layout, self._slots = WeightLayout(spec), slots
    self._file = None
    if fd is None:
      self._file = anonymous_file(slots * self._stride)
      fd = self._file.fileno()
    self.fd = fd
    self._memory = mmap.mmap(fd, slots * self._stride)

  def publish(self, version: int, params: Params) -> None:
    """Copies the weights in the place of the oldest; the arrays may change after the call.

    Raises ValueError unless `version` is newer than all before: it names one set of weights.
    """
    versions = [header[0] for header in self._headers()]
    if version <= max(versions):
      raise ValueError(f"version {version} is not newer than version {max(versions)}")
    slot = int(np.argmin(versions))
    block = self._block(slot)
    self._point(slot, -1, 0)
    self._layout.write(params, block)
    self._point(slot, version, zlib.crc32(block.data))

  def newest(self) -> int:
    """The newest version there is; -1 before the first."""
    return max(version for version, _ in self._headers())

  def read(self, version: int, timeout_s: float, exact: bool) -> tuple[int, Params]:
    """A private, verified copy of `version`, or of the newest once that is not older.

    Raises TimeoutError; LookupError, at once, if `version` itself was wanted and is overwritten.
    """
    deadline = time.monotonic() + timeout_s
    while True:
      headers = self._headers()
      newest = max(found for found, _ in headers)
      wanted = version if exact else max(version, newest)
      for slot, (found, checksum) in enumerate(headers):
        if found == wanted:
          copy = self._block(slot).copy()
          if zlib.crc32(copy.data) == checksum:
            return found, self._layout.read(copy)
      if exact and newest > version and version not in [found for found, _ in headers]:
        raise LookupError(f"version {version} of the weights is gone; {self._kept()}")
      if time.monotonic() > deadline:
        raise TimeoutError(
          f"no weights of version {version} or newer within {timeout_s:g} s; {self._kept()}"
        )
      time.sleep(_RETRY_S)  # not there yet, or overwritten while it was copied

  def weights(self, version: int) -> Params:
    """A copy of a kept set. Raises LookupError if it is not kept."""
    return self.read(version, 0.0, exact=True)[1]

  def close(self) -> None:
    """Lets go of the memory; it is freed when every process has."""
    self._memory.close()
    if self._file is not None:
      self._file.close()

  @property
  def _stride(self) -> int:
    return _ALIGN + self._layout.nbytes

  def _block(self, slot: int) -> np.ndarray:
    start = slot * self._stride + _ALIGN
    return np.frombuffer(self._memory, np.uint8, self._layout.nbytes, start)

  def _point(self, slot: int, version: int, checksum: int) -> None:
    header = _HEADER.pack(version, checksum)
    start = slot * self._stride
    whole = header + _HEADER_CHECK.pack(zlib.crc32(header))
    self._memory[start : start + len(whole)] = whole

  def _headers(self) -> list[tuple[int, int]]:
    """(version, checksum) of each slot; version -1 where there is nothing whole, as at first."""
    headers = []
    for slot in range(self._slots):
      start, end = slot * self._stride, slot * self._stride + _HEADER.size
      header, check = self._memory[start:end], self._memory[end : end + _HEADER_CHECK.size]
      whole = _HEADER_CHECK.pack(zlib.crc32(header)) == check
      headers.append(_HEADER.unpack(header) if whole else (-1, 0))
    return headers

  def _kept(self) -> str:
    return f"there are {sorted(version for version, _ in self._headers() if version >= 0)}"


def anonymous_file(size: int) -> IO[bytes]:
  """An unlinked file with `size` bytes reserved, in memory where the system has such a place."""
  problem: OSError | None = None
  directories = [d for d in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(d)]
  for directory in directories:
    file = tempfile.TemporaryFile(dir=directory)
    try:
      if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would be a bus error later
      else:
        file.truncate(size)
      return file
    except OSError as error:
      file.close()
      problem = error
  raise OSError(f"no room for {size} bytes of shared memory in {directories}") from problem
