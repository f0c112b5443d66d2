"""The sampler process: `python -m vespo_jax.runtime.sampler_process FD BLUEPRINT WEIGHTS_FD SLOTS`.

It works until its parent hangs up. An exception is reported to the parent, then ends the process.
"""

from __future__ import annotations

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
  blueprint, weights_fd, slots = Blueprint.from_json(argv[2]), int(argv[3]), int(argv[4])
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
