"""The same number, as rational numbers: nothing is rounded and nothing is evaluated.

A number is, in this order:

    sign      +, - or the minus sign U+2212, unless a digit or ")" is before it: "3-2" is 3 and 2;
              optional
    currency  $, \\$, EUR, USD, the signs of euro, pound and yen; optional, and ignored; the
              sign may be after it
    value     \\frac{A}{B}, \\dfrac{A}{B} or \\tfrac{A}{B};
              or A/B; or A e N (also E), with N from -400 to 400; or A;
              where A and B are digits, in groups of three by commas, underscores or \\,
              ("1,234") or without, and a fraction after a point: "12", "1,234.50", ".5", "5.";
              the B of a fraction is not 0
    percent   % or \\%; optional

What follows (a unit, a full stop) is ignored. Where one of two numbers alone has a percent sign, it
is taken as a unit or as a hundredth, whichever makes them equal: "50%" is 50 and 1/2. Numbers with
more than 400 digits are none.
"""

from __future__ import annotations

import collections
import re
from fractions import Fraction

from vespo_jax.registry import check_option
from vespo_jax.tasks.base import Score
from vespo_jax.tasks.extraction import FORMATS, extract
from vespo_jax.tasks.verifiers.base import Verifier, registry

_MOST_DIGITS = 400
_DECIMAL = r"(?:\d{1,3}(?:(?:,|_|\\,)\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
  r"(?P<sign>(?<![\d)])[+\-\u2212])?"
  r"(?:(?:\\?\$|EUR|USD|[\u20ac\u00a3\u00a5])\s?(?P<inner>[+\-\u2212])?)?"
  rf"(?:\\[dt]?frac\s?\{{\s?(?P<top>{_DECIMAL})\s?\}}\s?\{{\s?(?P<bottom>{_DECIMAL})\s?\}}"
  rf"|(?P<value>{_DECIMAL})(?:\s?/\s?(?P<divisor>{_DECIMAL})|[eE](?P<power>[+\-]?\d{{1,3}}(?!\d)))?)"
  r"\s?(?P<percent>\\?%)?",
  re.ASCII,
)
FORMATS_OF_NUMBERS = ("auto", "hash", *FORMATS)


@registry.register("numeric")
def numeric(*, answer_format: str = "auto", tolerance: float = 0.0) -> Verifier:
  """Compares the number in the response with that in the answer.

  Args:
    answer_format: where it stands. "auto": the first number in the last \\boxed{...}; without such,
      the first one after the last "####"; without, the last one of the response. "hash": after the
      last "####" alone. Or one of `extraction.FORMATS`, whose first number it is (of "text" and
      "number", the last).
    tolerance: the largest |x - y| / max(|y|, 1) between equal numbers x and y; 0: exactly equal.

  The answer is read like "auto". Raises ValueError for another format, or a negative tolerance.
  """
  check_option("answer_format", answer_format, FORMATS_OF_NUMBERS)
  if not tolerance >= 0:
    raise ValueError(f"tolerance={tolerance!r} must be at least 0")

  def verify(response: str, answer: str, metadata: str) -> Score:
    gold = _find(answer, "auto")
    if gold is None:
      raise ValueError(f"the reference answer {answer!r:.80} has no number")
    found = _find(response, answer_format)
    if found is None:
      return Score(0.0, "unparsed")
    good = _equal(found, gold, Fraction(tolerance))
    return Score(1.0, "ok", 1.0) if good else Score(0.0, "wrong")

  return verify


def _find(text: str, answer_format: str) -> tuple[Fraction, bool] | None:
  """A number, and whether it has a percent sign."""
  if answer_format in ("auto", "boxed"):
    boxed = extract(text, "boxed")
    if boxed is not None or answer_format == "boxed":
      return _first(boxed or "")
  if answer_format in ("auto", "hash"):
    _, mark, rest = text.rpartition("####")
    if mark or answer_format == "hash":
      return _first(rest) if mark else None
  if answer_format in ("tag", "last_line"):
    return _first(extract(text, answer_format) or "")
  last = collections.deque(_NUMBER.finditer(text), maxlen=1)
  return _read(last[0]) if last else None


def _first(text: str) -> tuple[Fraction, bool] | None:
  found = _NUMBER.search(text)
  return None if found is None else _read(found)


def _read(found: re.Match[str]) -> tuple[Fraction, bool] | None:
  if len(found[0]) > _MOST_DIGITS:
    return None
  negative = (found["sign"] or "+") not in "+"
  negative ^= (found["inner"] or "+") not in "+"
  top, bottom = found["top"] or found["value"], found["bottom"] or found["divisor"]
  value = _decimal(top)
  if bottom is not None:
    divisor = _decimal(bottom)
    if not divisor:
      return None
    value /= divisor
  power = int(found["power"] or 0)
  if abs(power) > _MOST_DIGITS:
    return None
  return (-value if negative else value) * Fraction(10) ** power, bool(found["percent"])


def _decimal(text: str) -> Fraction:
  plain = text.replace("\\,", "").replace(",", "").replace("_", "")
  return Fraction(plain if plain[-1] != "." else plain[:-1])


def _equal(x: tuple[Fraction, bool], y: tuple[Fraction, bool], tolerance: Fraction) -> bool:
  (a, a_percent), (b, b_percent) = x, y
  pairs = [(a, b)]
  if a_percent != b_percent:
    pairs.append((a / 100, b) if a_percent else (a, b / 100))
  return any(abs(p - q) <= tolerance * max(abs(q), 1) for p, q in pairs)
