"""Name -> maker. The registry is the only list of names; a duplicate raises."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any


class Registry:
  """Makers by name, with their keyword defaults as the single statement of those defaults.

  `kind` is the noun used in error messages, for instance "objective".
  """

  def __init__(self, kind: str):
    self.kind = kind
    self._makers: dict[str, Callable[..., Any]] = {}

  def register(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that adds a maker under `name`. Raises ValueError if the name is taken."""

    def add(maker: Callable[..., Any]) -> Callable[..., Any]:
      if name in self._makers:
        raise ValueError(f"{self.kind} {name!r} is registered twice")
      self._makers[name] = maker
      return maker

    return add

  def names(self) -> list[str]:
    """The registered names, sorted."""
    return sorted(self._makers)

  def defaults(self, name: str) -> dict[str, Any]:
    """The keyword arguments of `name`'s maker with their default values."""
    parameters = inspect.signature(self._find(name)).parameters.values()
    return {p.name: p.default for p in parameters}

  def make(self, name: str, /, **kwargs: Any) -> Any:
    """Calls the maker of `name`. Raises ValueError naming the known names or keywords."""
    maker = self._find(name)
    known = list(inspect.signature(maker).parameters)
    unknown = [key for key in kwargs if key not in known]
    if unknown:
      options = ", ".join(known) or "none"
      raise ValueError(f"{self.kind} {name!r} has no option {unknown[0]!r}; its options: {options}")
    return maker(**kwargs)

  def _find(self, name: str) -> Callable[..., Any]:
    if name not in self._makers:
      close = difflib.get_close_matches(str(name), self._makers, n=1)
      hint = f" (did you mean {close[0]!r}?)" if close else ""
      raise ValueError(
        f"unknown {self.kind} {name!r}{hint}; known: {', '.join(self.names()) or 'none'}"
      )
    return self._makers[name]


def check_option(key: str, value: str, allowed: Iterable[str]) -> None:
  """Raises ValueError naming what is allowed if `value` is not."""
  if value not in allowed:
    raise ValueError(f"{key}={value!r} must be one of {', '.join(allowed)}")
