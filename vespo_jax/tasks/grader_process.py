"""The grader process: `python -m vespo_jax.tasks.grader_process FD START`.

It takes lists of [example, response], answers each with the bytes of memory it has by then, and
sends each verdict as soon as it has it, until its parent hangs up.
"""

from __future__ import annotations

import importlib
import json
import logging
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from vespo_jax.processes import serve_parent
from vespo_jax.tasks import custom
from vespo_jax.tasks.base import Example, Score, make
from vespo_jax.tasks.guard import forbid_side_effects
from vespo_jax.tasks.verifiers.base import prepare_grading

# The parent ends a grader whose answer takes too long. If the parent is gone, and the answer holds
# the interpreter so that the watchdog cannot run, the kernel's alarm ends it this much later.
ALARM_MARGIN_S = 5.0

_reported: set[type[BaseException]] = set()  # each kind of failure is told once


def _score(
  judge: Callable[[Example, str], Score], example: Example, response: str, alarm_s: float
) -> Score:
  signal.setitimer(signal.ITIMER_REAL, alarm_s)
  try:
    return judge(example, response)
  # a third party's verifier may raise anything on hostile text, and the text may call exit()
  except (Exception, SystemExit) as error:
    if type(error) not in _reported:
      _reported.add(type(error))
      print(f"a verifier failed: {error!a:.200}, {_place(error)}", file=sys.stderr, flush=True)
    return Score(0.0, "error")
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)


def _place(error: BaseException) -> str:
  """Where it was raised; if the function that `custom` calls is on the way, the last place in its
  file."""
  frames = traceback.extract_tb(error.__traceback__)
  files = [frame.filename for frame in frames]
  if custom.__file__ in files[:-1]:
    own = files[files.index(custom.__file__) + 1]
    frames = [frame for frame in frames if frame.filename == own]
  return f"{frames[-1].filename!a}, line {frames[-1].lineno}"


def _judge(start: dict[str, Any]) -> Callable[[Example, str], Score]:
  """What scores: the task, or the reward that is named in its place."""
  importlib.import_module(start["module"])  # registers the task's family
  task = make(start["task"], **start["options"])
  if not start["reward"]:
    return task.score
  reward = custom.load(start["reward"])
  return lambda example, response: reward(response, example.answer, example.metadata)


def _memory() -> int:
  """Bytes in memory now. (What Linux says of their maximum counts the parent's before the exec.)"""
  try:
    with open("/proc/self/statm") as file:
      return int(file.read().split()[1]) * resource.getpagesize()
  except FileNotFoundError:  # macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(argv: list[str]) -> int:
  """Serves the parent at descriptor `argv[1]`; `argv[2]` says which task."""
  connection = serve_parent(int(argv[1]))
  start: dict[str, Any] = json.loads(argv[2])
  logging.basicConfig(format="%(message)s")
  logging.getLogger("vespo_jax").setLevel(logging.INFO if start["tells"] else logging.WARNING)
  alarm_s = start["timeout_s"] + ALARM_MARGIN_S
  judge = _judge(start)
  prepare_grading()
  resource.setrlimit(resource.RLIMIT_AS, (start["memory_bytes"],) * 2)
  warnings.simplefilter("ignore")  # of answers that are evaluated
  forbid_side_effects()
  if start["reward"]:  # what it prints is for whoever wrote it
    sys.stdout = sys.stderr
  try:
    connection.send_bytes(b"ready")
    while True:
      _serve(connection, judge, alarm_s)
  except (EOFError, ConnectionError):  # the parent hung up
    return 0


def _serve(connection: Connection, judge: Callable[[Example, str], Score], alarm_s: float) -> None:
  """Takes one list, sends the verdicts. Raises EOFError or ConnectionError if nobody is there."""
  message = connection.recv_bytes()
  connection.send_bytes(b"%d" % _memory())  # from here on an answer is to blame for what happens
  for number, (example, response) in enumerate(json.loads(message)):
    score = _score(judge, Example(**example), response, alarm_s)
    verdict = [number, float(score.reward), score.status, float(score.raw)]
    connection.send_bytes(json.dumps(verdict).encode())


if __name__ == "__main__":
  sys.exit(main(sys.argv))
