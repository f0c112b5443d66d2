"""Real workers: the same rollouts from every transport, and what happens when they are killed."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import tokenizers

from tests.marks import slow_but
from tests.runtime.example import SPEC, order, params, same_rollouts
from vespo_jax import processes
from vespo_jax.runtime import (
  FailureSettings,
  Place,
  PublishedPieces,
  SamplerPool,
  SamplersFailed,
  WorkerSettings,
  messages,
  start_sampler,
)
from vespo_jax.runtime import local as local_transport
from vespo_jax.runtime.local import LocalTransport
from vespo_jax.runtime.serving import Blueprint
from vespo_jax.sampler import Settings, placement
from vespo_jax.weights.wire import Wire


class Clock:
  """The real one, until it jumps."""

  ahead = 0.0

  def monotonic(self):
    return time.monotonic() + self.ahead

  def sleep(self, seconds):
    time.sleep(seconds)


@pytest.fixture(scope="module")
def local():
  """A pool of one process, its transport's clock, and no pause before a restart; the tokenizer in
  the blueprint is longer than an argument of a process may be, 128 KiB on Linux."""
  clock = Clock()
  vocabulary = {f"token {i}": i for i in range(8000)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "token 0")).to_str()
  assert len(tokenizer) > 2**17
  transport = LocalTransport(Blueprint(SPEC, WorkerSettings(), tokenizer), slots=2)
  failures = FailureSettings(max_failures=100, backoff_s=0.0)
  pool = SamplerPool(transport, 1, SPEC.vocab_size, failures, clock)
  pool.publish(0, params())
  yield pool, clock
  pool.close()


@pytest.fixture(scope="module")
def expected():
  """What an undisturbed thread answers to orders 0 and 1."""
  sampler = start_sampler("threads", SPEC)
  sampler.publish(0, params())
  sampler.put(order(0))
  sampler.put(order(1))
  results = sampler.get(120), sampler.get(120)
  sampler.close()
  return results


def only_pid(pool):
  (worker,) = pool.health()["workers"]
  return worker["pid"]


def test_a_process_equals_a_thread(local, expected):
  pool, _ = local
  pool.put(order(0))
  pool.put(order(1))
  first = pool.get(120)
  os.kill(only_pid(pool), signal.SIGINT)  # Ctrl-C reaches both; it is the parent's to handle
  for process, thread in zip((first, pool.get(120)), expected, strict=True):
    same_rollouts(process.rollouts, thread.rollouts)
    assert process.sample_s > 0
  assert not pool.failures()


@pytest.mark.parametrize("transport", slow_but(["local", "threads"], "local"))
def test_weights_in_pieces_sample_the_same(transport, expected, tmp_path):
  place = Place(str(tmp_path / "weights"), Wire())
  pieces = PublishedPieces(place, SPEC, placement.param_shardings(None, SPEC))
  sampler = start_sampler(transport, SPEC, pieces=pieces)
  sampler.publish(0, params())
  for number, result in enumerate(expected):
    sampler.put(order(number))
    same_rollouts(sampler.get(120).rollouts, result.rollouts)
  jax.tree.map(np.testing.assert_array_equal, sampler.snapshot(True).weights[0], params())
  sampler.close()
  assert not (tmp_path / "weights").exists()


def test_each_process_sees_its_own_devices(monkeypatch):
  environments = []
  monkeypatch.setattr(local_transport, "Child", lambda *_, env, **__: environments.append(env))
  blueprint = Blueprint(SPEC, WorkerSettings(tensor=2))
  transport = LocalTransport(blueprint, 2, env={"A": "1"}, devices=["4", "5", "6", "GPU-7"])
  for worker in (0, 1, 1):
    transport.start(worker)
  transport.close()
  seen = [env["CUDA_VISIBLE_DEVICES"] for env in environments]
  assert seen == ["4,5", "6,GPU-7", "6,GPU-7"] and environments[0]["A"] == "1"


def test_a_killed_process_is_noticed_restarted_and_given_the_same_order(local, expected):
  pool, _ = local
  before, killed = len(pool.failures()), only_pid(pool)
  os.kill(killed, signal.SIGSTOP)  # so that the order is not done before the kill
  pool.put(order(0))
  os.kill(killed, signal.SIGKILL)
  started = time.monotonic()
  while len(pool.failures()) == before and time.monotonic() < started + 5:
    with pytest.raises(TimeoutError):
      pool.get(0.01)
  failure = pool.failures()[-1]
  assert failure["kind"] == "died" and "killed by SIGKILL" in failure["reason"]
  assert failure["orders"] == [0]
  same_rollouts(pool.get(120).rollouts, expected[0].rollouts)
  assert only_pid(pool) != killed


def test_a_stopped_process_is_a_hang(local, expected):
  pool, clock = local
  stopped = only_pid(pool)
  os.kill(stopped, signal.SIGSTOP)
  pool.put(order(1))
  with pytest.raises(TimeoutError):
    pool.get(0.1)
  clock.ahead += 1000.0
  same_rollouts(pool.get(120).rollouts, expected[1].rollouts)
  assert pool.failures()[-1]["kind"] == "hung"
  assert not running(stopped)


def test_a_failing_sampler_says_why_every_time():
  sampler = start_sampler("threads", SPEC, failures=FailureSettings(2, backoff_s=0.01))
  sampler.publish(0, params())
  sampler.put(order(prompts=[[], [1]]))
  with pytest.raises(SamplersFailed) as caught:
    sampler.get(120)
  assert str(caught.value).count("ValueError: every call needs at least one prompt") == 3
  sampler.close()


def test_published_weights_may_be_donated():
  sampler = start_sampler("threads", SPEC)
  weights = params()
  sampler.publish(0, weights)
  jax.tree.map(lambda leaf: leaf.delete(), weights)
  sampler.put(order())
  assert len(sampler.get(60).rollouts) == 6
  sampler.close()


def test_an_unknown_transport_is_refused():
  with pytest.raises(ValueError, match="'pigeon'; known: local, threads, ray"):
    start_sampler("pigeon", SPEC)


def stalled_child(tmp_path, monkeypatch, body):
  (tmp_path / "stalled.py").write_text(body)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.setattr(processes, "STALL_TIMEOUT_S", 1.0)
  return processes.Child("stalled", name="deaf")


def test_a_child_that_does_not_read_is_an_error(tmp_path, monkeypatch):
  child = stalled_child(tmp_path, monkeypatch, "import time\ntime.sleep(10)\n")
  with pytest.raises(processes.ChildStalled, match="deaf process .* stopped reading"):
    child.send(bytes(10_000_000))  # more than the socket holds
  child.close(grace_s=0.1)
  assert not child.alive


def test_a_child_that_stops_in_the_middle_of_a_message_is_an_error(tmp_path, monkeypatch):
  body = "import os, sys, time\nos.write(int(sys.argv[1]), b'\\0\\0\\1\\0half')\ntime.sleep(10)\n"
  child = stalled_child(tmp_path, monkeypatch, body)
  with pytest.raises(processes.ChildStalled, match="deaf process .* stopped writing"):
    child.receive(10)
  child.kill()
  assert not child.alive


def test_a_message_that_is_too_long_is_not_taken_into_memory(tmp_path, monkeypatch):
  body = (
    "import os, sys, time\nos.write(int(sys.argv[1]), b'\\x7f\\xff\\xff\\xff')\ntime.sleep(10)\n"
  )
  child = stalled_child(tmp_path, monkeypatch, body)
  with pytest.raises(processes.ChildStalled, match="deaf process .* bad message length"):
    child.receive(10)
  child.kill()


def test_samplers_die_with_their_parent():
  parent = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import time\n"
      "from vespo_jax import models\n"
      "from vespo_jax.runtime import start_sampler\n"
      f"sampler = start_sampler('local', models.{SPEC!r}, workers=2)\n"
      "print(*[worker['pid'] for worker in sampler.health()['workers']], flush=True)\n"
      "time.sleep(600)",
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  pids = [int(pid) for pid in parent.stdout.readline().split()]
  assert len(pids) == 2 and all(running(pid) for pid in pids)
  parent.kill()
  parent.wait()
  deadline = time.monotonic() + 30  # while they are importing, nobody is watching yet
  while time.monotonic() < deadline and any(running(pid) for pid in pids):
    time.sleep(0.05)
  assert not any(running(pid) for pid in pids)


def running(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] != "Z"
  except FileNotFoundError:
    return False


AHEAD, EVERY = 4, 5  # orders a learner keeps out; orders per weight version


def learner(sampler, enough):
  """Orders, publishes and collects until `enough(orders)`; yields the bytes of each result."""
  ordered = delivered = 0
  settings = Settings(max_new_tokens=48, samples_per_prompt=4, stop_ids=(2,))
  while True:
    while ordered < delivered + AHEAD and not enough(ordered):
      version = ordered // EVERY
      if ordered % EVERY == 0:
        sampler.publish(version, params(version))
      sampler.put(order(ordered, version, settings=settings, plan=((0, version),)))
      ordered += 1
    if delivered == ordered:
      return
    result = sampler.get(120)
    assert result.order_id == delivered
    delivered += 1
    yield messages.encode(
      dataclasses.replace(result, sample_s=0.0, wait_s=0.0, weights_s=0.0, worker=0)
    )


def kill_at_random(sampler, kills, delivered, done, most_s):
  """SIGKILLs a process at random moments, so many times; between two kills a result arrives."""
  rng, killed = random.Random(kills), set()
  for _ in range(kills):
    delivered.acquire(timeout=120)
    time.sleep(rng.uniform(0.0, most_s))
    deadline, pids = time.monotonic() + 60, []
    while not pids and time.monotonic() < deadline:
      alive = [w for w in sampler.health()["workers"] if w["alive"] and w["pid"] not in killed]
      pids = [w["pid"] for w in alive if w["orders"]] or [w["pid"] for w in alive]
    os.kill(pid := rng.choice(pids), signal.SIGKILL)
    killed.add(pid)  # that it has died may be noticed only later
    while delivered.acquire(blocking=False):
      pass
  done.set()


@pytest.mark.slow
def test_nothing_is_lost_or_repeated_whatever_is_killed():
  kills, most_s = 20, 3.0
  failures = FailureSettings(max_failures=kills, backoff_s=0.05, max_backoff_s=0.2)
  sampler = start_sampler("local", SPEC, workers=2, weight_slots=4, failures=failures)
  delivered, done = threading.Semaphore(0), threading.Event()
  chaos = threading.Thread(target=kill_at_random, args=(sampler, kills, delivered, done, most_s))
  chaos.start()
  disturbed = []
  try:
    for data in learner(sampler, lambda orders: done.is_set()):
      disturbed.append(data)
      delivered.release()
  finally:
    chaos.join(120)
    deadline = time.monotonic() + 60  # the last kill may not be noticed yet
    while len(sampler.failures()) < kills and time.monotonic() < deadline:
      time.sleep(0.01)
    pids = [worker["pid"] for worker in sampler.health()["workers"]]
    sampler.close()
  assert [failure["kind"] for failure in sampler.failures()] == ["died"] * kills
  assert any(failure["orders"] for failure in sampler.failures())
  assert not any(running(pid) for pid in pids if pid)

  undisturbed = start_sampler("threads", SPEC, weight_slots=4)
  assert list(learner(undisturbed, lambda orders: orders == len(disturbed))) == disturbed
  undisturbed.close()
