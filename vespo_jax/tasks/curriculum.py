"""Prompts by what there is to learn from them: those that are sometimes solved, and not always."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

UNKNOWN = 0.5  # the success rate of a prompt that was never measured: it is asked first


class Curriculum:
  """A stream that draws a prompt of success rate p by the weight floor + (1 - floor) 4 p (1 - p).

  4 p (1 - p) is the variance of a reward of 0 or 1 in units of its largest, and so the expected
  square of a group's advantages (arXiv 2502.12272 calls p (1 - p) learnability). The draws of one
  call are without replacement as long as there are prompts left, by Gumbel keys that `seed` and the
  position give (arXiv 1903.06059). What is drawn depends on them and on `rates` alone, which are to
  be saved with the position.

  Args:
    size: prompts.
    seed: of the draws.
    floor: weight of a prompt that is always or never solved, in (0, 1]; the largest is 1. So each
      draw takes any prompt that is left with probability floor / size or more.
    decay: of the running success rates, per measurement, in [0, 1).

  Attributes:
    rates: float32 [size], the running success rates.

  Raises ValueError if there is nothing to stream.
  """

  def __init__(self, size: int, seed: int, *, floor: float, decay: float):
    if size < 1:
      raise ValueError("a curriculum needs at least one prompt")
    self._seed, self._floor, self._decay = seed, floor, decay
    self.rates = np.full(size, UNKNOWN, np.float32)

  def weights(self) -> np.ndarray:
    """Of all prompts, float64 [size], in [floor, 1]."""
    rates = self.rates.astype(np.float64)
    return self._floor + (1 - self._floor) * 4 * rates * (1 - rates)

  def indices(self, position: int, count: int) -> np.ndarray:
    """See `Stream.indices`; by the rates as they are now."""
    size, log_weights = len(self.rates), np.log(self.weights())
    drawn = [np.zeros(0, np.int64)]
    for start in range(0, count, size):
      rng = np.random.default_rng((self._seed, position + start))
      order = np.argsort(-(log_weights + rng.gumbel(size=size)), kind="stable")
      drawn.append(order[: count - start])
    return np.concatenate(drawn)

  def measure(self, index: int, success: float) -> None:
    """Takes in the success rate that a prompt was just seen to have."""
    self.rates[index] = self._decay * self.rates[index] + (1 - self._decay) * success


class Curricula:
  """The curricula of the tasks of a stream, under the numbering of `MixtureStream`.

  Args:
    curricula: by label, in the order of the numbering.
  """

  def __init__(self, curricula: Mapping[str, Curriculum]):
    self._curricula, self._all = curricula, list(curricula.values())

  @property
  def rates(self) -> dict[str, np.ndarray]:
    """Copies of all running success rates: what is to be saved."""
    return {label: curriculum.rates.copy() for label, curriculum in self._curricula.items()}

  @property
  def mean(self) -> float:
    """Of all running success rates."""
    return float(np.concatenate([curriculum.rates for curriculum in self._all]).mean())

  def restore(self, rates: Mapping[str, np.ndarray]) -> None:
    """Goes on from saved rates. Raises ValueError if they are not those of these prompts."""
    for label, curriculum in self._curricula.items():
      saved = rates.get(label)
      if saved is None or saved.shape != curriculum.rates.shape:
        raise ValueError(f"the saved success rates are not those of the prompts of {label}")
      curriculum.rates[:] = saved

  def measure(self, indices: Sequence[int], successes: Sequence[float]) -> None:
    """Takes in success rates that prompts were just seen to have, in this order; NaN is none."""
    starts = np.cumsum([0, *(len(curriculum.rates) for curriculum in self._all)])
    for index, success in zip(indices, successes, strict=True):
      task = int(np.searchsorted(starts, index, side="right")) - 1
      if not math.isnan(success):
        self._all[task].measure(index - int(starts[task]), success)
