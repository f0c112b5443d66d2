"""Verifiers run in a process of their own, under limits of time and memory.

A verifier reads hostile text and may evaluate it. What it costs is its own answer: one that hangs
is a `timeout`, one that raises or takes the process down is an `error`; neither looks like `wrong`.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Sequence

from vespo_jax.processes import Child, ChildDied
from vespo_jax.tasks.base import Example, Score, Task

START_TIMEOUT_S = 120.0
_STATUS = ("ok", "wrong", "unparsed", "error")  # of a verdict; that it took too long is said here
_ANSWERS_PER_MESSAGE = 256  # parsing them is within the child's memory and one answer's time


class Grader:
  """Scores answers in a child process, which is replaced whenever an answer breaks it.

  Args:
    task: whose verifier to run; the child makes it anew from its name and options.
    timeout_s: wall-clock seconds one answer may take.

  The child starts at once and in the background. Close it, or use it as a context manager.
  """

  def __init__(self, task: Task, *, timeout_s: float = 10.0):
    self._start = json.dumps(
      {
        "module": type(task).__module__,
        "task": task.name,
        "options": dict(task.options),
        "timeout_s": timeout_s,
      }
    )
    self._timeout_s = timeout_s
    self._restart()

  def grade(self, examples: Sequence[Example], responses: Sequence[str]) -> list[Score]:
    """The verdict on each response.

    Raises ChildDied if the grader cannot start, with its own message on the terminal.
    """
    items = [
      [dataclasses.asdict(example), response]
      for example, response in zip(examples, responses, strict=True)
    ]
    scores: list[Score] = []
    while len(scores) < len(items):
      batch = items[len(scores) : len(scores) + _ANSWERS_PER_MESSAGE]
      self._send(json.dumps(batch).encode())
      try:
        for number in range(len(batch)):
          scores.append(_verdict(self._child.receive(self._timeout_s), number))
      except (TimeoutError, ChildDied, ValueError, RecursionError) as error:
        scores.append(Score(0.0, "timeout" if _timed_out(error) else "error"))
        self.close()
        self._restart()
    return scores

  def close(self) -> None:
    """Ends the process. Idempotent."""
    self._child.close(grace_s=0.2)

  def __enter__(self) -> Grader:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def _restart(self) -> None:
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a stack each: memory
    self._child = Child(
      "vespo_jax.tasks.grader_process", name="grader", env=one_thread, args=[self._start]
    )
    self._ready = False

  def _send(self, message: bytes) -> None:
    """Hands over a batch. A child that died before it took the batch is replaced, once, if it was
    up: no answer is to blame."""
    was_ready = self._ready
    try:
      if not was_ready:
        self._child.receive(START_TIMEOUT_S)
        self._ready = True
      self._child.send(message)
      self._child.receive(START_TIMEOUT_S)
    except ChildDied:
      self.close()
      self._restart()
      if not was_ready:
        raise
      self._send(message)


def _verdict(message: bytes, number: int) -> Score:
  """The verdict on answer `number` of a message. Raises ValueError if it is none: then an answer
  has spoken for the grader."""
  match json.loads(message):
    case [int(n), float(reward), str(status), float(raw)]:
      if n == number and 0 <= reward <= 1 and status in _STATUS:
        return Score(reward, status, raw)
  raise ValueError("no verdict")


def _timed_out(error: Exception) -> bool:
  killed = isinstance(error, ChildDied) and error.exit_code == -signal.SIGALRM
  return killed or isinstance(error, TimeoutError)
