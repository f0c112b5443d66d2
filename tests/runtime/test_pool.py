"""The pool over scripted workers and a clock that only moves when it is told to."""

import collections
import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.example import SPEC, answer, order, same_rollouts
from vespo_jax.runtime import FailureSettings, SamplerPool, SamplersFailed
from vespo_jax.runtime.links import Fault, Heartbeat

FAILURES = FailureSettings(max_failures=3, hang_timeout_s=10.0, backoff_s=1.0, max_backoff_s=4.0)


class Clock:
  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    self.now += max(seconds, 0.25)


def lie(change, kind="malformed"):
  def act(link):
    result = answer(link.orders[0])
    change(result)
    link.fleet.injected[kind] += 1
    return result

  return act


def die(link):
  link.fleet.injected["died"] += 1
  raise Fault("died", "it was killed by SIGKILL")


def hang(link):
  link.fleet.injected["hung"] += 1
  link.silent = True


def garble(link):
  link.fleet.injected["malformed"] += 1
  raise Fault("malformed", "a message that cannot be read")


def deaf(link):
  link.deaf = True


def finish(link, at=0):
  link.answered = answer(link.orders.pop(at))
  return link.answered


def repeat(link):
  if link.answered is None:
    return finish(link)
  link.fleet.injected["malformed"] += 1
  return link.answered


ACTIONS = {
  "finish": finish,
  "finish the newest": lambda link: finish(link, -1),
  "beat": lambda link: Heartbeat(1),
  "nothing": lambda link: None,
  "repeat": repeat,
  "die": die,
  "hang": hang,
  "garble": garble,
  "deaf": deaf,
  "wrong order": lie(lambda result: setattr(result, "order_id", result.order_id + 1000)),
  "wrong count": lie(lambda result: result.rollouts.pop()),
  "wrong id": lie(lambda result: result.rollouts[0].response_ids.fill(SPEC.vocab_size)),
  "nan": lie(lambda result: result.rollouts[1].plain_logprobs.fill(np.nan), "non_finite"),
  "stale": lie(lambda result: result.rollouts[2].weight_versions.fill(-1), "stale"),
  "future": lie(lambda result: result.rollouts[2].weight_versions.fill(9)),
}


class Link:
  """A worker that does what the fleet's script says, once per poll; a diligent one after that."""

  pid = 1

  def __init__(self, fleet):
    self.fleet, self.orders, self.received = fleet, [], []
    self.silent = self.deaf = self.killed = self.beat = False
    self.answered = None

  def send(self, order):
    assert not self.killed
    if self.deaf:
      self.fleet.injected["hung"] += 1
      raise Fault("hung", "it stopped reading")
    self.orders.append(order)
    self.received.append(order.order_id)

  def poll(self):
    assert not self.killed, "a worker that was given up is heard"
    if self.silent:
      return None
    if not self.orders:
      self.beat = not self.beat
      return Heartbeat(1) if self.beat else None
    return ACTIONS[self.fleet.script.popleft() if self.fleet.script else "finish"](self)

  @property
  def alive(self):
    return not self.killed

  def kill(self):
    self.killed = True

  close = kill


class Fleet:
  """A transport of such workers."""

  def __init__(self, *script):
    self.script = collections.deque(script)
    self.injected = collections.Counter()
    self.links, self.started_at, self.closed = [], [], False
    self.clock = Clock()
    self.startable = True

  def start(self, worker):
    self.started_at.append(self.clock.now)
    if not self.startable:
      raise Fault("died", "its process cannot be started")
    self.links.append(Link(self))
    return self.links[-1]

  def publish(self, version, params):
    self.version = version

  def close(self):
    self.closed = True


def make_pool(*script, workers=1, failures=FAILURES):
  fleet = Fleet(*script)
  pool = SamplerPool(fleet, workers, SPEC.vocab_size, failures, fleet.clock)
  pool.publish(0, {})
  return pool, fleet


def test_the_weights_in_a_snapshot_are_those_somebody_may_still_need():
  pool, fleet = make_pool("nothing", "nothing", "nothing")
  fleet.weights = lambda version: {"version": version}
  for version in (1, 2, 3):
    pool.publish(version, {})
  pool.put(dataclasses.replace(order(0), plan=((0, 1),)))
  assert pool.snapshot(newest=False).weights == {1: {"version": 1}}
  assert set(pool.snapshot(newest=True).weights) == {1, 3}
  assert set(pool.snapshot(newest=False, versions={0, 2, 4}).weights) == {0, 1, 2}


@settings(max_examples=150, deadline=None)
@given(
  script=st.lists(st.sampled_from(sorted(ACTIONS)), max_size=40),
  workers=st.integers(1, 3),
  ahead=st.integers(1, 4),
  max_failures=st.sampled_from([0, 2, 1000]),
  quarantines=st.sets(st.integers(0, 9), max_size=2),
)
def test_every_order_is_delivered_once_and_in_order_or_every_reason_is_told(
  script, workers, ahead, max_failures, quarantines
):
  budget = FailureSettings(max_failures, hang_timeout_s=10.0, backoff_s=0.5, max_backoff_s=4.0)
  pool, fleet = make_pool(*script, workers=workers, failures=budget)
  delivered, ordered = [], 0
  try:
    while len(delivered) < 10:
      while ordered < min(len(delivered) + ahead, 10):
        pool.put(order(ordered))
        ordered += 1
      result = pool.get(10_000.0)
      same_rollouts(result.rollouts, answer(order(len(delivered))).rollouts)
      if len(delivered) in quarantines:
        pool.quarantine(result.worker, "its log-probs cannot be true")
        fleet.injected["quarantined"] += 1
      delivered.append(result.order_id)
  except SamplersFailed as error:
    failures = pool.failures()
    assert len(failures) == max_failures + 1
    assert all(failure["reason"] in str(error) for failure in failures)
  else:
    assert delivered == list(range(10))
    assert pool.health()["pending"] == 0
    # whatever went wrong was counted under its name; only a hang may not be noticed by the end
    kinds = collections.Counter(failure["kind"] for failure in pool.failures())
    assert fleet.injected - kinds <= collections.Counter(hung=workers)
    assert not kinds - fleet.injected
  pool.close()
  assert fleet.closed and all(link.killed for link in fleet.links)


def test_the_least_loaded_live_worker_gets_the_order():
  pool, fleet = make_pool(*["nothing"] * 100, workers=3)
  for order_id in range(4):
    pool.put(order(order_id))
  assert [link.received for link in fleet.links] == [[0, 3], [1], [2]]
  fleet.script = collections.deque(["nothing", "die", "nothing"])  # the second worker
  pool.put(order(4))
  assert [link.received for link in fleet.links] == [[0, 3, 4], [1], [2, 1]]
  assert pool.failures() == [
    {
      "worker": 1,
      "kind": "died",
      "reason": "it was killed by SIGKILL",
      "orders": [1],
      "wall_time_s": 0.0,
    }
  ]
  assert [worker["alive"] for worker in pool.health()["workers"]] == [True, False, True]
  assert [pool.get(60.0).order_id for _ in range(5)] == [0, 1, 2, 3, 4]


def test_the_only_worker_gets_its_orders_again_oldest_first():
  pool, fleet = make_pool("nothing", "nothing", "finish the newest", "die")
  for order_id in range(3):
    pool.put(order(order_id))
  assert [pool.get(60.0).order_id for _ in range(3)] == [0, 1, 2]
  assert pool.failures()[0]["orders"] == [0, 1]
  assert [link.received for link in fleet.links] == [[0, 1, 2], [0, 1]]


def test_restarts_back_off_until_a_result():
  failures = FailureSettings(10, hang_timeout_s=10.0, backoff_s=1.0, max_backoff_s=4.0)
  pool, fleet = make_pool(*["die"] * 5, "finish", "die", failures=failures)
  pool.put(order(0))
  pool.put(order(1))
  pool.get(1000.0)
  pool.get(1000.0)
  waits = np.diff(fleet.started_at)
  np.testing.assert_allclose(waits, [1, 2, 4, 4, 4, 1], atol=0.25)


def test_a_worker_that_cannot_be_started_is_a_failure():
  pool, fleet = make_pool("die")
  fleet.startable = False
  pool.put(order(0))
  with pytest.raises(SamplersFailed) as caught:
    pool.get(1000.0)
  assert str(caught.value).count("its process cannot be started") == FAILURES.max_failures
  with pytest.raises(SamplersFailed):
    pool.put(order(1))


def test_silence_is_a_hang_and_a_heartbeat_is_not():
  pool, fleet = make_pool(*["beat", "nothing"] * 300)
  pool.put(order(0))
  with pytest.raises(TimeoutError, match="no result arrived for 60 s.*, and order 0.*'silent_s'"):
    pool.get(60.0)
  assert not pool.failures()
  fleet.script = collections.deque(["hang"])
  assert pool.get(60.0).order_id == 0
  (failure,) = pool.failures()
  assert failure["kind"] == "hung" and "no sign of life for 10" in failure["reason"]


def test_a_result_of_any_order_renews_the_limit():
  """An evaluation waits behind the training orders that were given before it."""
  forty_s = ["beat", "nothing"] * 160
  pool, fleet = make_pool(*(forty_s + ["finish"]) * 3)
  for order_id in (0, 1, -1):
    pool.put(order(order_id))
  assert pool.get(60.0, -1).order_id == -1
  pool.put(order(-2))
  fleet.script = collections.deque(forty_s * 2)
  with pytest.raises(TimeoutError, match="for 60 s.*and evaluation order -2 is waited for"):
    pool.get(60.0, -2)


def test_a_learner_that_was_away_for_long_listens_before_it_judges():
  pool, fleet = make_pool("nothing", "nothing", "finish")
  pool.put(order(0))
  fleet.clock.now += 1000.0
  fleet.script = collections.deque(["finish"])
  assert pool.get(1.0).order_id == 0
  assert not pool.failures()


def test_a_worker_that_never_stops_talking_holds_up_nobody():
  pool, fleet = make_pool(workers=2)
  fleet.script = collections.deque(["beat"] * 10_000)
  pool.put(order(0))
  pool.put(order(1))
  looks = len(fleet.script)
  pool._look()
  assert looks - len(fleet.script) == 2 * 64


def test_quarantine_takes_back_what_was_not_delivered():
  pool, fleet = make_pool("nothing", "nothing", "nothing", "finish", "finish", "finish")
  for order_id in range(3):
    pool.put(order(order_id))
  result = pool.get(60.0)
  assert (result.order_id, result.worker) == (0, 0)
  pool.quarantine(0, "its log-probs cannot be true")
  (failure,) = pool.failures()
  assert failure["kind"] == "quarantined" and failure["orders"] == [1, 2]
  assert fleet.links[0].killed
  assert [pool.get(60.0).order_id for _ in range(2)] == [1, 2]
  assert len(fleet.links) == 2


def test_what_makes_no_sense_is_refused():
  pool, _ = make_pool("nothing")
  with pytest.raises(LookupError, match="no order"):
    pool.get(1.0)
  pool.put(order(0))
  with pytest.raises(ValueError, match="order 0 is pending"):
    pool.put(order(0))
  pool.publish(3, {})
  pool.publish(3, {})
  with pytest.raises(ValueError, match="version 2 is older"):
    pool.publish(2, {})
  with pytest.raises(ValueError, match="hang_timeout_s=0"):
    FailureSettings(hang_timeout_s=0)


def test_a_death_is_noticed_while_the_learner_is_busy():
  fleet = Fleet("nothing")
  pool = SamplerPool(fleet, 1, SPEC.vocab_size, FAILURES)  # the real clock
  pool.put(order(0))
  fleet.script.append("die")
  pool.watch()
  deadline = time.monotonic() + 10
  while not pool.failures() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert [failure["kind"] for failure in pool.failures()] == ["died"]
  pool.close()
