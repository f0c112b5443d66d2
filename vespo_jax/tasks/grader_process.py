"""The grader process: `python -m vespo_jax.tasks.grader_process FD START`.

It scores lists of [example, response] and sends each verdict as soon as it has it, until its parent
hangs up.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import resource
import sys
from typing import Any

from vespo_jax.processes import serve_parent
from vespo_jax.tasks.base import Example, Score, Task, make

MEMORY_LIMIT_BYTES = 4 << 30


def _score(task: Task, example: Example, response: str) -> Score:
  try:
    return task.score(example, response)
  except Exception as error:  # a third party's verifier may raise anything on hostile text
    print(f"verifier of {task.name} failed: {error!r:.200}", file=sys.stderr)
    return Score(0.0, "error")


def main(argv: list[str]) -> int:
  """Serves the parent at descriptor `argv[1]`; `argv[2]` says which task."""
  connection = serve_parent(int(argv[1]))
  start: dict[str, Any] = json.loads(argv[2])
  importlib.import_module(start["module"])  # registers the task's family
  task = make(start["task"], **start["options"])
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
  connection.send_bytes(b"ready")
  while True:
    try:
      items = json.loads(connection.recv_bytes())
    except EOFError:  # the parent hung up
      return 0
    for example, response in items:
      score = _score(task, Example(**example), response)
      connection.send_bytes(json.dumps(dataclasses.asdict(score)).encode())


if __name__ == "__main__":
  sys.exit(main(sys.argv))
