"""The transport of tests and small runs: workers are threads of this process."""

from __future__ import annotations

import os
import queue
import threading

import jax
import numpy as np

from vespo_jax import sharding
from vespo_jax.runtime import messages
from vespo_jax.runtime.links import Heartbeat
from vespo_jax.runtime.published import PublishedPieces
from vespo_jax.runtime.serving import Blueprint, serve
from vespo_jax.sampler import Order, Result
from vespo_jax.types import Params

CLOSE_TIMEOUT_S = 60.0  # a thread that the interpreter leaves behind inside XLA can crash its exit


class KeptWeights:
  """A `WeightChannel` inside one process: the last `slots` sets, immutable and shared."""

  def __init__(self, slots: int):
    self._slots = slots
    self._sets: dict[int, Params] = {}
    self._changed = threading.Condition()

  def publish(self, version: int, params: Params) -> None:
    """Keeps a set of host arrays that nobody will change, and forgets the oldest."""
    with self._changed:
      self._sets[version] = params
      while len(self._sets) > self._slots:
        del self._sets[min(self._sets)]
      self._changed.notify_all()

  def newest(self) -> int:
    """The newest version there is; -1 before the first."""
    with self._changed:
      return max(self._sets, default=-1)

  def read(self, version: int, timeout_s: float, exact: bool) -> tuple[int, Params]:
    """`version`, or the newest once that is not older.

    Raises TimeoutError; LookupError if `version` itself was wanted and is forgotten.
    """
    with self._changed:
      if not self._changed.wait_for(lambda: max(self._sets, default=-1) >= version, timeout_s):
        raise TimeoutError(f"no weights of version {version} or newer within {timeout_s:g} s")
      found = version if exact else max(self._sets)
      if found not in self._sets:
        kept = sorted(self._sets)
        raise LookupError(f"version {version} of the weights is gone; there are {kept}")
      return found, self._sets[found]

  def weights(self, version: int) -> Params:
    """A kept set, which nobody changes. Raises LookupError if it is not kept."""
    return self.read(version, 0.0, exact=True)[1]


class ThreadTransport:
  """Workers on threads; the same rollouts as in processes.

  Args:
    blueprint: of a worker.
    slots: versions of the weights kept.
    pieces: where weights are published, if the blueprint says in pieces.
  """

  def __init__(self, blueprint: Blueprint, slots: int, pieces: PublishedPieces | None = None):
    self._blueprint, self._kept, self._pieces = blueprint, KeptWeights(slots), pieces

  def start(self, worker: int) -> ThreadLink:
    """A new thread."""
    return ThreadLink(self._blueprint, self._kept)

  def publish(self, version: int, params: Params) -> None:
    """Copies the weights to where workers find them, once for all."""
    if self._pieces is not None:
      self._pieces.publish(version, params)
    else:
      copy = lambda leaf: np.array(sharding.fetch(leaf))
      self._kept.publish(version, jax.tree.map(copy, params))

  def weights(self, version: int) -> Params:
    """A kept set, which nobody changes. Raises LookupError."""
    return (self._pieces or self._kept).weights(version)

  def close(self) -> None:
    """Frees what holds the weights. Idempotent."""
    if self._pieces is not None:
      self._pieces.close()


class ThreadLink:
  """A worker on a daemon thread. A thread cannot be killed: it ends after its current tick, and
  nothing it says by then is heard."""

  def __init__(self, blueprint: Blueprint, kept: KeptWeights):
    self._orders: queue.Queue[bytes | None] = queue.Queue()
    self._said: queue.Queue[bytes] = queue.Queue()
    self._thread = threading.Thread(
      target=serve,
      args=(blueprint, kept, self._orders, self._said.put),
      name="sampler",
      daemon=True,
    )
    self._thread.start()

  def send(self, order: Order) -> None:
    """Queues an order."""
    self._orders.put(messages.encode(order))

  def poll(self) -> Result | Heartbeat | None:
    """The next thing said, or None. Raises the Fault of a thread that failed."""
    try:
      return messages.decode_reply(self._said.get_nowait())
    except queue.Empty:
      return None

  @property
  def alive(self) -> bool:
    """Whether the thread is running."""
    return self._thread.is_alive()

  @property
  def pid(self) -> int:
    """This process."""
    return os.getpid()

  def kill(self) -> None:
    """Asks the thread to end, and does not wait for it."""
    self._orders.put(None)

  def close(self) -> None:
    """Asks the thread to end, and waits until its tick is done, up to `CLOSE_TIMEOUT_S`."""
    self.kill()
    self._thread.join(CLOSE_TIMEOUT_S)
