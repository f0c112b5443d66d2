"""The protocols between learner and samplers, and the weights' way through shared memory.

A weight set is published whole and is immutable to its readers: two slots alternate, a header names
the newest, and a checksum over the bytes a reader copied says that they are one version.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
import zlib
from typing import Any, Protocol

import jax
import numpy as np

from vespo_jax.models import ModelSpec, abstract
from vespo_jax.sampler import Order, Result
from vespo_jax.types import Params


class WeightChannel(Protocol):
  """Weights by version, from the learner to its samplers."""

  def publish(self, version: int, params: Params) -> None:
    """Makes a whole set of weights the newest; the arrays may change after the call."""

  def latest(self, minimum_version: int, timeout_s: float) -> tuple[int, Params]:
    """The newest set, once it is at least `minimum_version`. Raises TimeoutError."""


class RolloutChannel(Protocol):
  """Orders to a sampler and its results, in order."""

  def put(self, order: Order) -> None:
    """Hands an order over."""

  def get(self, timeout_s: float) -> Result:
    """The result of the oldest order. Raises TimeoutError, or ChildDied if the sampler is gone."""

  def health(self) -> dict[str, Any]:
    """What is known about the sampler: `alive`, `pid`, `pending` orders."""

  def close(self) -> None:
    """Ends the sampler. Idempotent."""


_HEADER = struct.Struct("<qqIxxxx")  # version, slot, crc32 of the slot
_ALIGN = 64


class SharedWeights:
  """A `WeightChannel` in anonymous shared memory: it has no name, so nothing can leak.

  One process creates it and publishes; another opens it on the inherited file descriptor.

  Args:
    spec: of the policy; both sides derive the same layout of float32 tensors from it.
    fd: None to create the memory, else the descriptor of an existing one.

  Raises:
    OSError: if there is no room for two sets of weights.
  """

  def __init__(self, spec: ModelSpec, fd: int | None = None):
    leaves, self._tree = jax.tree.flatten(abstract(spec))
    self._shapes = [leaf.shape for leaf in leaves]
    sizes = [-(-leaf.size * 4 // _ALIGN) * _ALIGN for leaf in leaves]
    self._offsets = np.cumsum([0, *sizes]).tolist()
    self._slot_bytes = self._offsets[-1]
    total = _ALIGN + 2 * self._slot_bytes
    self._file = None
    if fd is None:
      self._file = _anonymous_file(total)
      fd = self._file.fileno()
    self.fd = fd
    self._memory = mmap.mmap(fd, total)
    self._published = 0
    if self._file is not None:
      _HEADER.pack_into(self._memory, 0, -1, 0, 0)

  def publish(self, version: int, params: Params) -> None:
    """Copies the weights into the slot no reader was pointed to, then points to it."""
    slot = self._published % 2
    self._published += 1
    start = _ALIGN + slot * self._slot_bytes
    for leaf, shape, offset in zip(
      jax.tree.leaves(params), self._shapes, self._offsets, strict=False
    ):
      target = np.ndarray(shape, np.float32, self._memory, start + offset)
      np.copyto(target, np.asarray(leaf))
    with memoryview(self._memory)[start : start + self._slot_bytes] as view:
      checksum = zlib.crc32(view)
    _HEADER.pack_into(self._memory, 0, version, slot, checksum)

  def latest(self, minimum_version: int, timeout_s: float) -> tuple[int, Params]:
    """A private copy of the newest weights, verified. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
      version, slot, checksum = _HEADER.unpack_from(self._memory, 0)
      if version >= minimum_version:
        start = _ALIGN + slot * self._slot_bytes
        copy = np.frombuffer(self._memory[start : start + self._slot_bytes], np.uint8)
        if zlib.crc32(copy.data) == checksum:
          return version, self._unflatten(copy)
      time.sleep(0.001)  # not there yet, or overwritten while it was copied
    raise TimeoutError(f"no weights of version {minimum_version} or newer within {timeout_s:g} s")

  def _unflatten(self, data: np.ndarray) -> Params:
    leaves = [
      np.ndarray(shape, np.float32, data, offset)
      for shape, offset in zip(self._shapes, self._offsets, strict=False)
    ]
    return jax.tree.unflatten(self._tree, leaves)

  def close(self) -> None:
    """Lets go of the memory; it is freed when the other side does too."""
    self._memory.close()
    if self._file is not None:
      self._file.close()


def _anonymous_file(size: int):
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
  raise OSError(f"no room for {size} bytes of shared weights in {directories}") from problem
