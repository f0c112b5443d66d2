"""Rows -> problems that are distinct across all splits, with an account of what was left out."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vespo_jax.metrics import printable
from vespo_jax.tasks import rows
from vespo_jax.tasks.layouts import UNPARSABLE, Layout, Parse, Problem, Rejected

MAX_PROBLEM_BYTES = 4 << 20  # of a question, its answer and its tests: they travel to graders


@dataclasses.dataclass
class Rejections:
  """How many rows were left out for one reason, and where the first one is, with its detail."""

  count: int
  first: str


class Sieve:
  """Turns the files of a dataset into problems, split by split, and keeps count.

  Attributes:
    read, kept: rows by split.
    rejected: by reason.
    keys: by split, `key` of every question that was kept, in order.
  """

  def __init__(self, layout: Layout):
    self.layout = layout
    self.read: collections.Counter[str] = collections.Counter()
    self.kept: collections.Counter[str] = collections.Counter()
    self.rejected: dict[str, Rejections] = {}
    self.keys: dict[str, list[int]] = collections.defaultdict(list)
    self._seen: dict[int, tuple[str, int]] = {}  # by question, its split and its answer

  def problems(
    self, split: str, files: list[Path], tell: Callable[[int], Any]
  ) -> Iterator[tuple[str, str, str]]:
    """The problems of one split as (question, answer, metadata); `tell` is told of rows read.

    Raises ValueError if a file is damaged or has other columns, or if no row is kept.
    """
    for file in files:
      parse: Parse | None = None
      for place, row in rows.read(file, self.layout.root):
        try:
          parse = parse or self.layout.parser(row)
        except ValueError as error:
          raise ValueError(f"{place}: {error}") from error
        tell(1)
        self.read[split] += 1
        try:
          yield self._keep(split, parse, row)
        except Rejected as rejection:
          self._note(place, rejection)
    if not self.kept[split]:
      raise ValueError(f"{split} has no problem: {self.outcome() or 'its files have no rows'}")

  def outcome(self) -> str:
    """The reasons, each with its count and its first row; "" where nothing was left out."""
    return "; ".join(
      f"{each.count} {why} (first {each.first})" for why, each in self.rejected.items()
    )

  def _keep(self, split: str, parse: Parse, row: rows.Row) -> tuple[str, str, str]:
    problem = _parsed(parse, row)
    if not problem.question.strip():
      raise Rejected("empty question")
    if self.layout.needs_answer and not problem.answer.strip():
      raise Rejected("empty answer")
    fields = (problem.question, problem.answer, _json(problem.metadata))
    try:
      size = sum(len(field.encode()) for field in fields)
    except UnicodeEncodeError as error:
      raise Rejected(UNPARSABLE, "half a character (a lone surrogate)") from error
    if size > MAX_PROBLEM_BYTES:
      raise Rejected("too long", f"{size / 2**20:.1f} MiB, of at most {MAX_PROBLEM_BYTES >> 20}")
    self._check_new(split, problem)
    self.kept[split] += 1
    return fields

  def _check_new(self, split: str, problem: Problem) -> None:
    number, answer = key(problem.question), key(problem.answer)
    if number not in self._seen:
      self._seen[number] = split, answer
      self.keys[split].append(number)
      return
    where, other = self._seen[number]
    if where != split:
      raise Rejected(f"question of the {where} split")
    raise Rejected(
      "duplicate question" if answer == other else "duplicate question, another answer"
    )

  def _note(self, place: str, rejection: Rejected) -> None:
    first = printable(f"{place}: {rejection.detail}" if rejection.detail else place)
    self.rejected.setdefault(rejection.reason, Rejections(0, first)).count += 1


def key(text: str) -> int:
  """64 bits that tell texts apart, whatever their white space."""
  words = " ".join(text.split()).encode()
  return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def _parsed(parse: Parse, row: rows.Row) -> Problem:
  try:
    problem = parse(row)
  except (LookupError, TypeError, AttributeError) as error:
    raise Rejected(UNPARSABLE, _detail(error)) from error
  for name in ("question", "answer"):
    if not isinstance(getattr(problem, name), str):
      raise Rejected(UNPARSABLE, f"the {name} is not a text")
  return problem


def _json(metadata: dict[str, Any]) -> str:
  try:
    return json.dumps(metadata, allow_nan=False)
  except (TypeError, ValueError, RecursionError) as error:
    raise Rejected(UNPARSABLE, _detail(error)) from error


def _detail(error: Exception) -> str:
  what = f"no {error}" if isinstance(error, KeyError) else str(error)
  return f"{what:.200}"
