"""The problems of several tasks behind one numbering: each task keeps its own verifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vespo_jax.learner.intake import Problems
from vespo_jax.tasks import Example, sieve
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A `ProblemSet` of several. Rollouts have the label of their task.

  Attributes:
    parts: the problems of each task, by label.
    places: int64 [M, 2]; problem i is number `places[i, 1]` of part `places[i, 0]`.
  """

  parts: Mapping[str, Problems]
  places: np.ndarray

  @classmethod
  def concatenated(cls, parts: Mapping[str, Problems]) -> Mixture:
    """All problems, task after task, as `tasks.MixtureStream` numbers them."""
    sizes = [len(part.examples) for part in parts.values()]
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.concatenate([np.arange(size) for size in sizes])
    return cls(parts, np.stack([tasks, numbers], axis=1))

  @property
  def names(self) -> tuple[str, ...]:
    """The labels."""
    return tuple(self.parts)

  @property
  def tokenizer(self) -> Tokenizer:
    """Of all of them."""
    return next(iter(self.parts.values())).tokenizer

  @property
  def own_reward(self) -> bool:
    """Of all of them."""
    return next(iter(self.parts.values())).own_reward

  @property
  def examples(self) -> Mixture:
    """By number."""
    return self

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, index: int) -> Example:
    part, number = self._place(index)
    return self.parts[part].examples[number]

  def prompts(self, indices: Sequence[int] | np.ndarray) -> list[list[int]]:
    """See `ProblemSet.prompts`."""
    places = [self._place(int(index)) for index in indices]
    return [self.parts[part].prompts([number])[0] for part, number in places]

  def solutions(self, indices: Sequence[int] | np.ndarray) -> list[tuple[str, str]]:
    """See `ProblemSet.solutions`."""
    places = [self._place(int(index)) for index in indices]
    return [self.parts[part].solutions([number])[0] for part, number in places]

  def grade(self, rollouts: Sequence[Rollout], indices: Sequence[int] | np.ndarray) -> None:
    """See `ProblemSet.grade`; task after task."""
    places = [self._place(int(index)) for index in indices]
    for name, part in self.parts.items():
      rows = [row for row, (task, _) in enumerate(places) if task == name]
      mine = [rollouts[row] for row in rows]
      part.grade(mine, [places[row][1] for row in rows])
      for rollout in mine:
        rollout.task = name

  def answer(self, rollout: Rollout) -> str:
    """See `ProblemSet.answer`."""
    return self.parts[rollout.task].answer(rollout)

  def _place(self, index: int) -> tuple[str, int]:
    if not 0 <= index < len(self):
      raise IndexError(f"no problem {index} among {len(self)}")
    part, number = self.places[index].tolist()
    return self.names[part], number


def without_held_out(
  train: Mapping[str, Problems], held_out: Mapping[str, Problems]
) -> dict[str, Problems]:
  """The training problems of each task without those whose question any of them holds out, and says
  how many these are.

  Raises ValueError if one has none left; it begins with the label.
  """
  keys = {sieve.key(example.question) for part in held_out.values() for example in part.examples}
  left = {}
  for label, part in train.items():
    examples = part.examples.where(lambda example: sieve.key(example.question) not in keys)
    dropped = len(part.examples) - len(examples)
    if not examples:
      raise ValueError(
        f"{label} has nothing to train on: the mixture holds out all of its questions"
      )
    if dropped:
      part.say(
        f"{label}: {dropped} training problems are left out: the mixture holds out their questions"
      )
    left[label] = dataclasses.replace(part, examples=examples)
  return left
