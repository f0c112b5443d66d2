"""Which prompts were asked for which update, and which are next: what a run cannot work out again
once that depends on rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vespo_jax.tasks import Stream


@dataclasses.dataclass(frozen=True)
class Portion:
  """Consecutive prompts of the stream, asked in one round.

  Attributes:
    position: of the first, which is also its group id.
    indices: of the prompts among the problems.
    longest_prompt: tokens of the longest prompt that was given out by then; 0: not known.
  """

  position: int
  indices: tuple[int, ...]
  longest_prompt: int = 0

  def __getitem__(self, part: slice) -> Portion:
    start, stop, _ = part.indices(len(self.indices))
    return Portion(self.position + start, self.indices[start:stop], self.longest_prompt)

  @property
  def group_ids(self) -> range:
    """Of all its prompts."""
    return range(self.position, self.position + len(self.indices))


class Ledger:
  """Gives out the positions of a stream, each once, and keeps what was given for an update until
  that update has its minibatch.

  Args:
    stream: of the run.
    longest_prompt: tokens of what counts as the longest prompt so far, of a new run.
    saved: what `to_dict` of an earlier part of the run gave, also after JSON; None for a new run.
  """

  def __init__(
    self,
    stream: Stream,
    longest_prompt: int = 0,
    saved: Mapping[str, Any] | None = None,
  ):
    self._stream = stream
    self._position = saved["position"] if saved else 0
    self._longest_prompt = saved.get("longest_prompt", 0) if saved else longest_prompt
    self._rounds: dict[int, list[Portion]] = {
      int(update): [Portion(position, tuple(of), *longest) for position, of, *longest in rounds]
      for update, rounds in (saved["rounds"] if saved else {}).items()
    }

  def next(self, count: int) -> tuple[int, ...]:
    """The indices of the next `count` prompts, which nobody has been given yet."""
    return tuple(np.asarray(self._stream.indices(self._position, count)).tolist())

  def give(self, update: int, indices: Sequence[int], longest_prompt: int) -> Portion:
    """What `next` said, of so many tokens at most, for another round of an update."""
    self._longest_prompt = max(self._longest_prompt, longest_prompt)
    portion = Portion(self._position, tuple(indices), self._longest_prompt)
    self._rounds.setdefault(update, []).append(portion)
    self._position += len(indices)
    return portion

  def rounds(self, update: int) -> list[Portion]:
    """What was given for an update so far."""
    return list(self._rounds.get(update, ()))

  def open(self) -> list[int]:
    """The updates that were given prompts and have no minibatch yet, ascending."""
    return sorted(self._rounds)

  def close(self, update: int) -> None:
    """Forgets an update, which has its minibatch."""
    del self._rounds[update]

  def to_dict(self) -> dict[str, Any]:
    """Plain values for JSON."""
    plain = lambda portion: [portion.position, list(portion.indices), portion.longest_prompt]
    rounds = {
      str(update): list(map(plain, portions)) for update, portions in sorted(self._rounds.items())
    }
    return {
      "position": self._position,
      "longest_prompt": self._longest_prompt,
      "rounds": rounds,
    }
