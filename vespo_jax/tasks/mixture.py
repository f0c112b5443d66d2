"""Several tasks in one stream, in fixed proportions.

The tasks are interleaved, not drawn: every minibatch then has the proportions that were asked for,
which draws would have on average only, and the position is still all there is to save.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vespo_jax.tasks.stream import Stream

LONGEST_PERIOD = 10_000  # prompts
_LABEL = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True)
class Ingredient:
  """One task of a mixture.

  Attributes:
    name: of the task, as `tasks.make` takes it.
    weight: its share of the prompts, relative to the others'.
    options: of the task.
    train_size, test_size: training and held-out prompts.
  """

  name: str
  weight: float
  train_size: int
  test_size: int
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_mixture(
  mixture: Mapping[str, Any], *, train_size: int, test_size: int
) -> dict[str, Ingredient]:
  """The ingredients of a config's mixture, sorted by label, of these sizes where it does not say.

  Raises ValueError naming the label and what is wrong with it, or why the weights are.
  """
  fields = {field.name for field in dataclasses.fields(Ingredient)}
  found = {}
  for label, value in sorted(mixture.items()):
    if not _LABEL.fullmatch(label):
      raise ValueError(f"the label {label!r:.100} may have letters, digits, '_' and '-'")
    if not isinstance(value, Mapping) or not {"name", "weight"} <= value.keys() <= fields:
      raise ValueError(f"{label} must have name and weight, and may have {', '.join(_OPTIONAL)}")
    for field, (good, words) in _FIELDS.items():
      if field in value and not good(value[field]):
        raise ValueError(f"{label}.{field}={value[field]!r:.100} must be {words}")
    sizes: dict[str, Any] = {"train_size": train_size, "test_size": test_size}
    found[label] = Ingredient(**(sizes | dict(value)))
  pattern([ingredient.weight for ingredient in found.values()])
  return found


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**31


def _is_weight(value: Any) -> bool:
  return type(value) in (int, float) and 1e-6 <= value <= 1e6


_FIELDS = {
  "name": (lambda value: isinstance(value, str), "a text"),
  "weight": (_is_weight, "a number from 1e-6 to 1e6"),
  "options": (lambda value: isinstance(value, Mapping), "options by name"),
  "train_size": (_is_size, "an integer, at least 0 and below 2**31"),
  "test_size": (_is_size, "an integer, at least 0 and below 2**31"),
}
_OPTIONAL = ("options", "train_size", "test_size")


def pattern(weights: Sequence[float]) -> np.ndarray:
  """Which task each position of one period belongs to, int64.

  After any number of prompts every task has had its weight's share, give or take less than one
  prompt: of the tasks that may have the next one without getting ahead, it goes to that which would
  fall behind first. Source: Tijdeman, "The chairman assignment problem" (1980), whose bound is
  1 - 1 / (2n - 2) for n tasks.

  Args:
    weights: positive, relative to one another, and taken as the decimals they are written as.

  Raises:
    ValueError: if the proportions come out even only after more than `LONGEST_PERIOD` prompts.
  """
  exact = [Fraction(repr(weight)) for weight in weights]
  total = sum(exact, Fraction(0))
  shares = [weight / total for weight in exact]
  period = math.lcm(*(share.denominator for share in shares)) if shares else 0
  if period > LONGEST_PERIOD:
    raise ValueError(
      f"the weights {', '.join(map(str, weights))} come out even only after more than "
      f"{LONGEST_PERIOD} prompts; take rounder ones, for instance 1 and 2"
    )
  n = len(shares)
  whole = max(2 * n - 2, 1) * period  # one prompt, in units that make everything below an integer
  least = period if n > 1 else 0  # what a task must lag behind before it may have the next
  units = [int(share * whole) for share in shares]
  lags, chosen = [0] * n, []
  for _ in range(period):
    lags = [lag + unit for lag, unit in zip(lags, units, strict=True)]
    may = [k for k in range(n) if lags[k] >= least]
    _, task = min((Fraction(whole - least - lags[k], units[k]), k) for k in may)
    lags[task] -= whole
    chosen.append(task)
  return np.array(chosen, np.int64)


def interleave(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
  """(task, number in it) of the first prompts of a mixture, int64 [M, 2], until a task runs out.

  Args:
    sizes: prompts of each task.
    weights: as `pattern` takes them.
  """
  tasks = np.resize(pattern(weights), sum(sizes))
  numbers = np.zeros(len(tasks), np.int64)
  for task in range(len(sizes)):
    mine = tasks == task
    numbers[mine] = np.arange(mine.sum())
  out = np.flatnonzero(numbers >= np.array(sizes)[tasks])
  return np.stack([tasks, numbers], axis=1)[: out[0] if len(out) else None]


class MixtureStream:
  """The interleaved positions of several streams; indices number all prompts, task after task.

  Args:
    streams: of the tasks.
    sizes: prompts of each.
    weights: as `pattern` takes them.
  """

  def __init__(self, streams: Sequence[Stream], sizes: Sequence[int], weights: Sequence[float]):
    self._streams = streams
    self._offsets = np.cumsum([0, *sizes])[:-1]
    self._pattern = pattern(weights)
    period = np.arange(len(streams))[:, None] == self._pattern
    # [tasks, period + 1]: prompts of each task before a position
    self._before = np.concatenate([np.zeros((len(streams), 1), int), period.cumsum(axis=1)], axis=1)

  def tasks(self, position: int, count: int) -> np.ndarray:
    """The task of each position, int64."""
    return self._pattern[np.arange(position, position + count) % len(self._pattern)]

  def indices(self, position: int, count: int) -> np.ndarray:
    """See `Stream.indices`."""
    tasks, indices = self.tasks(position, count), np.zeros(count, np.int64)
    for task, stream in enumerate(self._streams):
      mine = tasks == task
      start = self._asked(task, position)
      indices[mine] = self._offsets[task] + stream.indices(start, int(mine.sum()))
    return indices

  def _asked(self, task: int, position: int) -> int:
    """How many prompts of a task there are before `position`."""
    periods, rest = divmod(position, len(self._pattern))
    return int(periods * self._before[task, -1] + self._before[task, rest])
