"""Samplers on a Ray cluster of two nodes, both on this machine; `make test-ray` installs ray."""

import contextlib
import os
import signal
import time

import pytest

from tests.runtime.example import SPEC, order, params, same_rollouts
from vespo_jax.runtime import FailureSettings, RaySettings, start_sampler

ray = pytest.importorskip("ray", reason="needs requirements-ray.txt")
pytestmark = pytest.mark.slow

PER_SAMPLER = {"sampler": 1.0}
STORE = 100 * 2**20  # bytes of each node's object store


@pytest.fixture
def cluster(monkeypatch):
  from ray.cluster_utils import Cluster

  monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
  node = {"num_cpus": 2, "object_store_memory": STORE, "resources": PER_SAMPLER}
  cluster = Cluster(initialize_head=True, head_node_args=node)
  cluster.add_node(**node)
  yield cluster
  cluster.shutdown()


@contextlib.contextmanager
def started(transport, **options):
  failures = FailureSettings(max_failures=3, hang_timeout_s=120.0, backoff_s=0.2)
  sampler = start_sampler(transport, SPEC, workers=2, failures=failures, **options)
  try:
    yield sampler
  finally:
    sampler.close()


def sample(sampler, orders):
  for each in orders:
    sampler.put(each)
  return [sampler.get(150) for _ in orders]


def test_actors_sample_the_same_and_their_death_or_their_nodes_loses_nothing(cluster):
  orders = [order(0), order(1), order(2, 0, plan=((0, 0),)), order(3, 1, plan=((0, 1),))]
  with started("threads") as sampler:
    sampler.publish(0, params(0))
    expected = sample(sampler, orders[:2])
    sampler.publish(1, params(1))
    expected += sample(sampler, orders[2:])

  settings = RaySettings(cluster.address, num_cpus=0.5, resources=PER_SAMPLER)
  with started("ray", env={"VESPO_TEST": "1"}, ray=settings) as sampler:
    sampler.publish(0, params(0))
    results = sample(sampler, orders[:2])
    assert {result.worker for result in results} == {0, 1}
    assert ray.available_resources().get("sampler", 0) == 0  # one on each node
    sampler.publish(1, params(1))

    pids = [worker["pid"] for worker in sampler.health()["workers"]]
    with open(f"/proc/{pids[0]}/environ") as file:
      assert "VESPO_TEST=1" in file.read().split("\0")
    for pid in pids:
      os.kill(pid, signal.SIGKILL)
    results += sample(sampler, orders[2:])  # version 0 is kept for those that start anew
    for one, other in zip(results, expected, strict=True):
      same_rollouts(one.rollouts, other.rollouts)
    assert [failure["kind"] for failure in sampler.failures()] == ["died", "died"]

    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    deadline = time.monotonic() + 120
    while len(sampler.failures()) < 3 and time.monotonic() < deadline:
      time.sleep(0.1)  # the pool looks after its workers by itself
    assert [failure["kind"] for failure in sampler.failures()] == ["died"] * 3
    again = sample(sampler, [orders[3]])
    same_rollouts(again[0].rollouts, expected[3].rollouts)
