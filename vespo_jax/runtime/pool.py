"""One sampler made of k workers that may fail at any moment, over any transport.

The learner gives orders and takes results in the same order. Between the two, a worker that died,
went silent or sent what cannot be true is killed, started again after a pause, and its unfinished
orders are given out again: the same orders, hence with per-sequence keys the same rollouts. Only
the worker that holds an order can deliver it, and only once.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from vespo_jax.runtime.checks import check_result
from vespo_jax.runtime.links import (
  Clock,
  FailureSettings,
  Fault,
  Heartbeat,
  Link,
  Preempted,
  SamplersFailed,
  Snapshot,
  Transport,
)
from vespo_jax.sampler import Order, Result
from vespo_jax.types import Params

_POLL_S = 0.002  # between looks, while the learner waits
_WATCH_S = 0.1  # between looks, while it does something else
_MESSAGES_PER_LOOK = 64  # so that a worker that never stops talking holds up nobody


@dataclasses.dataclass
class _Worker:
  index: int
  link: Link | None = None  # None: it failed, and is due again at `start_at`
  start_at: float = 0.0
  heard_at: float = 0.0
  failed_in_a_row: int = 0
  orders: list[int] = dataclasses.field(default_factory=list)  # given, unanswered


class SamplerPool:
  """The `Sampler` over a transport.

  Args:
    transport: where the workers run; closed with the pool.
    workers: how many, k.
    vocab_size: of the policy; ids outside it are refused.
    failures: when a worker has failed, and how many failures end the run.
    clock: the time.
    stop: asked while a result is waited for; True ends the waiting.
  """

  def __init__(
    self,
    transport: Transport,
    workers: int,
    vocab_size: int,
    failures: FailureSettings,
    clock: Clock = time,
    stop: Callable[[], bool] = lambda: False,
  ):
    self._transport, self._vocab_size = transport, vocab_size
    self._settings, self._clock, self._stop = failures, clock, stop
    self._lock = threading.RLock()
    self._started_at = clock.monotonic()
    self._workers = [_Worker(index, start_at=self._started_at) for index in range(workers)]
    self._pending: dict[int, Order] = {}  # in the order of `put`, until delivered
    self._waiting: list[int] = []  # of those, the ones that no worker has
    self._results: dict[int, Result] = {}  # of those, checked, until their turn
    self._failures: list[dict[str, Any]] = []
    self._newest = -1
    self._arrived_at = self._started_at  # the last result
    self._closed = threading.Event()
    self._look()

  def watch(self) -> None:
    """Starts a thread that looks after the workers while the learner does something else."""

    def run() -> None:
      while not self._closed.wait(_WATCH_S):
        self._look()

    threading.Thread(target=run, name="sampler-pool", daemon=True).start()

  def publish(self, version: int, params: Params) -> None:
    """Makes `params` the newest weights. A version names one set: published again, nothing happens.

    Raises ValueError if it is older than the newest.
    """
    with self._lock:
      if version < self._newest:
        raise ValueError(f"version {version} is older than version {self._newest}")
      if version > self._newest:
        self._transport.publish(version, params)
        self._newest = version

  def put(self, order: Order) -> None:
    """Gives an order to the live worker that has the fewest.

    Raises ValueError if its id is that of a pending order, SamplersFailed.
    """
    with self._lock:
      if order.order_id in self._pending:
        raise ValueError(f"order {order.order_id} is pending already")
      self._pending[order.order_id] = order
      self._waiting.append(order.order_id)
      self._look()
      self._check_budget()

  def get(self, timeout_s: float, order_id: int | None = None) -> Result:
    """The result of an order, or of the oldest.

    Raises SamplersFailed with every reason, TimeoutError if so long no result arrives, of whatever
    order, Preempted if it is not there and `stop` says so, LookupError if it was not ordered.
    """
    asked_at = self._clock.monotonic()
    while True:
      with self._lock:
        self._look()
        self._check_budget()
        wanted = next(iter(self._pending), None) if order_id is None else order_id
        if wanted is None or wanted not in self._pending:
          raise LookupError(f"no order {'' if wanted is None else f'{wanted} '}is pending")
        if wanted in self._results:
          del self._pending[wanted]
          return self._results.pop(wanted)
      if self._stop():
        raise Preempted
      if self._clock.monotonic() >= max(asked_at, self._arrived_at) + timeout_s:
        what = f"order {wanted}" if wanted >= 0 else f"evaluation order {wanted}"
        raise TimeoutError(
          f"no result arrived for {timeout_s:g} s (runtime.timeout_s), and {what} is waited for: "
          f"{self.health()}"
        )
      self._clock.sleep(_POLL_S)

  def snapshot(self, newest: bool, versions: Collection[int] = ()) -> Snapshot:
    """See `Sampler.snapshot`. Training orders are those with ids from 0."""
    with self._lock:
      self._look()
      finished = [result for order_id, result in self._results.items() if order_id >= 0]
      unfinished = [
        order for i, order in self._pending.items() if i >= 0 and i not in self._results
      ]
      needed = {version for order in unfinished for _, version in order.plan} | set(versions)
      needed |= {self._newest} if newest else set()
      published = sorted(version for version in needed if 0 <= version <= self._newest)
      return Snapshot(finished, {v: self._transport.weights(v) for v in published})

  def health(self) -> dict[str, Any]:
    """See `Sampler.health`."""
    with self._lock:
      now = self._clock.monotonic()
      workers = [
        {
          "alive": worker.link is not None and worker.link.alive,
          "pid": worker.link.pid if worker.link is not None else None,
          "orders": list(worker.orders),
          "silent_s": now - worker.heard_at,
        }
        for worker in self._workers
      ]
      return {"workers": workers, "pending": len(self._pending), "failures": len(self._failures)}

  def failures(self) -> list[dict[str, Any]]:
    """See `Sampler.failures`."""
    with self._lock:
      return [dict(failure) for failure in self._failures]

  def quarantine(self, worker: int, reason: str) -> None:
    """Takes back what `worker` has and what arrived from it and was not delivered."""
    with self._lock:
      suspect = self._workers[worker]
      arrived = [i for i, result in self._results.items() if result.worker == worker]
      for order_id in arrived:
        del self._results[order_id]
      suspect.orders += arrived
      self._fail(suspect, Fault("quarantined", reason))

  def close(self) -> None:
    """Ends the workers, then frees what they shared. Idempotent."""
    with self._lock:
      self._closed.set()
      for worker in self._workers:
        if worker.link is not None:
          worker.link.close()
          worker.link = None
      self._transport.close()

  @property
  def _spent(self) -> bool:
    return len(self._failures) > self._settings.max_failures

  def _check_budget(self) -> None:
    if self._spent:
      raise SamplersFailed(self._failures, self._settings.max_failures)

  def _look(self) -> None:
    """One look at everything; never waits."""
    with self._lock:
      for worker in self._workers:
        if self._spent or self._closed.is_set():
          return
        try:
          if worker.link is not None:
            self._listen(worker, worker.link)
          elif self._clock.monotonic() >= worker.start_at:
            worker.link = self._transport.start(worker.index)
            worker.heard_at = self._clock.monotonic()
        except Fault as fault:
          self._fail(worker, fault)
      self._hand_out()

  def _listen(self, worker: _Worker, link: Link) -> None:
    for _ in range(_MESSAGES_PER_LOOK):
      message = link.poll()
      if message is None:
        break
      worker.heard_at = self._clock.monotonic()
      if not isinstance(message, Heartbeat):
        self._admit(worker, message)
    silent_s = self._clock.monotonic() - worker.heard_at
    if silent_s > self._settings.hang_timeout_s:
      raise Fault("hung", f"it gave no sign of life for {silent_s:.3g} s")

  def _admit(self, worker: _Worker, result: Result) -> None:
    if result.order_id not in worker.orders:
      raise Fault(
        "malformed", f"it answered order {result.order_id}; it was working on {worker.orders}"
      )
    order = self._pending[result.order_id]
    check_result(result, order, self._newest, self._vocab_size)
    result.worker = worker.index
    self._arrived_at = self._clock.monotonic()
    self._results[order.order_id] = result
    worker.orders.remove(result.order_id)
    worker.failed_in_a_row = 0

  def _hand_out(self) -> None:
    while self._waiting and not self._spent:
      live = [(len(w.orders), w.index, w.link) for w in self._workers if w.link is not None]
      if not live:
        return
      _, index, link = min(live)
      worker, order_id = self._workers[index], self._waiting.pop(0)
      worker.orders.append(order_id)
      try:
        link.send(self._pending[order_id])
      except Fault as fault:
        self._fail(worker, fault)

  def _fail(self, worker: _Worker, fault: Fault) -> None:
    """Ends the worker, takes its orders back, and makes it due again after a pause."""
    now = self._clock.monotonic()
    if worker.link is not None:
      worker.link.kill()
    again = [order_id for order_id in self._pending if order_id in worker.orders]
    self._waiting = [i for i in self._pending if i in again or i in self._waiting]  # oldest first
    pause_s = self._settings.backoff_s * 2 ** min(worker.failed_in_a_row, 30)
    worker.link, worker.orders = None, []
    worker.start_at = now + min(pause_s, self._settings.max_backoff_s)
    worker.failed_in_a_row += 1
    self._failures.append(
      {
        "worker": worker.index,
        "kind": fault.kind,
        "reason": str(fault),
        "orders": again,
        "wall_time_s": now - self._started_at,
      }
    )
