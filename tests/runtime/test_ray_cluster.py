"""Samplers on a Ray cluster of two nodes, both on this machine; `make test-ray` installs ray."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest

from tests.runtime.example import SPEC, order, params, same_rollouts
from tests.test_end_to_end import REPOSITORY, command, debug_config, rows
from vespo_jax import launch
from vespo_jax.runtime import FailureSettings, RaySettings, start_sampler

ray = pytest.importorskip("ray", reason="needs requirements-ray.txt")
pytestmark = pytest.mark.slow

PER_SAMPLER = {"sampler": 1.0}
CPUS = 2  # of each node
STORE = 100 * 2**20  # bytes of each node's object store


@pytest.fixture
def cluster(monkeypatch):
  from ray.cluster_utils import Cluster

  monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
  node = {"num_cpus": CPUS, "object_store_memory": STORE, "resources": PER_SAMPLER}
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


def test_the_train_command_on_a_cluster_is_the_run_without_one(cluster, tmp_path):
  """Two samplers that each need a whole node, so one on each; the metrics are the same bytes."""
  data_dir = str(tmp_path / "data")
  done = subprocess.run(
    command(
      tmp_path / "ray",
      data_dir,
      "--config.runtime.transport=ray",
      f"--config.runtime.ray.address={cluster.address}",
      f"--config.runtime.ray.num_cpus={CPUS}.0",
      "--config.sampler.processes=2",
    ),
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  assert "held-out accuracy after:" in done.stdout
  result = json.loads((tmp_path / "ray" / "result.json").read_text())
  assert (result["stop_reason"], result["updates"]) == ("finished", 6)
  assert result["sampler_failures"] == []
  assert sorted(nodes_of_actors(cluster)) == sorted(
    node.node_id for node in cluster.list_all_nodes()
  )
  launch.train(debug_config(data_dir, **{"sampler.processes": 2}), tmp_path / "threads")
  assert rows(tmp_path / "ray") == rows(tmp_path / "threads")


def nodes_of_actors(cluster):
  """The node of every actor there was, from the cluster's own records."""
  from ray._private import state  # the public `list_actors` needs Ray's dashboard

  ray.init(address=cluster.address, log_to_driver=False)
  try:
    return [actor["Address"]["NodeID"] for actor in state.actors().values()]
  finally:
    ray.shutdown()
