"""The samplers of all hosts as one sampler, held by every host alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax import serialization

from vespo_jax.hosts import Hosts
from vespo_jax.runtime import messages
from vespo_jax.runtime.links import Preempted, Sampler, Snapshot
from vespo_jax.sampler import Order, Result
from vespo_jax.tasks import share
from vespo_jax.types import Params


class Fleet:
  """The `Sampler` of a run on several hosts, each with samplers of its own.

  Every host gives the same orders and takes the same results, in the same order. An order goes to
  the samplers of one host, in turn; what they make goes to all. Which host samples what changes
  nothing: sampling keys are of sequences.

  Args:
    mine: this host's samplers.
    hosts: of the run.
    workers: of all hosts; they are numbered through, host after host.
  """

  def __init__(self, mine: Sampler, hosts: Hosts, workers: int):
    self._mine, self._hosts = mine, hosts
    shares = [share(workers, host, hosts.count) for host in range(hosts.count)]
    self._host_of = [host for host, share in enumerate(shares) for _ in share]
    self._workers = shares[hosts.index]
    self._given = 0
    self._pending: dict[int, tuple[Order, int]] = {}  # with the host that samples it
    self._held: dict[int, Result] = {}  # of those, what this host alone has
    self._arrived: dict[int, Result] = {}  # of those, what every host has
    self._failures: list[dict[str, Any]] = []
    self._told = 0  # of this host's failures

  def publish(self, version: int, params: Params) -> None:
    """See `Sampler.publish`; every host makes the call."""
    self._mine.publish(version, params)

  def put(self, order: Order) -> None:
    """See `Sampler.put`."""
    if order.order_id in self._pending:
      raise ValueError(f"order {order.order_id} is pending already")
    host = self._host_of[self._given % len(self._host_of)]
    self._given += 1
    self._pending[order.order_id] = order, host
    if host == self._hosts.index:
      self._mine.put(order)

  def get(self, timeout_s: float, order_id: int | None = None) -> Result:
    """See `Sampler.get`. Raises Preempted on every host, or on none."""
    wanted = next(iter(self._pending), None) if order_id is None else order_id
    if wanted is None or wanted not in self._pending:
      raise LookupError(f"no order {'' if wanted is None else f'{wanted} '}is pending")
    if wanted not in self._arrived:
      self._exchange(timeout_s, wanted)
    del self._pending[wanted]
    return self._arrived.pop(wanted)

  def snapshot(self, newest: bool, versions: Collection[int] = ()) -> Snapshot:
    """See `Sampler.snapshot`: what the samplers of all hosts hold, on every host."""
    mine = self._mine.snapshot(newest, versions)
    kept = [*self._held.values(), *self._numbered(mine.results)]
    message = {"needed": json.dumps(sorted(mine.weights)).encode(), **_pack(kept)}
    merged = self._hosts.merge(serialization.msgpack_serialize(message))
    assert merged is not None, "nobody stops while it saves"
    needed: set[int] = set()
    results = list(self._arrived.values())
    for data in merged:
      said: Any = serialization.msgpack_restore(data)
      needed.update(json.loads(said["needed"]))
      results += _unpack(said)
    results = sorted((r for r in results if r.order_id >= 0), key=lambda result: result.order_id)
    others = self._mine.snapshot(False, needed - set(mine.weights)).weights
    return Snapshot(results, dict(sorted({**mine.weights, **others}.items())))

  def health(self) -> dict[str, Any]:
    """See `Sampler.health`: the workers of this host, the orders of all."""
    return {**self._mine.health(), "pending": len(self._pending)}

  def failures(self) -> list[dict[str, Any]]:
    """See `Sampler.failures`: those of all hosts that were told with some result."""
    return [dict(failure) for failure in self._failures]

  def quarantine(self, worker: int, reason: str) -> None:
    """See `Sampler.quarantine`."""
    if worker in self._workers:
      self._mine.quarantine(worker - self._workers.start, reason)
    for having in (self._held, self._arrived):
      for order_id in [i for i, result in having.items() if result.worker == worker]:
        del having[order_id]
        if worker in self._workers:
          self._mine.put(self._pending[order_id][0])

  def close(self) -> None:
    """Ends the workers of this host. Idempotent."""
    self._mine.close()

  def _exchange(self, timeout_s: float, wanted: int) -> None:
    """Waits for one order on the host that has it, then shares all that is finished anywhere."""
    mine = [i for i, (_, host) in self._pending.items() if host == self._hosts.index]
    unheld = [i for i in mine if i not in self._held and i not in self._arrived]
    failures = self._mine.failures()
    message = None
    try:
      for order_id in sorted(unheld, key=lambda order_id: order_id != wanted):
        self._take(order_id, timeout_s if order_id == wanted else 0.0)
      message = self._pack_held(failures[self._told :])
    except Preempted:
      pass  # every host hears of it
    merged = self._hosts.merge(message)
    if merged is None:
      raise Preempted
    self._held, self._told = {}, len(failures)
    for data in merged:
      said: Any = serialization.msgpack_restore(data)
      self._failures += json.loads(said["failures"])
      self._arrived |= {result.order_id: result for result in _unpack(said)}

  def _take(self, order_id: int, timeout_s: float) -> None:
    """Holds the result of an order of this host; without a time limit only if it is there."""
    try:
      result = self._mine.get(timeout_s, order_id)
    except (TimeoutError, Preempted):
      if timeout_s:
        raise
      return
    self._held |= {r.order_id: r for r in self._numbered([result])}

  def _pack_held(self, failures: Sequence[Mapping[str, Any]]) -> bytes:
    told = [{**f, "worker": f["worker"] + self._workers.start} for f in failures]
    message = {"failures": json.dumps(told).encode(), **_pack(list(self._held.values()))}
    return serialization.msgpack_serialize(message)

  def _numbered(self, results: Sequence[Result]) -> list[Result]:
    """Results of this host, with their workers numbered as all hosts do."""
    first = self._workers.start
    return [dataclasses.replace(result, worker=result.worker + first) for result in results]


def _pack(results: Sequence[Result]) -> dict[str, Any]:
  return {
    "results": [messages.encode(result) for result in results],
    "workers": np.array([result.worker for result in results], np.int64),
  }


def _unpack(message: dict[str, Any]) -> list[Result]:
  results = [messages.decode_result(data) for data in message["results"]]
  for result, worker in zip(results, message["workers"].tolist(), strict=True):
    result.worker = worker
  return results
