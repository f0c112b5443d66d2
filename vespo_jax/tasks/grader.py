"""Verifiers run in a process of their own, under limits of time and memory.

A verifier reads hostile text and may evaluate it. What it costs is its own answer: one that hangs
is a `timeout`, one that raises or takes the process down is an `error`; neither looks like `wrong`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from vespo_jax.processes import Child, ChildDied
from vespo_jax.tasks.base import Example, Score, Task

START_TIMEOUT_S = 120.0


class Grader:
  """Scores answers in a child process, which is replaced whenever an answer breaks it.

  Args:
    task: whose verifier to run; the child makes it anew from its name and options.
    timeout_s: wall-clock seconds one answer may take.

  The child starts at once and in the background. Close it, or use it as a context manager.
  """

  def __init__(self, task: Task, *, timeout_s: float = 10.0):
    self._start = json.dumps(
      {"module": type(task).__module__, "task": task.name, "options": dict(task.options)}
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
      self._wait_until_ready()
      try:
        self._child.send(json.dumps(items[len(scores) :]).encode())
        while len(scores) < len(items):
          scores.append(Score(**json.loads(self._child.receive(self._timeout_s))))
      except (TimeoutError, ChildDied) as error:
        timed_out = isinstance(error, TimeoutError)
        scores.append(Score(0.0, "timeout" if timed_out else "error"))
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
    self._child = Child("vespo_jax.tasks.grader_process", name="grader", args=[self._start])
    self._ready = False

  def _wait_until_ready(self) -> None:
    if not self._ready:
      self._child.receive(START_TIMEOUT_S)
      self._ready = True
