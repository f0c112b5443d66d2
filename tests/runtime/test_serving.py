"""The life of a worker: what it says, when, and how it ends."""

import queue
import threading
import time

import pytest

from tests.runtime.example import SPEC, answer, order
from vespo_jax.runtime import messages, serving
from vespo_jax.runtime.links import Fault, Heartbeat
from vespo_jax.runtime.serving import Blueprint, serve, work
from vespo_jax.runtime.threads import KeptWeights
from vespo_jax.sampler import Result, WorkerSettings


class Ticking:
  """A worker that needs so many ticks of so many seconds for each order."""

  def __init__(self, ticks, tick):
    self.orders, self.ticks, self.tick_of = [], ticks, tick
    self.left = self.looked = 0

  def accept(self, order):
    self.orders.append(order)

  @property
  def idle(self):
    self.looked += 1
    return not self.orders

  def tick(self):
    self.tick_of()
    self.left = (self.left or self.ticks) - 1
    return [] if self.left else [answer(self.orders.pop(0))]


def run(worker):
  orders, said = queue.Queue(), queue.Queue()
  thread = threading.Thread(target=work, args=(worker, orders, said.put), daemon=True)
  thread.start()
  return thread, orders, said


def hear(said):
  return messages.decode_reply(said.get(timeout=10))


def test_a_long_generation_is_heard_of_and_a_stuck_tick_is_not(monkeypatch):
  monkeypatch.setattr(serving, "HEARTBEAT_S", 0.05)
  free = threading.Event()
  thread, orders, said = run(Ticking(40, lambda: time.sleep(0.01)))
  orders.put(messages.encode(order(5)))
  heard = []
  while not heard or not isinstance(heard[-1], Result):
    heard.append(hear(said))
  assert heard[-1].order_id == 5 and 3 <= len(heard) - 1 <= 20  # 0.4 s of ticks
  orders.put(None)
  thread.join(10)
  assert not thread.is_alive()

  thread, orders, said = run(Ticking(1, lambda: free.wait(10)))
  orders.put(messages.encode(order()))
  time.sleep(0.3)
  before = said.qsize()
  time.sleep(0.3)
  assert said.qsize() == before  # six heartbeats were due
  free.set()
  orders.put(None)
  thread.join(10)


def test_an_idle_worker_beats_and_takes_every_order_before_it_goes_on(monkeypatch):
  monkeypatch.setattr(serving, "HEARTBEAT_S", 0.05)
  worker = Ticking(1, lambda: seen.append(len(worker.orders)))
  seen = []
  orders, said = queue.Queue(), queue.Queue()
  for order_id in range(3):
    orders.put(messages.encode(order(order_id)))
  thread = threading.Thread(target=work, args=(worker, orders, said.put), daemon=True)
  thread.start()
  heard = [hear(said) for _ in range(8)]
  assert seen == [3, 2, 1]
  assert [m.order_id for m in heard if isinstance(m, Result)] == [0, 1, 2]
  assert sum(isinstance(m, Heartbeat) for m in heard) == 5
  assert worker.looked < 50  # it slept in between
  orders.put(None)
  thread.join(10)


def test_the_last_words_are_the_traceback():
  orders, said = queue.Queue(), queue.Queue()
  orders.put(b"no order")
  assert not serve(Blueprint(SPEC, WorkerSettings()), KeptWeights(2), orders, said.put)
  hear(said)  # a heartbeat
  with pytest.raises(Fault, match="(?s)Traceback.*decode_order"):
    hear(said)


def test_a_blueprint_survives_the_wire():
  blueprint = Blueprint(SPEC, WorkerSettings("bfloat16"), '{"model": {}}')
  assert Blueprint.from_json(blueprint.to_json()) == blueprint
