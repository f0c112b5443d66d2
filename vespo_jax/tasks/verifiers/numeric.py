"""The same number, as rational numbers: nothing is rounded and nothing is evaluated.

A number is, in this order:

    sign      +, - or the minus sign U+2212 or the en dash, unless a digit or ")" is before it:
              "3-2" is 3 and 2; optional. White space may follow it at the start of what stands in
              \\boxed{...} or <answer>, or after "####"
    currency  $, \\$, EUR, USD, the signs of euro, pound and yen; optional, and ignored; the
              sign may be after it
    value     \\frac{A}{B}, \\dfrac{A}{B} or \\tfrac{A}{B}, where A and B may have signs of
              their own, and a single digit needs no braces; or A/B; either after a whole number
              ("7 1/2"), which it is added to;
              or A e N (also E), with N from -400 to 400; or A;
              where A and B are digits, in groups of three by commas, underscores, \\, or what TeX
              has for a comma without a space, {,} and ,\\! ("1,234") or without, and a fraction
              after a point: "12", "1,234.50", ".5", "5."; the B of a fraction is not 0
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
_SIGN = r"[+\-\u2212\u2013]"
_DECIMAL = r"(?:\d{1,3}(?:(?:,\\!|\{,\}|,|_|\\,)\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_TOP, _BOTTOM = (
  rf"\s?(?:\{{\s?(?P<{name}_sign>{_SIGN})?\s?(?P<{name}>{_DECIMAL})\s?\}}|(?P<{name}_digit>\d))"
  for name in ("top", "bottom")
)
_NUMBER = re.compile(
  rf"(?P<sign>(?<![\d)]){_SIGN})?"
  rf"(?:(?:\\?\$|EUR|USD|[\u20ac\u00a3\u00a5])\s?(?P<inner>{_SIGN})?)?"
  rf"(?:(?:(?P<mixed>\d{{1,9}}) ?)?\\[dt]?frac{_TOP}{_BOTTOM}"
  rf"|(?:(?P<whole>\d{{1,9}}) (?=\d{{1,9}}/\d))?(?P<value>{_DECIMAL})"
  rf"(?:\s?/\s?(?P<divisor>{_DECIMAL})|[eE](?P<power>[+\-]?\d{{1,3}}(?!\d)))?)"
  r"\s?(?P<percent>\\?%)?",
  re.ASCII,
)
_APART = re.compile(rf"^({_SIGN})\s+")
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


def vote(response: str, answer_format: str) -> str | None:
  """The number in the response, written so that equal numbers are the same text; None if there is
  none. With a percent sign it is another."""
  found = _find(response, answer_format)
  return None if found is None else f"{found[0]}{'%' if found[1] else ''}"


def _find(text: str, answer_format: str) -> tuple[Fraction, bool] | None:
  """A number, and whether it has a percent sign."""
  if answer_format in ("auto", "boxed"):
    boxed = extract(text, "boxed")
    if boxed is not None or answer_format == "boxed":
      return _alone(boxed or "")
  if answer_format in ("auto", "hash"):
    _, mark, rest = text.rpartition("####")
    if mark or answer_format == "hash":
      return _alone(rest) if mark else None
  if answer_format == "tag":
    return _alone(extract(text, "tag") or "")
  if answer_format == "last_line":  # which may be one of a list: a sign apart from it is none
    return _first(extract(text, "last_line") or "")
  last = collections.deque(_NUMBER.finditer(text), maxlen=1)
  return _read(last[0]) if last else None


def _alone(text: str) -> tuple[Fraction, bool] | None:
  """The first number in what is nothing but an answer."""
  return _first(_APART.sub(r"\1", text.strip()))


def _first(text: str) -> tuple[Fraction, bool] | None:
  found = _NUMBER.search(text)
  return None if found is None else _read(found)


def _read(found: re.Match[str]) -> tuple[Fraction, bool] | None:
  if len(found[0]) > _MOST_DIGITS:
    return None
  signs = (found[name] or "+" for name in ("sign", "inner", "top_sign", "bottom_sign"))
  negative = sum(sign != "+" for sign in signs) % 2
  value = _decimal(found["value"] or found["top"] or found["top_digit"])
  bottom = found["divisor"] or found["bottom"] or found["bottom_digit"]
  if bottom is not None:
    divisor = _decimal(bottom)
    if not divisor:
      return None
    value = value / divisor + int(found["mixed"] or found["whole"] or 0)
  power = int(found["power"] or 0)
  if abs(power) > _MOST_DIGITS:
    return None
  return (-value if negative else value) * Fraction(10) ** power, bool(found["percent"])


def _decimal(text: str) -> Fraction:
  plain = re.sub(r"[^0-9.]", "", text)
  return Fraction(plain if plain[-1] != "." else plain[:-1])


def _equal(x: tuple[Fraction, bool], y: tuple[Fraction, bool], tolerance: Fraction) -> bool:
  (a, a_percent), (b, b_percent) = x, y
  pairs = [(a, b)]
  if a_percent != b_percent:
    pairs.append((a / 100, b) if a_percent else (a, b / 100))
  return any(abs(p - q) <= tolerance * max(abs(q), 1) for p, q in pairs)
