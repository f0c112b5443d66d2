"""What a verifier is, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vespo_jax.registry import Registry
from vespo_jax.tasks.base import Score


class Verifier(Protocol):
  """Judges responses to problems that have a reference answer."""

  def __call__(self, response: str, answer: str, metadata: str) -> Score:
    """The verdict on a response; called in a grader process, which owns its limits of time and
    memory.

    Args:
      response: what the policy wrote, whatever it is.
      answer: the reference answer; "" where the metadata says it all.
      metadata: JSON of the problem, for the verifier.

    Returns:
      `ok` with reward 1, `wrong`, or `unparsed` where the response has no answer.

    Raises:
      Anything, where it cannot judge: the status is `error` then.
    """


registry = Registry("verifier")
_WORDS = {bool: "True or False", float: "a number", str: "a text"}  # types of options
_preparations: dict[Callable[[], object], None] = {}  # of the verifiers made in this process


def when_grading(prepare: Callable[[], object]) -> None:
  """Has a grader process call `prepare` once, before it reads anything hostile: what is slow, and
  what is forbidden afterwards."""
  _preparations[prepare] = None


def prepare_grading() -> None:
  """Calls what `when_grading` was told, in a grader process. Raises what these raise."""
  for prepare in _preparations:
    prepare()


def make(name: str, /, **options: Any) -> Verifier:
  """The verifier `name` with its options, without loading what it needs.

  Raises ValueError naming what is known, for an unknown name or option, or one of another type.
  """
  defaults = registry.defaults(name)
  for key, value in options.items():
    kind = type(defaults.get(key, value))
    if not (type(value) is kind or (kind is float and type(value) is int)):
      raise ValueError(f"{key}={value!r:.60} must be {_WORDS[kind]}")
  return registry.make(name, **options)
