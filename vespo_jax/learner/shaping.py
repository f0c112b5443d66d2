"""What a rollout is paid for beside being correct; only training pays it, evaluation never does.

reward = clip(correct + format_weight * formatted + overlong_factor * overlong, low, high)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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

  def compose(
    self, correct_B: np.ndarray, texts: Sequence[str], lengths_B: np.ndarray
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rewards, and their components by name.

    Args:
      correct_B: the verdicts, from 0 to 1.
      texts: of the responses.
      lengths_B: tokens of each response, the end token included.

    Returns:
      float64 [B], and float64 [B] each: `correct`, as given; `format`, 1 where an answer stands in
      the wanted format; `overlong`, from -1 to 0. They are before weights and before the clip.
    """
    within_B = lengths_B <= self.length_cap if self.length_cap else np.ones(len(texts), bool)
    formatted_B = np.zeros(len(texts))
    if self.format_weight:
      formatted_B = np.array([bool(extract(text, self.format)) for text in texts], np.float64)
    overlong_B = np.zeros(len(texts))
    if self.overlong_buffer:
      overlong_B = overlong(lengths_B, self.max_length, self.overlong_buffer)
    earned_B = np.where(within_B, correct_B + self.format_weight * formatted_B, 0.0)
    rewards_B = earned_B + self.overlong_factor * overlong_B
    if self.low < self.high:
      rewards_B = np.clip(rewards_B, self.low, self.high)
    return rewards_B, {"correct": correct_B, "format": formatted_B, "overlong": overlong_B}


def overlong(lengths_B: np.ndarray, max_length: int, buffer: int) -> np.ndarray:
  """DAPO's soft punishment of long responses: 0 up to `max_length` - `buffer` tokens, from there
  linearly down to -1 at `max_length`, and -1 beyond. Source: arXiv 2503.14476, equation 13."""
  return -np.clip((lengths_B - (max_length - buffer)) / buffer, 0.0, 1.0)
