"""What a program is tested with, as the metadata of a problem, whoever published the tests.

- `{"kind": "stdin", "cases": [{"input": ..., "output": ...}, ...]}`: a program reads and prints.
- `{"kind": "call", "entry_point": ..., "prompt": ..., "test": ...}`: `test` defines `check(f)`.
- `{"kind": "assert", "test": ...}`: `test` is run after the program, in the same namespace.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

_CALLS = """\
_cases = {cases!r}
_function = Solution().{name} if "Solution" in globals() else {name}
for _arguments, _wanted in _cases:
  _got = _function(*_arguments)
  _got = list(_got) if isinstance(_got, tuple) else _got
  assert _got == _wanted or (isinstance(_wanted, list) and _wanted and _got == _wanted[0])
"""

_CALLED = re.compile(r"^_function = .* else (\w+)$", re.MULTILINE)  # in `_CALLS`
_DEFINED = re.compile(r"^(?:async +)?(def|class) +(\w+)", re.MULTILINE)
_MAKER = "Solution"  # in `_CALLS`


@dataclasses.dataclass(frozen=True)
class Called:
  """How assertions name what a program defines, as far as that is known.

  Attributes:
    functions: functions.
    classes: classes.
    maker: the class whose objects' methods are called; "": there is none.
  """

  functions: Sequence[str]
  classes: Sequence[str] = ()
  maker: str = ""


def called(test: str, reference: str) -> Called:
  """What the reference program defines, and the function of `from_eurus`."""
  defined = _DEFINED.findall(reference)
  of_eurus = _CALLED.findall(test)
  functions = {*of_eurus, *(name for kind, name in defined if kind == "def")}
  classes = {name for kind, name in defined if kind == "class"}
  return Called(sorted(functions), sorted(classes), _MAKER if of_eurus else "")


def call(entry_point: str, prompt: str, test: str) -> dict[str, Any]:
  """The publisher's own check of one function. Raises TypeError if one of them is no text."""
  return {"kind": "call"} | _texts(entry_point=entry_point, prompt=prompt, test=test)


def asserts(test: str, task_id: Any) -> dict[str, Any]:
  """The publisher's own assertions. Raises TypeError if they are no text."""
  return {"kind": "assert", "task_id": task_id} | _texts(test=test)


def from_eurus(ground_truth: str) -> dict[str, Any]:
  """The tests of PRIME-RL/Eurus-2-RL-Data: JSON of `inputs` and `outputs`, and `fn_name` where a
  function is called rather than a program run.

  A function may be a method of a class `Solution`, and an output may be wrapped in a list, as in
  the scorer of APPS (Hendrycks et al., arXiv 2105.09938).

  Raises ValueError with what is wrong.
  """
  try:
    tests = json.loads(ground_truth, parse_constant=_refuse)
    inputs, outputs, name = tests["inputs"], tests["outputs"], tests.get("fn_name")
    cases = list(zip(inputs, outputs, strict=True))
    if not cases:
      raise ValueError("there are none")
    if name is not None:
      if not name.isidentifier():
        raise ValueError(f"{name!r:.40} is not the name of a function")
      calls = [_arguments(given, wanted) for given, wanted in cases]
      return {"kind": "assert", "test": _CALLS.format(cases=calls, name=name)}
    programs = [{"input": _stream(given), "output": _stream(wanted)} for given, wanted in cases]
    return {"kind": "stdin", "cases": programs}
  except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
    raise ValueError(f"the tests cannot be read: {error!s:.100}") from error


def _arguments(given: Any, wanted: Any) -> tuple[list[Any], Any]:
  """Arguments and result of a call; as texts they are JSON, one argument a line."""
  if isinstance(given, str):
    return [json.loads(line) for line in given.split("\n")], json.loads(wanted)
  if not isinstance(given, list):
    raise TypeError("the arguments of a call are not a list")
  return given, wanted


def _stream(value: Any) -> str:
  """What is read or printed; a list holds its lines."""
  if isinstance(value, list):
    value = "\n".join(value)
  return _texts(text=value)["text"]


def _refuse(name: str) -> NoReturn:
  raise ValueError(f"{name} is not JSON")


def _texts(**fields: Any) -> dict[str, str]:
  for name, value in fields.items():
    if not isinstance(value, str):
      raise TypeError(f"{name} is not a text")
  return fields
