"""The sampler process: `python -m vespo_jax.runtime.sampler_process FD START`.

It answers orders one by one until its parent hangs up. An exception is reported to the parent, then
ends the process.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from vespo_jax.models import ModelSpec
from vespo_jax.processes import serve_parent
from vespo_jax.runtime import messages
from vespo_jax.runtime.channels import SharedWeights
from vespo_jax.sampler import Worker

WEIGHTS_TIMEOUT_S = 60.0  # an order is sent after its weights are published, so this is generous


def serve(connection: Connection, worker: Worker, weights: SharedWeights) -> None:
  """Runs orders as they come; a thread reads ahead, so that the learner's sends never wait."""
  orders: queue.Queue[bytes | None] = queue.Queue()

  def read() -> None:
    try:
      while True:
        orders.put(connection.recv_bytes())
    except (EOFError, OSError):
      orders.put(None)

  threading.Thread(target=read, name="orders", daemon=True).start()
  while (data := orders.get()) is not None:
    order = messages.unpack_order(messages.decode(data))
    if order.weight_version != worker.weight_version:
      worker.set_weights(*weights.latest(order.weight_version, WEIGHTS_TIMEOUT_S))
    connection.send_bytes(messages.encode(messages.pack_result(worker.run(order))))


def main(argv: list[str]) -> int:
  """Serves the parent at the other end of descriptor `argv[1]`; `argv[2]` describes the policy."""
  connection = serve_parent(int(argv[1]))
  try:
    start = json.loads(argv[2])
    spec = ModelSpec(**start["spec"])
    serve(connection, Worker(spec, start["dtype"]), SharedWeights(spec, start["weights_fd"]))
  except Exception:  # whatever it is, the learner must hear of it before this process ends
    connection.send_bytes(messages.encode({"error": traceback.format_exc()}))
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
