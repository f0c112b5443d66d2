"""Any dataset of the `reasoning-gym` package as a task.

The package's default scorer pays for substrings ("-14" contains "4"), so the answer is extracted
from the response first, and only a score of exactly 1.0 is a reward.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from vespo_jax.tasks import exact_json, formulas, verifiers
from vespo_jax.tasks.base import Example, Score, Task, families
from vespo_jax.tasks.extraction import FORMATS, extract, instruct, respond

_REFUSED = {
  "codeio": "it executes the code in its data files, and its problems differ between runs",
  "coin_flip": "its scorer accepts what begins as the answer does, for most problems a 0",
  "complex_arithmetic": "its scorer accepts nan",
  "composite": "it mixes other datasets; name one of those",
  "game_of_life_halting": "its scorer accepts every answer",
  "letter_jumble": "its scorer accepts the right words with any others after them",
  "propositional_logic": "its scorer accepts a premise, copied from the question",
  "puzzle24": "its scorer accepts any four numbers that make 24, whatever the question",
}
_NUMBERS = ("gsm_symbolic",)  # whose scorers take the digits of "28,080" apart, and no sign
_CHUNK = 1000  # problems of one instance: some make all of theirs at once, some refuse over 20,000


@families.register("reasoning_gym")
def reasoning_gym(dataset: str, options: dict[str, Any]) -> Task:
  """The dataset `dataset` of the package.

  Args:
    dataset: one of `reasoning_gym.factory.DATASETS`, for instance "chain_sum".
    options: `answer_format`, one of `extraction.FORMATS` (default "tag"); everything else goes to
      the dataset's own config.

  Raises:
    ValueError: naming the dataset or option that is not known or not accepted, or why it is not.
  """
  return ReasoningGymTask(dataset, options)


class ReasoningGymTask:
  """See `reasoning_gym`."""

  def __init__(self, dataset: str, options: dict[str, Any]):
    self.name, self.options = f"reasoning_gym/{dataset}", dict(options)
    self.version = importlib.metadata.version("reasoning-gym")
    self._dataset_name = dataset
    self._dataset_options = dict(options)
    self._answer_format = self._dataset_options.pop("answer_format", "tag")
    if self._answer_format not in tuple(FORMATS):  # it may be unhashable
      raise ValueError(
        f"answer_format={self._answer_format!r} is not known; known: {', '.join(FORMATS)}"
      )
    self._scorer = self._create(seed=0, size=1)
    self._number = verifiers.make("numeric", answer_format="hash")

  def generate(self, seed: int, limit: int) -> Iterator[tuple[str, str, str]]:
    """Problems in the dataset's own order: (question, answer, metadata), at most `limit`; answer ""
    where the dataset has none."""
    for start in range(0, limit, _CHUNK):
      dataset = self._create(seed=_seed_of(seed, start), size=_CHUNK)
      for index in range(min(_CHUNK, limit - start)):
        entry = dataset[index]
        answer = entry["answer"] or ""
        if "Integral(" in answer:  # sympy found none, and the question is no answer to itself
          answer = ""
        if entry["answer"] != "":  # a few problems have no answer that can be said
          yield entry["question"], answer, exact_json.dumps(entry)

  def prompt(self, example: Example) -> str:
    """The question, and where the answer belongs."""
    return instruct(example.question, self._answer_format)

  def answer(self, response: str) -> str | None:
    """What stands where the answer belongs, if it is not empty."""
    return extract(response, self._answer_format) or None

  def solution(self, example: Example) -> str:
    """The answer of the dataset, where the format wants it."""
    return respond(example.answer, self._answer_format) if example.answer else ""

  def score(self, example: Example, response: str) -> Score:
    """1 if the extracted answer gets exactly 1.0 from the dataset's scorer; of `_NUMBERS`, if its
    first number is the same."""
    answer = self.answer(response)
    if answer is None:
      return Score(0.0, "unparsed")
    if self._dataset_name in _NUMBERS:
      return self._number(f"#### {answer}", example.answer, example.metadata)
    raw = float(self._scorer.score_answer(answer, exact_json.loads(example.metadata)))
    return Score(1.0, "ok", raw) if raw == 1.0 else Score(0.0, "wrong", raw)

  def _create(self, *, seed: int, size: int) -> Any:
    if self._dataset_name in _REFUSED:
      reason = _REFUSED[self._dataset_name]
      raise ValueError(f"dataset {self._dataset_name!r} cannot be used: {reason}")

    package = _package()
    known = sorted(set(package.factory.DATASETS) - set(_REFUSED))
    if self._dataset_name not in known:
      close = difflib.get_close_matches(self._dataset_name, known, n=1)
      hint = f" (did you mean {close[0]!r}?)" if close else ""
      raise ValueError(f"no dataset {self._dataset_name!r}{hint}; known: {', '.join(known)}")
    try:
      return package.create_dataset(
        self._dataset_name, seed=seed, size=size, **self._dataset_options
      )
    except (TypeError, ValueError, AssertionError, OSError) as error:
      raise ValueError(f"options {self._dataset_options} are not accepted: {error}") from error


def _seed_of(seed: int, start: int) -> int:
  """Of the instance with the problems from `start` on, 31 bits. Its problem i draws from the sum of
  that and i, so that neighbours would share almost all problems. Seed 0 counts on from 0."""
  if seed == 0:
    return start
  return int(np.random.SeedSequence((seed, start)).generate_state(1)[0]) >> 1


class _Deferred(types.ModuleType):
  """A module that is imported once something of it is used."""

  def __getattr__(self, name: str) -> Any:
    if sys.modules.get(self.__name__) is self:
      del sys.modules[self.__name__]
    return getattr(importlib.import_module(self.__name__), name)


def _package() -> Any:
  """The package, which takes a second to import; almost another, for matplotlib, is left out until
  the one dataset that needs it makes a problem."""
  sys.modules.setdefault("cellpylib", _Deferred("cellpylib"))
  import reasoning_gym

  formulas.disarm("reasoning_gym")
  return reasoning_gym
