"""A task is prompts and a verifier. This module imports nothing heavy: grader processes use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vespo_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem.

  Attributes:
    id: its index in its split.
    question: what is asked.
    answer: a correct answer, or "" where the task only scores.
    metadata: JSON with whatever the verifier needs.
  """

  id: int
  question: str
  answer: str
  metadata: str


@dataclasses.dataclass(frozen=True)
class Score:
  """A verdict: `reward` 0 or 1, why (one of `types.REWARD_STATUS`), and the scorer's own number."""

  reward: float
  status: str
  raw: float = 0.0


class Task(Protocol):
  """What a task family makes: a `GeneratedTask` or a `StoredTask`.

  Attributes:
    name: "FAMILY/DATASET", or "FAMILY:PATH" for a file.
    options: the options it was made with, JSON-able.
  """

  name: str
  options: dict[str, Any]

  def prompt(self, example: Example) -> str:
    """The text a policy is asked with."""

  def solution(self, example: Example) -> str:
    """A response that `score` rewards, to be imitated; "" where the task only scores."""

  def score(self, example: Example, response: str) -> Score:
    """The verdict on a response; called in a grader process, and may take or do anything."""


@runtime_checkable
class Votable(Protocol):
  """A task whose answers are equal if their texts are, so that a majority of them can be found."""

  def answer(self, response: str) -> str | None:
    """What a response answers, or None; no grader process is around it, so it only cuts text."""
    ...


class GeneratedTask(Task, Protocol):
  """A task that makes its problems.

  Attributes:
    version: of what generates and scores, for instance a package's version.
  """

  version: str

  def generate(self, seed: int, limit: int) -> Iterator[tuple[str, str, str]]:
    """Up to `limit` problems as (question, answer, metadata), the same for the same seed."""


@runtime_checkable
class StoredTask(Task, Protocol):
  """A task whose problems are in files.

  Attributes:
    train_split, test_split: the stored splits to train on and to hold out; "": the publisher's.
    held_out: the fraction of the problems that is held out where both are of the same split.
  """

  train_split: str
  test_split: str
  held_out: float

  def locate(self, data_dir: Path) -> Path:
    """The prepared dataset, in `data_dir`. Raises ValueError saying what to do if there is none."""

  def check(self, data_dir: Path) -> str:
    """The digest of what `locate` would find; as the option `digest` it keeps a task to these
    problems. Prepares nothing. Raises ValueError, as `locate` would, if they cannot be had."""


families = Registry("task family")


def make(name: str, /, **options: Any) -> Task:
  """The task "FAMILY/DATASET", or "FAMILY:PATH", with the family's options.

  Raises ValueError naming what is known, for an unknown family, dataset or option.
  """
  family, separator, dataset = name.partition("/")
  if ":" in family:
    family, separator, dataset = name.partition(":")
    family += separator  # such a family is registered with its colon
  if not separator and (known := [f"{of}/{name}" for of in families.names() if _has(of, name)]):
    raise ValueError(f"a task is FAMILY/DATASET; did you mean {' or '.join(known)}?")
  return families.make(family, dataset=dataset, options=options)


def _has(family: str, dataset: str) -> bool:
  """Whether a family has a dataset of that name; one of files does not say."""
  try:
    return not family.endswith(":") and bool(families.make(family, dataset=dataset, options={}))
  except ValueError:
    return False
