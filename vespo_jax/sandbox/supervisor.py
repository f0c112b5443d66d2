"""The process that runs programs: `python -m vespo_jax.sandbox.supervisor`, JSON lines in and out.

{"level", "files", "limits", "hidden"} begins a program, which a fork of this process supervises and
answers for, first by {"ready": true}; then {"stdin", "seconds"}, any number of times, by an
`Outcome`; and {} ends it. However the fork ends, {"ended": its exit code} follows, and the next
program may begin. {"error"} says that the fork has failed; then it ends. All of them end with the
parent, and what they run ends with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any, NoReturn

from vespo_jax.sandbox.isolation import LEVELS, PYTHON
from vespo_jax.sandbox.limits import REPORT_BYTES, REPORT_FD, Limits

if sys.platform == "linux":
  from vespo_jax.sandbox import linux  # here, and not in every fork

_TICK_S = 0.05  # between two looks at the memory
_KILL_S = 5.0  # the longest wait for what was killed


class _Abandoned(Exception):
  """The parent is gone."""


def main() -> int:
  """Serves the parent at standard input and output, of which nobody reads ahead: it waits for every
  answer."""
  lines = sys.stdin.buffer
  with contextlib.suppress(BrokenPipeError):
    while order := lines.readline():
      fork = os.fork()
      if fork == 0:
        try:
          _supervise(json.loads(order), lines)
          os._exit(0)
        finally:  # whatever has happened, the fork must not go on here
          traceback.print_exc()
          os._exit(1)
      _answer({"ended": os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])})
  return 0


def _supervise(order: dict[str, Any], lines: Iterable[bytes]) -> None:
  """Runs one program as often as it is asked to; in the fork."""
  limits = Limits(**order["limits"])
  try:
    isolation = LEVELS[order["level"]](order["files"], limits, order["hidden"])
  except (OSError, ImportError, AttributeError) as error:  # the latter two: not on this system
    _answer({"error": f"{type(error).__name__}: {error}"})
    return
  try:
    if sys.platform == "linux":
      linux.die_with_parent()
      linux.adopt_orphans()
    _answer({"ready": True})
    for line in lines:
      run = json.loads(line)
      if not run:
        break
      _answer(_run(isolation, dataclasses.replace(limits, seconds=run["seconds"]), run["stdin"]))
  except (_Abandoned, BrokenPipeError):
    pass
  except OSError as error:
    _answer({"error": f"{type(error).__name__}: {error}"})
  finally:
    isolation.close()


def _answer(message: dict[str, Any]) -> None:
  data = json.dumps(message).encode() + b"\n"
  while data:
    data = data[os.write(1, data) :]


def _run(isolation: Any, limits: Limits, stdin: str) -> dict[str, Any]:
  """One run, as the fields of an `Outcome`. Raises OSError if the program could not be started."""
  pipes = {name: os.pipe() for name in ("stdin", "stdout", "stderr", "report", "failure")}
  theirs = [pipes["stdin"][0], *(pipes[name][1] for name in list(pipes)[1:])]
  pid = os.fork()
  if pid == 0:
    _execute(isolation, limits, theirs)
  for fd in theirs:
    os.close(fd)
  run = _Running(pid, limits, pipes, stdin.encode(errors="surrogatepass"))
  try:
    ending = run.watch()
  finally:
    code = run.end()
  if run.kept["failure"]:
    raise OSError(run.kept["failure"].decode(errors="replace"))
  texts = {name: run.kept[name].decode(errors="replace") for name in ("stdout", "stderr", "report")}
  return {"ending": ending, "exit_code": code, **texts}


def _execute(isolation: Any, limits: Limits, fds: list[int]) -> NoReturn:
  """Becomes the program; in the fork."""
  high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in fds]
  failure = high.pop()
  try:
    os.setsid()
    for target, fd in zip((0, 1, 2, REPORT_FD), high, strict=True):
      os.dup2(fd, target)
    isolation.enter(limits)
    environment = {
      "HOME": isolation.temporary,
      "TMPDIR": isolation.temporary,
      "PATH": f"{os.path.dirname(PYTHON)}:/usr/bin:/bin",
      "LANG": "C.UTF-8",
      "PYTHONHASHSEED": "0",
      "PYTHONPATH": isolation.program,
      "OMP_NUM_THREADS": "1",
      "OPENBLAS_NUM_THREADS": "1",
    }
    os.execve(PYTHON, [PYTHON, "-s", "-B", f"{isolation.program}/main.py"], environment)
  except Exception as error:  # whatever it is, the fork must not go on
    os.write(failure, f"{type(error).__name__}: {error}".encode())
  os._exit(127)


class _Running:
  """A program that has been started: `watch` it, then `end` it."""

  def __init__(self, pid: int, limits: Limits, pipes: dict[str, tuple[int, int]], stdin: bytes):
    self._pid, self._limits, self._stdin = pid, limits, memoryview(stdin)
    self._ours = {name: ends[0] for name, ends in pipes.items() if name != "stdin"}
    self._ours["stdin"] = pipes["stdin"][1]
    for fd in self._ours.values():
      os.set_blocking(fd, False)
    most = limits.output_bytes
    self._most = {"stdout": most, "stderr": most, "report": REPORT_BYTES, "failure": REPORT_BYTES}
    self.kept = {name: b"" for name in self._most}
    self._full = False

  def watch(self) -> str:
    """Waits for the end of it, or of a limit; returns which. Raises _Abandoned."""
    deadline = time.monotonic() + self._limits.seconds
    looked = time.monotonic()
    while True:
      self._move(min(_TICK_S, max(deadline - time.monotonic(), 0)))
      now = time.monotonic()
      if self._full:
        return "output"
      if self._has_exited():
        return "exited"
      if now >= deadline:
        return "timeout"
      if now >= looked + _TICK_S:
        looked = now
        if _memory_of(self._pid) > self._limits.memory_bytes:
          return "memory"

  def end(self) -> int:
    """Kills whatever is left of it; returns its exit code. Raises TimeoutError if something is."""
    deadline = time.monotonic() + _KILL_S
    status: int | None = None
    while True:
      for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
          if status is None:
            kill(self._pid, signal.SIGKILL)
      try:
        pid, ended = os.waitpid(-1, os.WNOHANG)
      except ChildProcessError:
        break
      status = ended if pid == self._pid else status
      if not pid:
        if time.monotonic() > deadline:
          raise TimeoutError("the program cannot be killed")
        for child in _children(os.getpid()):  # orphans, adopted
          with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    self._move(0)
    for fd in self._ours.values():
      os.close(fd)
    return os.waitstatus_to_exitcode(status or 0)

  def _has_exited(self) -> bool:
    """Whether it has ended; it is left to be waited for, so that its group keeps its number."""
    if not hasattr(os, "waitid"):  # macOS; a program that closes its outputs is taken to be over
      return not self._ours.keys() - {"stdin"}
    return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

  def _move(self, timeout_s: float) -> None:
    """Reads and writes what can be without waiting longer than `timeout_s` for something."""
    names = {fd: name for name, fd in self._ours.items()}
    poller = select.poll()
    poller.register(0, select.POLLIN)
    for fd, name in names.items():
      poller.register(fd, select.POLLOUT if name == "stdin" else select.POLLIN)
    for fd, _ in poller.poll(timeout_s * 1000):
      if fd == 0:  # nothing is said during a run: the parent has hung up
        raise _Abandoned
      if names[fd] == "stdin":
        self._write(fd)
      else:
        self._read(names[fd], fd)

  def _write(self, fd: int) -> None:
    try:
      if self._stdin:
        self._stdin = self._stdin[os.write(fd, self._stdin[: 1 << 16]) :]
    except BlockingIOError:
      return
    except BrokenPipeError:  # it does not read
      self._stdin = memoryview(b"")
    if not self._stdin:
      os.close(self._ours.pop("stdin"))

  def _read(self, name: str, fd: int) -> None:
    """Everything there is by now, a limited part of which is kept."""
    while True:
      try:
        data = os.read(fd, 1 << 16)
      except BlockingIOError:
        return
      if not data:
        os.close(self._ours.pop(name))
        return
      room = self._most[name] - len(self.kept[name])
      self.kept[name] += data[:room]
      if name == "stdout" and len(data) > room:
        self._full = True
        return
      if len(data) < 1 << 16:
        return


def _children(pid: int) -> list[int]:
  found: list[int] = []
  with contextlib.suppress(OSError):
    for task in os.listdir(f"/proc/{pid}/task"):
      with open(f"/proc/{pid}/task/{task}/children") as file:
        found += map(int, file.read().split())
  return found


def _memory_of(pid: int) -> int:
  """Bytes in memory of a process and its descendants, where the system says so."""
  total, pids = 0, [pid]
  while pids:
    process = pids.pop()
    pids += _children(process)
    with contextlib.suppress(OSError), open(f"/proc/{process}/statm") as file:
      total += int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
  return total


if __name__ == "__main__":
  sys.exit(main())
