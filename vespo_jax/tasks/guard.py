"""What a verifier may not do while it reads hostile text.

A verifier may evaluate the answer as an expression, so that the answer can call anything; those of
reasoning-gym are kept from it by `formulas`. This is a second fence, against a policy that stumbles
on a side effect, and not a sandbox against an expert, who can still send verdicts of his own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def forbid_side_effects() -> None:
  """From now on, in this process: starting a process, opening a socket and changing a file raise
  PermissionError. It cannot be undone."""
  sys.dont_write_bytecode = True
  sys.stdout = open(os.devnull, "w")  # what an answer prints is nobody's output
  sys.addaudithook(_fence())


def _fence() -> Callable[[str, tuple[Any, ...]], None]:
  """The hook; what it knows is in no module, where an answer could change it."""
  writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
  forbidden = (
    *("ctypes.", "gc.", "os.", "pty.", "resource.", "shutil.", "signal.", "socket."),
    *("sqlite3.", "subprocess.", "sys.setprofile", "sys.settrace"),
  )
  allowed = ("os.listdir", "os.scandir")  # importing a module lists its directory

  def refuse(event: str, args: tuple[Any, ...]) -> None:
    writes = event == "open" and args[2] & writing
    if writes or (event.startswith(forbidden) and event not in allowed):
      raise PermissionError(f"a verifier may not do this: {event}")

  return refuse
