"""Verifiers run in processes of their own, under limits of time and memory.

A verifier reads hostile text and may evaluate it. What it costs is its own answer: one that hangs
is a `timeout`, one that raises or takes the process down is an `error`; neither looks like `wrong`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vespo_jax.processes import Child, ChildDied
from vespo_jax.tasks.base import Example, Score, Task

START_TIMEOUT_S = 120.0
_STATUS = ("ok", "wrong", "unparsed", "error", "timeout")
_ANSWERS_PER_MESSAGE = 256  # parsing them is within the child's memory and one answer's time
_PIECES_PER_PROCESS = 8  # of a call, so that a slow answer holds up few others
_ANSWERS_PER_PROCESS = 50_000  # then it is replaced: third parties' caches grow
_MEMORY_TO_REPLACE = 0.5  # of its limit, likewise


class Grader:
  """Scores answers in child processes, each of which is replaced whenever an answer breaks it, and
  now and then.

  Args:
    task: whose verifier to run; the children make it anew from its name and options.
    processes: how many grade at a time. The first starts at once and in the background, the others
      when they are needed.
    timeout_s: wall-clock seconds one answer may take.
    memory_gb: GiB of address space of each process; an answer that needs more is an `error`.
    reward: "package.module:function", what scores in place of the task: see `custom`. "": the task.

  Close it, or use it as a context manager.
  """

  def __init__(
    self,
    task: Task,
    *,
    processes: int = 1,
    timeout_s: float = 10.0,
    memory_gb: float = 4.0,
    reward: str = "",
  ):
    start = {
      "module": type(task).__module__,
      "task": task.name,
      "options": dict(task.options),
      "timeout_s": timeout_s,
      "memory_bytes": int(memory_gb * (1 << 30)),
      "reward": reward,
    }
    self._processes = [_Process(start | {"tells": not i}) for i in range(processes)]
    self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()  # the first, as long as it is enough
    for process in reversed(self._processes):
      self._idle.put(process)
    self._threads = ThreadPoolExecutor(processes, thread_name_prefix="grader")
    self._processes[0].start()

  def grade(self, examples: Sequence[Example], responses: Sequence[str]) -> list[Score]:
    """The verdict on each response, in order; the same response to the same example is judged once.

    Raises ChildDied if a grader cannot start, with its own message on the terminal.
    """
    pairs = list(zip(examples, responses, strict=True))
    different = dict.fromkeys(pairs)
    items = [[dataclasses.asdict(example), response] for example, response in different]
    several = len(self._processes) > 1
    size = len(items) // (_PIECES_PER_PROCESS * len(self._processes)) if several else len(items)
    size = min(max(size, 1), _ANSWERS_PER_MESSAGE)
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    scores = itertools.chain.from_iterable(self._threads.map(self._grade, pieces))
    verdicts = dict(zip(different, scores, strict=True))
    return [verdicts[pair] for pair in pairs]

  def close(self) -> None:
    """Ends the processes. Idempotent."""
    self._threads.shutdown(wait=False, cancel_futures=True)
    for process in self._processes:
      process.close()

  def __enter__(self) -> Grader:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def _grade(self, items: list[Any]) -> list[Score]:
    process = self._idle.get()
    try:
      return process.grade(items)
    finally:
      self._idle.put(process)


class _Process:
  """One grader process, used by one thread at a time; `start` says what it is to do."""

  def __init__(self, order: dict[str, Any]):
    self._order, self._timeout_s = order, order["timeout_s"]
    self._most_memory = _MEMORY_TO_REPLACE * order["memory_bytes"]
    self._lock = threading.Lock()  # of the two that follow: the grader may be closed at any time
    self._child: Child | None = None
    self._closed = False
    self._ready = False
    self._graded = self._memory = 0

  def start(self) -> Child:
    """The child, started if there is none. Raises ChildDied if this is closed."""
    with self._lock:
      if self._child is None:
        if self._closed:
          raise ChildDied("grader", None)
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a stack each: memory
        self._child = Child(
          "vespo_jax.tasks.grader_process",
          name="grader",
          env=one_thread,
          args=[json.dumps(self._order)],
        )
        self._order = self._order | {"tells": False}  # what there is to tell is told once
        self._ready, self._graded = False, 0
      return self._child

  def grade(self, items: list[Any]) -> list[Score]:
    """The verdict on each of at most `_ANSWERS_PER_MESSAGE` [example, response]."""
    scores: list[Score] = []
    while len(scores) < len(items):
      rest = items[len(scores) :]
      child = self._send(json.dumps(rest).encode())
      try:
        for number in range(len(rest)):
          scores.append(_verdict(child.receive(self._timeout_s), number))
      except (TimeoutError, ChildDied, ValueError, RecursionError) as error:
        scores.append(Score(0.0, "timeout" if _timed_out(error) else "error"))
        self._replace()
    self._graded += len(items)
    if self._graded >= _ANSWERS_PER_PROCESS or self._memory > self._most_memory:
      self._replace()
    return scores

  def close(self) -> None:
    """Ends the process for good. Idempotent."""
    with self._lock:
      self._closed = True
    self._end()

  def _replace(self) -> None:
    """Ends the process and starts another, in the background."""
    self._end()
    self.start()

  def _end(self) -> None:
    with self._lock:
      child, self._child = self._child, None
    if child is not None:
      child.close(grace_s=0.2)

  def _send(self, message: bytes) -> Child:
    """Hands over a batch. A child that died before it took it, or for which an answer of the batch
    before has spoken, is replaced, once, if it was up: no answer of this one is to blame."""
    child, was_ready = self.start(), self._ready
    try:
      if not was_ready:
        child.receive(START_TIMEOUT_S)
        self._ready = True
      child.send(message)
      self._memory = int(child.receive(START_TIMEOUT_S))
    except (ChildDied, ValueError):
      self._replace()
      if not was_ready:
        raise
      return self._send(message)
    return child


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
