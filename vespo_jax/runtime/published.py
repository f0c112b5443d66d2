"""Weights through a directory, in pieces: no host ever holds the model.

Every process of the learner writes what its own devices hold, and a sampler reads what its devices
are to hold (`weights.pieces`). The directory is on a file system that all of them share, and of one
run; a version is a directory in it, which counts once it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import jax

from vespo_jax import models, sharding
from vespo_jax.models import ModelSpec
from vespo_jax.types import Params
from vespo_jax.weights import pieces
from vespo_jax.weights.wire import DTYPES, Wire

_RETRY_S = 0.02
_NAME = "version-"  # of a publication's directory, before its number


@dataclasses.dataclass(frozen=True)
class Place:
  """Where publications are, and how they travel: plain values.

  Attributes:
    directory: that all processes share.
    wire: the same in all of them.
  """

  directory: str
  wire: Wire


class PublishedPieces:
  """A `WeightChannel` in a directory, and its writing side.

  Args:
    place: where.
    spec: of the policy.
    shardings: how this process and those it computes with hold the weights, a tree of them.
    slots: versions kept, at least 2; what is older is removed by the first process that writes.
    dtype: of what `read` gives, piece by piece: float32 or bfloat16.
  """

  def __init__(
    self, place: Place, spec: ModelSpec, shardings: Any, slots: int = 2, dtype: str = "float32"
  ):
    if slots < 2:
      raise ValueError(f"slots={slots}: readers need one while the other is written")
    self.place = place
    self._directory, self._slots, self._shardings = Path(place.directory), slots, shardings
    self._spec, self._dtype = spec, dtype

  def clear(self) -> None:
    """Removes the publications that are there; one process does, before any publishes."""
    for version in self._versions():
      shutil.rmtree(self._path(version))

  def publish(self, version: int, params: Params) -> None:
    """Writes this process's pieces; the arrays may change after the call.

    Every process of the learner makes the call. Raises OSError if there is no room.
    """
    placed = sharding.place(params, self._shardings)
    pieces.write(self._path(version), version, placed, self.place.wire)
    if jax.process_index() == 0:
      for old in self._versions()[: -self._slots]:
        shutil.rmtree(self._path(old), ignore_errors=True)  # somebody may be reading

  def newest(self) -> int:
    """The newest version that is whole; -1 before the first."""
    whole = (v for v in reversed(self._versions()) if pieces.is_whole(self._path(v)))
    return next(whole, -1)

  def read(self, version: int, timeout_s: float, exact: bool) -> tuple[int, Params]:
    """`version`, or the newest once that is not older, laid out.

    Raises TimeoutError; LookupError, at once, if `version` itself was wanted and is removed;
    ValueError naming a piece that is damaged.
    """
    deadline = time.monotonic() + timeout_s
    while True:
      newest = self.newest()
      found = version if exact else newest
      try:
        if found >= version and newest >= 0:
          return found, self._read(found, self._dtype)
      except FileNotFoundError:  # not whole yet, or removed, by now
        if newest > version and exact and version not in self._versions():
          kept = f"there are {self._versions()}"
          raise LookupError(f"version {version} of the weights is gone; {kept}") from None
      if time.monotonic() > deadline:
        raise TimeoutError(
          f"no weights of version {version} or newer within {timeout_s:g} s; there are "
          f"{self._versions()} in {self._directory}"
        )
      time.sleep(_RETRY_S)

  def weights(self, version: int) -> Params:
    """A kept set in float32, laid out. Raises LookupError if it is not kept."""
    try:
      return self._read(version, "float32")
    except FileNotFoundError as error:
      raise LookupError(f"version {version} of the weights is gone") from error

  def close(self) -> None:
    """Removes the publications, in the first process. Idempotent."""
    if jax.process_index() == 0:
      for version in self._versions():
        shutil.rmtree(self._path(version), ignore_errors=True)  # other hosts may be reading
      with contextlib.suppress(OSError):  # what is not ours stays
        self._directory.rmdir()

  @property
  def like(self) -> Params:
    """Shapes and shardings of what `weights` gives."""
    return self._like("float32")

  def _like(self, dtype: str) -> Params:
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, DTYPES[dtype], sharding=place),
      models.abstract(self._spec),
      self._shardings,
    )

  def _read(self, version: int, dtype: str) -> Params:
    publication = pieces.open_publication(self._path(version))
    return pieces.read(publication, self._like(dtype))[0]

  def _path(self, version: int) -> Path:
    return self._directory / f"{_NAME}{version}"

  def _versions(self) -> list[int]:
    """Of the directories there are, ascending."""
    found = [path.name.removeprefix(_NAME) for path in self._directory.glob(f"{_NAME}*")]
    return sorted(int(name) for name in found if name.isdecimal())
