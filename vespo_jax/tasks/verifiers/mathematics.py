"""The same mathematics, as Hugging Face's `math-verify` sees it.

As VESPO's reward does: gold = parse(answer), the answer passed bare; prediction = parse(the whole
response); verify(gold, prediction), in this order, for it is not symmetric. Its own timeouts, which
are signals and need the main thread, are off: the grader process owns the time. Two differences of
status, none of reward: an answer that cannot be parsed, and a comparison that fails for want of
memory or stack, are errors and not wrong.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from vespo_jax.registry import check_option
from vespo_jax.tasks import formulas
from vespo_jax.tasks.base import Score
from vespo_jax.tasks.verifiers.base import Verifier, registry, when_grading

# of a verifier that is broken, or was broken by the text; others say that two things are not alike
_BROKEN = (MemoryError, RecursionError, OSError, ImportError, SystemError, AttributeError)


@registry.register("math_verify")
def math_verify(*, answer_form: str = "bare") -> Verifier:
  """`math-verify`'s verdict; `unparsed` where it finds no expression in the response.

  Args:
    answer_form: how the reference answer is passed. "bare", as it is, as VESPO's reward does: right
      for numbers, but of 2\\sqrt{3} the package reads the 2 alone, and of \\left(3, \\pi\\right)
      nothing. "boxed", as \\boxed{ANSWER}, for answers that are LaTeX.

  Raises ValueError for another form.
  """
  check_option("answer_form", answer_form, ("bare", "boxed"))

  def verify(response: str, answer: str, metadata: str) -> Score:
    package = _package()
    gold = _parse(package, answer if answer_form == "bare" else f"\\boxed{{{answer}}}")
    if not gold:
      raise ValueError(f"the reference answer {answer!r:.80} cannot be parsed")
    found = _parse(package, response)
    if not found:
      return Score(0.0, "unparsed")
    failures: list[Exception] = []
    if any(_same(package, g, f, failures) for g in gold for f in found):
      return Score(1.0, "ok", 1.0)
    if failures:
      raise failures[0]
    return Score(0.0, "wrong")

  when_grading(_package)
  return verify


def _parse(package: Any, text: str) -> list[Any]:
  try:
    return package.parse(text, parsing_timeout=0, raise_on_error=True)
  except _BROKEN:
    raise
  except Exception:  # as the package does by itself
    return []


def _same(package: Any, gold: Any, found: Any, failures: list[Exception]) -> bool:
  try:
    return package.verify(gold, found, timeout_seconds=None, raise_on_error=True)
  except _BROKEN as error:
    failures.append(error)
  except Exception:  # as the package does by itself
    pass
  return False


@functools.cache
def _package() -> Any:
  """The package, which takes a second to import. Raises RuntimeError if it does not work."""
  import latex2sympy2_extended.latex2sympy2
  import math_verify
  import math_verify.parser

  logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
  for module in (math_verify.parser, latex2sympy2_extended.latex2sympy2):
    vars(module)["parse_expr"] = formulas.guard_sympy()
  half, same = (math_verify.parse(text, parsing_timeout=0) for text in ("\\frac{1}{2}", "0.5"))
  if not math_verify.verify(half, same, timeout_seconds=None):
    raise RuntimeError("math-verify does not work here: it finds 1/2 and 0.5 to differ")
  return math_verify
