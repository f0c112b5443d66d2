"""When a computation ended is not when it was asked for."""

import threading

import jax
import jax.numpy as jnp

from vespo_jax.learner import finish


class Slow:
  """Ready once it is told to be."""

  def __init__(self):
    self.ready = threading.Event()

  def block_until_ready(self):
    assert self.ready.wait(60)


def test_the_end_is_noted_while_nobody_asks(monkeypatch):
  now = [1.0]
  monkeypatch.setattr(finish.time, "perf_counter", lambda: now[0])
  slow = Slow()
  watched = finish.Finish({"loss": slow, "norm": jnp.ones(3)})
  now[0] = 5.0
  slow.ready.set()
  watched._thread.join(60)
  now[0] = 9.0
  assert watched.at_s() == watched.at_s() == 5.0


def test_an_error_is_left_to_whoever_fetches(monkeypatch):
  failed = []
  monkeypatch.setattr(threading, "excepthook", failed.append)
  slow = Slow()

  def fail():
    raise jax.errors.JaxRuntimeError("out of memory")

  slow.block_until_ready = fail
  assert finish.Finish([slow]).at_s() > 0 and not failed
