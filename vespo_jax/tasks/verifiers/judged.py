"""What tests see of a program, in its sandbox: this file is put beside `solution.py` there.

Results of the program's functions must compare as what they are: tests that compare with `==` would
believe a class that equals everything, and what stands for an object of it. Methods of its classes
are not looked at, but for the one that tests of Eurus call. The builtins that tests use are
Python's, whatever the program makes of them.
"""

from __future__ import annotations

import builtins
import collections
import fractions
import functools
import importlib
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

_BUILTINS = dict(vars(builtins))
_restore = functools.partial(vars(builtins).update, _BUILTINS)  # it looks up none of them

_MADE_IN_C = 1 << 8  # of a class's flags: nothing of it can be changed, so it says who it is
_C_MODULES = ("array", "datetime", "decimal")
_DICTS = ({}, collections.OrderedDict())
_VIEWS = tuple(type(view) for d in _DICTS for view in (d.keys(), d.values(), d.items()))
_CONTAINERS = (list, tuple, set, frozenset, collections.deque, *_VIEWS)
_HONEST = {
  *(type(None), bool, int, float, complex, str, bytes, bytearray, range),
  *(*_CONTAINERS, dict, collections.OrderedDict, collections.defaultdict, collections.Counter),
}
_HARMLESS = {  # special names of a class that have no part in comparing, reading or calculating
  *("__init__", "__new__", "__repr__", "__str__", "__doc__", "__module__", "__dict__"),
  *("__weakref__", "__slots__", "__match_args__", "__getnewargs__", "__replace__"),
  *("__annotations__", "__annotate_func__", "__annotations_cache__", "__orig_bases__"),
  *("__firstlineno__", "__static_attributes__"),
}


def _is_honest(kind: type) -> bool:
  """Whether values of a class compare as what they are: classes of the program, too, that leave
  that to what they inherit, such as named tuples."""
  if type(kind) is not type:  # its own class might say anything of it
    return kind is fractions.Fraction
  if kind in _HONEST:
    return True
  if kind.__flags__ & _MADE_IN_C:
    numpys = kind.__module__ == "numpy" and hasattr(kind, "dtype")
    return numpys or kind.__module__ in _C_MODULES or kind.__eq__ is object.__eq__
  special = {name for name in vars(kind) if name.startswith("__") and name.endswith("__")}
  return special <= _HARMLESS and all(map(_is_honest, kind.__mro__[1:]))


def _look(result: Any) -> Any:
  """The result, or what looks at more of it once it is asked for. Raises TypeError for what may
  equal anything."""
  waiting, seen = [result], set()
  while waiting:
    value = waiting.pop()
    kind = type(value)
    if not _is_honest(kind):
      raise TypeError(f"a result is of the type {kind.__name__}, which may equal anything")
    if id(value) in seen:
      continue
    if isinstance(value, dict):
      seen.add(id(value))
      waiting += [*dict.keys(value), *dict.values(value)]
    elif isinstance(value, _CONTAINERS):
      seen.add(id(value))
      waiting += value
    elif kind.__module__ == "numpy" and value.dtype.hasobject:
      waiting.append(value.tolist())
  if hasattr(type(result), "__next__"):
    return _each(result)
  return _judged(result) if _is_function(result) else result


def _each(values: Iterator[Any]) -> Iterator[Any]:
  for value in values:
    _restore()
    yield _look(value)
  _restore()


def _judged(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function, whose results are looked at."""

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    try:
      result = function(*args, **kwargs)
    finally:
      _restore()
    return _look(result)

  return call


def _is_function(value: Any) -> bool:
  """Whether it can be called, and is no class, whatever it says of itself."""
  return callable(value) and not issubclass(type(value), type)


class _Object:
  """An object of the program's, whose methods' results are looked at."""

  def __init__(self, made: Any):
    self._made = made

  def __getattr__(self, name: str) -> Any:
    try:
      return _judged(getattr(self._made, name))
    finally:
      _restore()


def names(called: Collection[str], functions: Collection[str], maker: str) -> dict[str, Any]:
  """What tests have of the program, by name.

  Args:
    called: the names that they call what it defines by: nothing else may hide a builtin from them.
    functions: those of them that are functions, and are judged as such if the program makes them
      classes.
    maker: the name of a class whose objects' methods they call; "": there is none.
  """
  solution = vars(importlib.import_module("solution"))
  _restore()
  hidden = _BUILTINS.keys() - set(called)

  def see(name: str, value: Any) -> Any:
    if name == maker:
      return lambda: _Object(value())
    made_here = type(value) is types.FunctionType or type(value).__module__ == "solution"
    function = name in functions or (made_here and _is_function(value))
    return _judged(value) if function else value

  return {
    name: see(name, value)
    for name, value in solution.items()
    if name not in hidden and not (name.startswith("__") and name.endswith("__"))
  }
