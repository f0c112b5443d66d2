"""The order in which prompts are asked: seekable, so a position is all there is to save."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np


class Stream(Protocol):
  """Position p of a run's prompts, counted in prompts asked, -> the index of one."""

  def indices(self, position: int, count: int) -> np.ndarray:
    """The indices of the prompts at positions `position` .. `position + count - 1`, int64."""
    ...


class PromptStream:
  """Endless epochs over `size` prompts, each in an order of its own, given by `seed`.

  A range of positions may span two epochs: each epoch still asks every prompt once. Raises
  ValueError if there is nothing to stream.
  """

  def __init__(self, size: int, seed: int):
    if size < 1:
      raise ValueError("a prompt stream needs at least one prompt")
    self._size, self._seed = size, seed
    self._order = functools.lru_cache(maxsize=2)(self._permutation)

  def indices(self, position: int, count: int) -> np.ndarray:
    """See `Stream.indices`."""
    positions = np.arange(position, position + count)
    indices = [self._order(int(p) // self._size)[p % self._size] for p in positions]
    return np.array(indices, np.int64)

  def _permutation(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self._seed, epoch)).permutation(self._size)


def share(count: int, host: int, hosts: int) -> range:
  """Which of `count` prompts `host` asks, of `hosts`: in one piece, and no two ask the same."""
  return range(count * host // hosts, count * (host + 1) // hosts)
