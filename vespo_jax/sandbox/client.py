"""The parent's end: has a supervisor begin a program, and asks it for runs."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vespo_jax.sandbox.limits import Limits, Outcome

LEVELS = ("namespaces", "landlock", "interpreter")  # strongest first; see the package's docstring
_PATIENCE_S = 10.0  # of a supervisor, beside the time of a run

# the one command that starts a process here, and its environment
COMMAND = (sys.executable, "-S", "-P", "-m", "vespo_jax.sandbox.supervisor")
ENVIRONMENT = {
  "PYTHONPATH": str(Path(__file__).parents[2]),
  "TMPDIR": tempfile.gettempdir(),
  "LANG": "C.UTF-8",
}


class SandboxError(RuntimeError):
  """The sandbox has failed, not the program."""


class Session:
  """A program in its sandbox, used as a context manager; with it everything of it ends.

  Args:
    files: its files by name; "main.py" is run.
    limits: of each run.
    level: one of `LEVELS`.
    hidden: files that it must not read though they are among what is installed; at the level
      "interpreter" it can.

  Raises SandboxError if the level is not to be had on this machine.
  """

  def __init__(
    self, files: Mapping[str, str], limits: Limits, level: str, hidden: Iterable[Path] = ()
  ):
    self._limits = limits
    self._supervisor: _Supervisor | None = _borrow()
    self._answered = False
    try:
      order = {"level": level, "files": files, "limits": dataclasses.asdict(limits)}
      self._ask(order | {"hidden": [os.path.realpath(path) for path in hidden]}, 0)
    except SandboxError:
      self.close()
      raise

  def run(self, stdin: str = "", seconds: float | None = None) -> Outcome:
    """Runs the program once, with `stdin` as its standard input; `seconds` overrides the limit.

    Raises SandboxError."""
    seconds = self._limits.seconds if seconds is None else seconds
    return Outcome(**self._ask({"stdin": stdin, "seconds": seconds}, seconds))

  def close(self) -> None:
    """Ends the program. Idempotent."""
    supervisor, self._supervisor = self._supervisor, None
    if supervisor is None:
      return
    with contextlib.suppress(SandboxError):
      if self._answered and supervisor.ask({}, 0) == {"ended": 0}:
        _idle.append(supervisor)
        return
    supervisor.close()

  def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
    if self._supervisor is None:
      raise SandboxError("the program has been ended")
    self._answered = False
    answer = self._supervisor.ask(message, seconds)
    if "error" in answer or "ended" in answer:
      raise SandboxError(answer.get("error", "the supervisor of a program has ended"))
    self._answered = True
    return answer

  def __enter__(self) -> Session:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()


class _Supervisor:
  """A process that runs programs, one after another."""

  def __init__(self):
    theirs_in, self._to = os.pipe()
    self._from, theirs_out = os.pipe()
    self._unread = b""
    try:
      self._process = subprocess.Popen(COMMAND, env=ENVIRONMENT, stdin=theirs_in, stdout=theirs_out)
    finally:
      os.close(theirs_in)
      os.close(theirs_out)

  def is_alive(self) -> bool:
    return self._process.poll() is None

  def close(self) -> None:
    """Ends it and what it runs."""
    os.close(self._to)
    os.close(self._from)
    try:
      self._process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Its answer, which may take so many seconds, and some. Raises SandboxError."""
    deadline = time.monotonic() + seconds + _PATIENCE_S
    try:
      data = json.dumps(message).encode() + b"\n"
      while data:
        data = data[os.write(self._to, data) :]
      return json.loads(self._read_line(deadline))
    except (OSError, ValueError) as error:
      raise SandboxError(f"the supervisor of a program failed: {error}") from error

  def _read_line(self, deadline: float) -> bytes:
    poller = select.poll()
    poller.register(self._from, select.POLLIN)
    while b"\n" not in self._unread[-(1 << 16) :]:
      if not poller.poll(max(deadline - time.monotonic(), 0) * 1000):
        raise TimeoutError("it says nothing")
      data = os.read(self._from, 1 << 16)
      if not data:
        raise OSError("it has ended")
      self._unread += data
    line, _, self._unread = self._unread.partition(b"\n")
    return line


_idle: list[_Supervisor] = []  # of this process, each waiting for a program
os.register_at_fork(after_in_child=_idle.clear)


def _borrow() -> _Supervisor:
  """One that waits for a program."""
  with contextlib.suppress(IndexError):  # none is left; another thread may have had the last
    while True:
      supervisor = _idle.pop()
      if supervisor.is_alive():
        return supervisor
      supervisor.close()
  return _Supervisor()


@atexit.register
def _end_idle() -> None:
  while _idle:
    _idle.pop().close()


@functools.cache
def best_level() -> str:
  """The strongest level at which a program runs here. Raises SandboxError if there is none."""
  reasons = []
  for level in LEVELS:
    try:
      with Session({"main.py": "print(input())"}, Limits(), level) as session:
        outcome = session.run("hello")
      if outcome.stdout == "hello\n":
        return level
      reasons.append(f"{level}: {outcome.stderr[-200:]}")
    except SandboxError as error:
      reasons.append(f"{level}: {error}")
  raise SandboxError(f"no program can be run here: {'; '.join(reasons)}")
