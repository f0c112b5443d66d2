"""An audit hook that refuses side effects, for a Python that reads or runs what nobody has read.

Against what stumbles on a side effect; it is no sandbox against an expert. This file stands alone:
it is also the `sitecustomize` of programs at the level "interpreter".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any


def fence(
  command: Sequence[str] = (), environment: dict[str, str] | None = None
) -> Callable[[str, tuple[Any, ...]], None]:
  """The hook: starting a process, opening a socket and changing a file raise PermissionError.

  What it knows is in no module, where an answer could change it. One process may be started, if it
  is named: `command` with just this `environment`.
  """
  writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
  forbidden = (
    *("ctypes.", "gc.", "os.", "pty.", "resource.", "shutil.", "signal.", "socket."),
    *("sqlite3.", "subprocess.", "sys.setprofile", "sys.settrace"),
  )
  allowed = ("os.listdir", "os.scandir")  # importing a module lists its directory
  granted = (list(command), sorted((environment or {}).items()), None)

  def refuse(event: str, args: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and command:
      program, arguments, folder, variables = args
      if program == command[0] and granted == (list(arguments), sorted(variables.items()), folder):
        return
    writes = event == "open" and args[2] & writing
    if writes or (event.startswith(forbidden) and event not in allowed):
      raise PermissionError(f"a verifier may not do this: {event}")

  return refuse
