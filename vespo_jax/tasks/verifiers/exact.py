"""The same text, once both are normalised."""

from __future__ import annotations

import unicodedata

from vespo_jax.registry import check_option
from vespo_jax.tasks.base import Score
from vespo_jax.tasks.extraction import FORMATS, extract
from vespo_jax.tasks.verifiers.base import Verifier, registry


@registry.register("exact")
def exact(*, answer_format: str = "text", ignore_case: bool = True) -> Verifier:
  """Compares what is extracted with the answer, character by character after `normalise`.

  Args:
    answer_format: where the answer stands in the response, one of `extraction.FORMATS`.
    ignore_case: whether "Yes" is "yes".

  Raises ValueError for another format.
  """
  check_option("answer_format", answer_format, FORMATS)

  def verify(response: str, answer: str, metadata: str) -> Score:
    found = extract(response, answer_format)
    if not found:
      return Score(0.0, "unparsed")
    good = normalise(found, ignore_case) == normalise(answer, ignore_case)
    return Score(1.0, "ok", 1.0) if good else Score(0.0, "wrong")

  return verify


def vote(response: str, answer_format: str, ignore_case: bool = True) -> str | None:
  """What a response counts as where answers are voted on: equal texts are equal answers."""
  return normalise(extract(response, answer_format) or "", ignore_case) or None


def normalise(text: str, ignore_case: bool) -> str:
  """A text without what readers do not see: Unicode NFKC; no characters of category Cf (zero-width
  ones, directions of writing); runs of white space are one space, none at the ends; one full stop
  at the end is dropped; case is folded if it is ignored."""
  visible = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
  plain = " ".join("".join(visible).split()).removesuffix(".").rstrip()
  return plain.casefold() if ignore_case else plain
