"""What a verifier may not do while it reads hostile text.

A verifier may evaluate the answer as an expression, so that the answer can call anything; those of
reasoning-gym are kept from it by `formulas`. This is a second fence, against a policy that stumbles
on a side effect, and not a sandbox against an expert, who can still send verdicts of his own.
"""

from __future__ import annotations

import os
import sys

from vespo_jax.sandbox import client
from vespo_jax.sandbox.fence import fence


def forbid_side_effects() -> None:
  """From now on, in this process: starting a process, opening a socket and changing a file raise
  PermissionError; all but the one process that runs programs in a sandbox. It cannot be undone."""
  sys.dont_write_bytecode = True
  sys.stdout = open(os.devnull, "w")  # what an answer prints is nobody's output
  sys.addaudithook(fence(client.COMMAND, client.ENVIRONMENT))
