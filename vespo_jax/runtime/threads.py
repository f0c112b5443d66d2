"""The transport of tests and small runs: the sampler is one thread of this process."""

from __future__ import annotations

import collections
import os
from concurrent import futures
from typing import Any

import jax
import numpy as np

from vespo_jax.models import ModelSpec
from vespo_jax.sampler import Order, Result, Worker
from vespo_jax.types import Params


class ThreadSampler:
  """Both channels of one sampler on a single thread; the same rollouts as `LocalSampler`'s."""

  def __init__(self, spec: ModelSpec, dtype: str):
    self._worker = Worker(spec, dtype)
    self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")
    self._pending: collections.deque[futures.Future[Result]] = collections.deque()

  def publish(self, version: int, params: Params) -> None:
    """Makes a copy of `params` the weights of all later orders."""
    self._thread.submit(self._worker.set_weights, version, jax.tree.map(np.array, params))

  def put(self, order: Order) -> None:
    """Queues an order."""
    self._pending.append(self._thread.submit(self._worker.run, order))

  def get(self, timeout_s: float) -> Result:
    """The result of the oldest order. Raises TimeoutError, or what the sampler raised."""
    return self._pending.popleft().result(timeout_s)

  def health(self) -> dict[str, Any]:
    """`alive`, `pid` of this process, and the number of `pending` orders."""
    return {"alive": True, "pid": os.getpid(), "pending": len(self._pending)}

  def close(self) -> None:
    """Drops what is queued and ends the thread. Idempotent."""
    self._thread.shutdown(wait=True, cancel_futures=True)
