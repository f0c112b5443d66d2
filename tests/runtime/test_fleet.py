"""The samplers of several hosts as one: threads stand for hosts, and answers are made up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.runtime.example import answer, order, params, same_rollouts
from vespo_jax.hosts import Hosts
from vespo_jax.runtime import Fleet, Preempted, Snapshot

TIMEOUT_S = 20.0


class ThreadHosts(Hosts):
  """Hosts in one process: `merge` is a meeting of their threads."""

  def __init__(self, index, slots, barrier):
    super().__init__()
    self.index, self.count, self._slots, self._barrier = index, len(slots), slots, barrier

  def merge(self, mine):
    self._slots[self.index] = mine
    self._barrier.wait(TIMEOUT_S)
    merged = list(self._slots)
    self._barrier.wait(TIMEOUT_S)
    return None if None in merged else merged


class Local:
  """One host's samplers: an answer for every order, but for those that are not `ready`."""

  def __init__(self):
    self.orders, self.given, self.published, self.late, self.quarantined = {}, [], {}, set(), []

  def publish(self, version, params):
    self.published[version] = params

  def put(self, order):
    self.orders[order.order_id] = order
    self.given.append(order.order_id)

  def get(self, timeout_s, order_id):
    if order_id in self.late:
      raise Preempted if timeout_s else TimeoutError
    return answer(self.orders.pop(order_id))

  def snapshot(self, newest, versions=()):
    done = [answer(order) for i, order in self.orders.items() if i not in self.late]
    needed = {v for i in self.late & set(self.orders) for _, v in self.orders[i].plan}
    return Snapshot(done, {v: self.published[v] for v in sorted({*needed, *versions})})

  def failures(self):
    return [{"worker": 0, "kind": "died", "reason": "no", "orders": [], "wall_time_s": 1.0}]

  def health(self):
    return {"workers": [], "pending": len(self.orders)}

  def quarantine(self, worker, reason):
    self.quarantined.append(worker)


def on_hosts(count, workers, act):
  """What `act(fleet, local)` returns on each of `count` hosts; an exception is returned too."""
  slots, barrier = [None] * count, threading.Barrier(count)

  def one(index):
    local = Local()
    fleet = Fleet(local, ThreadHosts(index, slots, barrier), workers)
    try:
      return act(fleet, local)
    except Preempted as error:
      return error

  with ThreadPoolExecutor(count) as threads:
    return list(threads.map(one, range(count)))


@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 2), (3, 4)])
def test_an_order_is_sampled_by_one_host_and_all_hosts_have_its_result(count, workers):
  ids = [0, 5, 3, 9, 12, 7, 2, 1]

  def act(fleet, local):
    results = []
    for position, order_id in enumerate(ids):
      fleet.put(order(order_id))
      if position >= 2:
        results.append(fleet.get(TIMEOUT_S, ids[position - 2]))
    assert fleet.health()["pending"] == 2
    results += [fleet.get(TIMEOUT_S), fleet.get(TIMEOUT_S)]
    with pytest.raises(LookupError, match="no order is pending"):
      fleet.get(TIMEOUT_S)
    return results, local.given, fleet.failures()

  outcomes = on_hosts(count, workers, act)
  assert sorted(i for _, given, _ in outcomes for i in given) == sorted(ids)
  assert all(given for _, given, _ in outcomes)
  first_workers = [workers * host // count for host in range(count)]
  owners = {i: first_workers[h] for h, (_, given, _) in enumerate(outcomes) for i in given}
  for results, _, failures in outcomes:
    assert [result.order_id for result in results] == ids
    for result in results:
      same_rollouts(result.rollouts, answer(order(result.order_id)).rollouts)
      assert result.worker == owners[result.order_id]
    assert sorted(failure["worker"] for failure in failures) == first_workers


def test_all_hosts_stop_where_one_does_and_what_is_finished_anywhere_is_saved_by_all():
  """Two hosts: 0 and 2 are sampled by the first, 1 and 3 by the second, which is stopped at 1."""

  def act(fleet, local):
    for version in (4, 6):
      fleet.publish(version, {"w": float(version) * params()["final_norm"]})
    for order_id in range(4):
      fleet.put(order(order_id, plan=((0, 4 if order_id == 3 else 6),)))
    local.late = {1, 2, 3}
    results = [fleet.get(TIMEOUT_S, 0)]
    local.late.remove(2)  # it is taken, but not told any more
    with pytest.raises(Preempted):
      fleet.get(TIMEOUT_S, 1)
    return results, fleet.snapshot(newest=False)

  for results, snapshot in on_hosts(2, 2, act):
    assert [result.order_id for result in results] == [0]
    assert [result.order_id for result in snapshot.results] == [2]
    assert list(snapshot.weights) == [4, 6]


def test_what_a_quarantined_sampler_sent_is_sampled_again_by_its_host():
  def act(fleet, local):
    for order_id in range(4):
      fleet.put(order(order_id))
    fleet.get(TIMEOUT_S, 0)  # all the others came with it
    fleet.quarantine(1, "it lied")
    return [fleet.get(TIMEOUT_S, i).order_id for i in (1, 2, 3)], local.given, local.quarantined

  (ids, first, _), (same, second, quarantined) = on_hosts(2, 2, act)
  assert ids == same == [1, 2, 3]
  assert first == [0, 2] and second == [1, 3, 1, 3] and quarantined == [0]
