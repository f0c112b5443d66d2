"""Programs, judged by running them in a sandbox (`vespo_jax.sandbox`) against tests.

The metadata says how:

    {"kind": "stdin", "cases": [{"input": str, "output": str}, ...]}
        A program that reads standard input and writes standard output. Each case is a run; the
        expected output never enters the sandbox. Outputs are the same if their lines are, apart
        from white space at the ends of lines and empty lines at the ends of the text.
    {"kind": "call", "entry_point": str, "prompt": str, "test": str}
        As in HumanEval: prompt, completion, `test`, then `check(ENTRY_POINT)`.
    {"kind": "assert", "test": str}
        As in MBPP: the program, then `test`, statements that raise unless all is well.

The first failure ends it. A program that fails, crashes, or runs out of memory, output or processes
is `wrong`; one that runs out of time is a `timeout`; `error` is only what is the sandbox's fault.

Tests of the last two kinds run in the program's own interpreter. They count as passed if what comes
after them has sent a random word to a descriptor: printing, exiting early and raising do not. The
word comes through standard input, so that it is in no file and no variable until the tests have
passed; results of functions (of methods, only in Eurus) must compare as what they are, or a class
that equals everything would pass (see `judged`); and the tests have Python's builtins, but for
names that they call the program's functions by. A program that knows this file, and looks for the
descriptor, can still forge a verdict, and one that looks into its interpreter or its files finds
what the tests expect. With "stdin" neither can be done.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
import secrets
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vespo_jax.sandbox import client
from vespo_jax.sandbox.limits import REPORT_FD, Limits
from vespo_jax.tasks import code_tests, prepare
from vespo_jax.tasks.base import Score
from vespo_jax.tasks.verifiers.base import Verifier, registry, when_grading

_FENCE = "```"
_JUDGED = Path(__file__).with_name("judged.py")
_log = logging.getLogger(__name__)


@registry.register("code")
def code(*, timeout_s: float = 8.0, memory_gb: float = 1.0) -> Verifier:
  """Runs the program in the response: its last fenced block, or all of it if there is none; of
  "call", the last fenced block that defines the entry point, or else a continuation of the prompt.

  Args:
    timeout_s: wall-clock seconds that all runs of one program may take together; keep it below
      `task.grade_timeout_s`, which counts what is around them too.
    memory_gb: of a program and of all that it starts.

  Raises ValueError if a limit is not above 0.
  """
  for key, value in (("timeout_s", timeout_s), ("memory_gb", memory_gb)):
    if not value > 0:
      raise ValueError(f"{key}={value!r} must be above 0")
  memory = int(memory_gb * (1 << 30))

  def verify(response: str, answer: str, metadata: str) -> Score:
    problem = json.loads(metadata)
    program = extract_program(response, problem)
    if program is None:
      return Score(0.0, "unparsed")
    run = _KINDS[problem["kind"]]
    return run(program, problem, answer, Limits(seconds=timeout_s, memory_bytes=memory))

  when_grading(_level)
  return verify


def extract_program(response: str, problem: Mapping[str, Any]) -> str | None:
  """What is to be run, before the tests: see `code`. None if there is nothing."""
  blocks = _fenced(response)
  if problem["kind"] != "call":
    program = blocks[-1] if blocks else response
    return program if program.strip() else None
  prompt = problem["prompt"]
  defines = re.compile(
    rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(problem['entry_point'])}\b", re.MULTILINE
  )
  whole = [block for block in blocks if defines.search(block)]
  if whole:
    return f"{_stands_alone(prompt)}\n{textwrap.dedent(whole[-1])}"
  completion = blocks[-1] if blocks else response
  return prompt + completion if completion.strip() else None


def _fenced(response: str) -> list[str]:
  """The contents of the fenced blocks of a text, without what the opening fence is indented by; one
  that is not closed goes on to the end."""
  blocks: list[str] = []
  lines: list[str] | None = None
  indent = 0
  for line in response.split("\n"):
    text = line.lstrip()
    margin = len(line) - len(text)
    if text.startswith(_FENCE):
      if lines is None:
        lines, indent = [], margin
      else:
        blocks.append("\n".join(lines))
        lines = None
    elif lines is not None:
      lines.append(line[min(indent, margin) :])
  if lines:
    blocks.append("\n".join(lines))
  return blocks


def _stands_alone(prompt: str) -> str:
  """A prompt, which ends in a signature and a docstring, as statements by themselves."""
  indents = [line[: len(line) - len(line.lstrip())] for line in prompt.splitlines() if line.strip()]
  return f"{prompt.rstrip()}\n{(indents or [''])[-1] or '  '}pass\n"


@functools.cache
def _level() -> str:
  """The sandbox's level on this machine, told to the log once."""
  level = client.best_level()
  weak = level == "interpreter"
  note = "; that is no fence against a program that means to get out" if weak else ""
  _log.info("programs are run in the sandbox's level %r%s", level, note)
  return level


_answers = functools.cache(prepare.packaged)  # that a program could read where it is run


def _stdin(program: str, problem: Mapping[str, Any], reference: str, limits: Limits) -> Score:
  cases = problem["cases"]
  deadline = time.monotonic() + limits.seconds
  if not cases:
    raise ValueError("the problem has no cases")
  longest = max(len(case["output"].encode(errors="surrogatepass")) for case in cases)
  limits = dataclasses.replace(limits, output_bytes=max(limits.output_bytes, 2 * longest))
  with client.Session({"main.py": program}, limits, _level(), _answers()) as session:
    for passed, case in enumerate(cases):
      left = deadline - time.monotonic()
      outcome = session.run(case["input"], seconds=left) if left > 0 else None
      if outcome is None or outcome.ending == "timeout":
        return Score(0.0, "timeout", passed / len(cases))
      good = outcome.ending == "exited" and outcome.exit_code == 0
      if not good or _lines(outcome.stdout) != _lines(case["output"]):
        return Score(0.0, "wrong", passed / len(cases))
  return Score(1.0, "ok", 1.0)


def _lines(text: str) -> list[str]:
  return [line.strip() for line in text.strip().splitlines()]


def _call(program: str, problem: Mapping[str, Any], reference: str, limits: Limits) -> Score:
  name = problem["entry_point"]
  called = code_tests.Called([name])
  return _tested(program, f"{problem['test']}\n\ncheck({name})\n", called, limits)


def _assert(program: str, problem: Mapping[str, Any], reference: str, limits: Limits) -> Score:
  test = problem["test"]
  return _tested(program, test, code_tests.called(test, reference), limits)


def _tested(program: str, test: str, called: code_tests.Called, limits: Limits) -> Score:
  """A program whose tests are statements, which call what it defines by the names `called`."""
  names = [*called.functions, *called.classes]
  word = secrets.token_hex(16)
  files = {
    "solution.py": program,
    "judged.py": _JUDGED.read_text(),
    "tests.py": f"import judged\nglobals().update(judged.names({names!r}, "
    f"{[*called.functions]!r}, {called.maker!r}))\n{test}\n",
    "main.py": f"import os, tests\nos.write({REPORT_FD}, os.read(0, {len(word)}))\n",
  }
  with client.Session(files, limits, _level(), _answers()) as session:
    outcome = session.run(word)
  if outcome.ending == "timeout":
    return Score(0.0, "timeout")
  return Score(1.0, "ok", 1.0) if outcome.report == word else Score(0.0, "wrong")


_KINDS = {"stdin": _stdin, "call": _call, "assert": _assert}
