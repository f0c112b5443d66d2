"""Some scorers of `reasoning-gym` evaluate an answer as Python, by themselves or through SymPy.

Here they are made to read literals and formulas instead, so that no answer is ever run as code.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import keyword
import re
from collections.abc import Callable
from typing import Any

LITERALS = (  # modules of the package that call `eval` on an answer
  "algorithmic.binary_matrix",
  "algorithmic.spiral_matrix",
  "algorithmic.string_insertion",
  "games.n_queens",
)
FORMULAS = (
  "games.countdown",
  "games.puzzle24",
)  # and those that have `parse_expr` as their own name

_CHARACTERS = re.compile(r"[0-9A-Za-z+\-*/^!(),.\s]*", re.ASCII)
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z]")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_ROOTS = ("sqrt", "cbrt", "root")  # functions of SymPy that are no `Function`


def is_formula(text: str) -> bool:
  """Whether a text is numbers, operators, brackets, symbols and mathematical functions alone.

  What has another meaning is no symbol: a name of Python's or another one of SymPy's. Without
  quotes, underscores, keywords and dots before names there are no texts, attributes or definitions.
  """
  import sympy

  def is_mathematical(name: str) -> bool:
    meaning = getattr(sympy, name, None)
    if meaning is None:
      return not keyword.iskeyword(name) and not hasattr(builtins, name)
    function = isinstance(meaning, type) and issubclass(meaning, sympy.Function)
    return function or isinstance(meaning, sympy.Expr) or name in _ROOTS

  if not _CHARACTERS.fullmatch(text) or _ATTRIBUTE.search(text):
    return False
  return all(map(is_mathematical, _NAME.findall(text)))


def disarm(package: str) -> None:
  """From now on the scorers of `package`, and all else that calls `sympy.parse_expr` in this
  process, refuse what is neither a literal nor a formula with ValueError. Idempotent."""
  import sympy

  for name in LITERALS:
    vars(importlib.import_module(f"{package}.{name}"))["eval"] = ast.literal_eval
  guarded = _guarded(sympy.parse_expr)
  sympy.parse_expr = guarded
  for name in FORMULAS:
    vars(importlib.import_module(f"{package}.{name}"))["parse_expr"] = guarded


def guard_sympy() -> Callable[..., Any]:
  """From now on `sympy.parse_expr`, under all its names and in `sympify`, refuses what is no
  formula with ValueError; returns what it has become. Idempotent."""
  import sympy
  import sympy.parsing.sympy_parser

  guarded = _guarded(sympy.parsing.sympy_parser.parse_expr)
  for module in (sympy, sympy.parsing, sympy.parsing.sympy_parser):
    vars(module)["parse_expr"] = guarded
  return guarded


def _guarded(parse: Callable[..., Any]) -> Callable[..., Any]:
  if hasattr(parse, "__wrapped__"):
    return parse

  @functools.wraps(parse)
  def parse_expr(text: str, *args: Any, **options: Any) -> Any:
    if not is_formula(text):
      raise ValueError(f"not a formula: {text!r:.80}")
    return parse(text, *args, **options)

  return parse_expr
