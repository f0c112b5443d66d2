"""Verifiers: whether a response has the answer. See `make`."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Protocol

from vespo_jax.registry import Registry
from vespo_jax.tasks.base import Score
from vespo_jax.tasks.extraction import FORMATS, extract

registry = Registry("verifier")


class Verifier(Protocol):
  """Scores a response by the answer, or by the JSON `metadata` of the problem."""

  def __call__(self, response: str, answer: str, metadata: str) -> Score: ...


def make(name: str, **options: Any) -> Verifier:
  """The verifier `name`. Raises ValueError naming what is known."""
  return registry.make(name, **options)


@registry.register("exact")
def exact(*, answer_format: str = "text") -> Verifier:
  """The extracted answer is the text of the answer."""
  if answer_format not in FORMATS:
    raise ValueError(f"answer_format={answer_format!r} is not known; known: {', '.join(FORMATS)}")

  def verify(response: str, answer: str, metadata: str) -> Score:
    found = extract(response, answer_format)
    if not found:
      return Score(0.0, "unparsed")
    return Score(1.0, "ok", 1.0) if found == answer.strip() else Score(0.0, "wrong")

  return verify


@registry.register("numeric")
def numeric() -> Verifier:
  """The last number of the response is the answer's."""

  def verify(response: str, answer: str, metadata: str) -> Score:
    found, wanted = (extract(text, "number") for text in (response, answer))
    if found is None or wanted is None:
      return Score(0.0, "unparsed")
    same = Decimal(found.replace(",", "")) == Decimal(wanted.replace(",", ""))
    return Score(1.0, "ok", 1.0) if same else Score(0.0, "wrong")

  return verify
