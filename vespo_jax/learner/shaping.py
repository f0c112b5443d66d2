"""What a rollout is paid for beside being correct; only training pays it, evaluation never does.

reward = clip(correct + format_weight * formatted + overlong_factor * overlong, low, high)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vespo_jax.tasks.extraction import extract


@dataclasses.dataclass(frozen=True)
class Shaping:
  """How rewards are composed: see the keys of the same names in configs/base.py, `reward`.

  `max_length` is in tokens and above 0 wherever `overlong_buffer` is.
  """

  format: str
  format_weight: float
  overlong_buffer: int
  overlong_factor: float
  max_length: int
  length_cap: int
  low: float
  high: float

  @property
  def active(self) -> bool:
    """Whether anything but correctness is paid for."""
    clipped = self.low < self.high
    return bool(self.format_weight or self.overlong_buffer or self.length_cap or clipped)

  def parts(self, correct: float, text: str, length: int) -> np.ndarray:
    """What a response of `length` tokens, the end token included, is paid for, before weights.

    Returns:
      float64 [3], in the order of `REWARD_PARTS`: the verdict, and 1 where an answer stands in the
      wanted format, both 0 beyond the length cap; and the overlong penalty, from -1 to 0.
    """
    if self.length_cap and length > self.length_cap:
      correct = formatted = 0.0
    else:
      formatted = float(bool(self.format_weight and extract(text, self.format)))
    return np.array([correct, formatted, overlong(length, self.max_length, self.overlong_buffer)])

  def total(self, parts: np.ndarray) -> float:
    """The reward that they make."""
    reward = float(parts @ [1.0, self.format_weight, self.overlong_factor])
    return min(max(reward, self.low), self.high) if self.low < self.high else reward


def overlong(length: int, max_length: int, buffer: int) -> float:
  """DAPO's soft punishment of long responses: 0 up to `max_length` - `buffer` tokens, from there
  linearly down to -1 at `max_length`, and -1 beyond; 0 without a buffer. Source: arXiv 2503.14476,
  equation 13."""
  beyond = length - (max_length - buffer)
  return -min(max(beyond / buffer, 0.0), 1.0) if buffer else 0.0
