"""The sampler process: `python -m vespo_jax.runtime.sampler_process FD BLUEPRINT_FD WEIGHTS_FD
SLOTS`.

It works until its parent hangs up. An exception is reported to the parent, then ends the process.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

from vespo_jax import memory
from vespo_jax.processes import serve_parent
from vespo_jax.runtime.channels import SharedWeights
from vespo_jax.runtime.serving import Blueprint, serve


def main(argv: list[str]) -> int:
  """Serves the parent at the other end of descriptor `argv[1]`."""
  connection = serve_parent(int(argv[1]))
  memory.return_after_compiling()
  blueprint_fd, weights_fd, slots = map(int, argv[2:])
  size = os.fstat(blueprint_fd).st_size  # its offset is shared by all samplers, so none moves it
  blueprint = Blueprint.from_json(os.pread(blueprint_fd, size, 0).decode())
  orders: queue.Queue[bytes | None] = queue.Queue()

  def read() -> None:  # a thread of its own: the learner's sends never wait for a tick
    try:
      while True:
        orders.put(connection.recv_bytes())
    except (EOFError, OSError):
      orders.put(None)

  threading.Thread(target=read, name="orders", daemon=True).start()
  channel = None
  if blueprint.published is None:
    channel = SharedWeights(blueprint.spec, slots, weights_fd)
  return 0 if serve(blueprint, channel, orders, connection.send_bytes) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv))
