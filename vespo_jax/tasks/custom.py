"""A reward of one's own, by import path: `--config.task.reward=my_package.my_module:my_function`.

    def my_function(response: str, answer: str, metadata: str) -> float:

It is called in a grader process, for every response, with what the policy wrote, the problem's
reference answer and its metadata (JSON), and returns a number from 0 to 1 (above 0 is `ok`, 0 is
`wrong`), or a `tasks.Score`, which says more. What it raises is an `error`, what takes too long a
`timeout`; what it prints goes to standard error. It may not start processes, open sockets or write
files; what it needs is best imported and read while its module is imported, before these are
forbidden. Held-out accuracy is its mean.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vespo_jax.tasks.base import Score
from vespo_jax.tasks.verifiers.base import Verifier

FORM = "package.module:function"


def load(path: str) -> Verifier:
  """The reward at an import path, as a verifier.

  Raises ValueError saying what is wrong with the path, the module or the function.
  """
  module_name, colon, name = path.partition(":")
  if not colon or not module_name or not name.isidentifier():
    raise ValueError(f"it must be like {FORM!r}")
  if module_name.endswith(".py") or "/" in module_name:
    raise ValueError(f"it must be an import path like {FORM!r}, not a file")
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # it is the user's code and may raise anything
    raise ValueError(
      f"{module_name} cannot be imported: {type(error).__name__}: {error}"
    ) from error
  function = getattr(module, name, None)
  if not callable(function):
    raise ValueError(f"{module_name} has no function {name!r}")
  try:
    inspect.signature(function).bind("response", "answer", "metadata")
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{name} must be callable as {name}(response, answer, metadata): {error}"
    ) from error
  return _verifier(function)


def identity(path: str) -> str:
  """The import path of a reward that can be loaded, with the beginning of the SHA-256 of its
  module's file, so that one that was edited is another; "" for ""."""
  if not path:
    return ""
  file = getattr(importlib.import_module(path.partition(":")[0]), "__file__", None)
  return f"{path} {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}" if file else path


def _verifier(function: Callable[..., Any]) -> Verifier:
  def verify(response: str, answer: str, metadata: str) -> Score:
    result = function(response, answer, metadata)
    if isinstance(result, Score):
      return result
    reward = float(result)
    if not 0 <= reward <= 1:
      raise ValueError(f"a reward of {reward} is not from 0 to 1")
    return Score(reward, "ok" if reward > 0 else "wrong", reward)

  return verify
