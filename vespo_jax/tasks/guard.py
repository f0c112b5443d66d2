"""What a verifier may not do while it reads hostile text.

Some verifiers evaluate the answer as Python or SymPy expressions, so an answer can call anything.
This is a fence against a policy that stumbles on a side effect, not a sandbox against an expert.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = ("ctypes.", "os.", "pty.", "shutil.", "signal.", "socket.", "subprocess.")
_ALLOWED = ("os.listdir", "os.scandir")  # importing a module lists its directory


def forbid_side_effects() -> None:
  """From now on, in this process: starting a process, opening a socket and changing a file raise
  PermissionError. It cannot be undone."""
  sys.dont_write_bytecode = True
  sys.stdout = open(os.devnull, "w")  # what an answer prints is nobody's output
  sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
  writes = event == "open" and args[2] & _WRITING
  if writes or (event.startswith(_FORBIDDEN) and event not in _ALLOWED):
    raise PermissionError(f"a verifier may not do this: {event}")
