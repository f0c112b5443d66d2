"""Weights through shared memory, orders and results through a real sampler process."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vespo_jax import models, processes
from vespo_jax.processes import ChildDied
from vespo_jax.runtime import SamplerFailed, SharedWeights, messages, start_sampler
from vespo_jax.sampler import Order, Result, Settings
from vespo_jax.types import Rollout

SPEC = models.ModelSpec(
  vocab_size=11, width=16, layers=2, heads=2, kv_heads=1, head_width=8, mlp_width=24
)


def params(seed=0):
  return models.init(SPEC, jax.random.key(seed))


def order(order_id=0, version=0, **kwargs):
  fields = dict(
    order_id=order_id,
    weight_version=version,
    seed=7,
    stream=0,
    prompts=[[1, 5, 6], [2]],
    group_ids=[2 * order_id, 2 * order_id + 1],
    settings=Settings(max_new_tokens=4, samples_per_prompt=3, stop_ids=(2,)),
  )
  return Order(**{**fields, **kwargs})


def test_weights_arrive_whole_and_bit_exact():
  writer = SharedWeights(SPEC)
  reader = SharedWeights(SPEC, os.dup(writer.fd))
  for version in (0, 3, 4):
    writer.publish(version, params(version))
    got, weights = reader.latest(version, 1.0)
    assert got == version
    jax.tree.map(np.testing.assert_array_equal, weights, params(version))
  with pytest.raises(TimeoutError, match="version 5"):
    reader.latest(5, 0.05)


def test_a_set_that_was_read_does_not_change_with_later_ones():
  writer = SharedWeights(SPEC)
  writer.publish(0, params(0))
  _, first = writer.latest(0, 1.0)
  for version in (1, 2):
    writer.publish(version, params(version))
  jax.tree.map(np.testing.assert_array_equal, first, params(0))


def test_published_weights_may_be_donated():
  sampler = start_sampler("threads", SPEC, "float32")
  weights = params()
  sampler.publish(0, weights)
  jax.tree.map(lambda leaf: leaf.delete(), weights)
  sampler.put(order())
  assert len(sampler.get(60).rollouts) == 6
  sampler.close()


def test_torn_weights_are_never_accepted():
  writer = SharedWeights(SPEC)
  writer.publish(0, params(0))
  writer._memory[writer._slot_bytes // 2] ^= 1  # one flipped bit in the published slot
  with pytest.raises(TimeoutError):
    writer.latest(0, 0.05)


def test_orders_and_results_survive_the_wire():
  sent = order(3, version=2)
  received = messages.unpack_order(messages.decode(messages.encode(messages.pack_order(sent))))
  assert received.settings == sent.settings and received.group_ids == sent.group_ids
  assert [list(p) for p in received.prompts] == sent.prompts
  sampler = start_sampler("threads", SPEC, "float32")
  sampler.publish(2, params())
  sampler.put(sent)
  result = sampler.get(60)
  sampler.close()
  message = messages.decode(messages.encode(messages.pack_result(result)))
  same_rollouts(messages.unpack_result(message, sent).rollouts, result.rollouts)
  with pytest.raises(ValueError, match="answered order 3"):
    messages.unpack_result(message, order(4))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_expert_ids_survive_the_wire_and_a_prompts_travel_once(dtype):
  rng = np.random.default_rng(0)
  wanted = order(settings=Settings(max_new_tokens=4, samples_per_prompt=3, expert_ids=True))
  draw = lambda tokens: rng.integers(0, np.iinfo(dtype).max, (tokens, 3, 2)).astype(dtype)
  rollouts = []
  for group_id, prompt in enumerate(wanted.prompts):
    prompt_ids = draw(len(prompt))
    for length in (4, 1, 3):
      ids = np.concatenate([prompt_ids, draw(length)])
      zeros = np.zeros(length, np.float32)
      versions, tokens = zeros.astype(np.int32), np.arange(length, dtype=np.int32)
      made = Rollout(np.asarray(prompt, np.int32), tokens, zeros, zeros, versions, "stop")
      rollouts.append(dataclasses.replace(made, group_id=group_id, expert_ids=ids))
  packed = messages.pack_result(Result(0, rollouts, 0.5))
  received = messages.unpack_result(messages.decode(messages.encode(packed)), wanted).rollouts
  same_rollouts(received, rollouts)
  assert all(r.expert_ids.dtype == dtype for r in received)
  assert sum(x.shape[0] for k, x in packed.items() if k.endswith("expert_ids")) == 4 + 2 * 8


def same_rollouts(left, right):
  assert len(left) == len(right)
  for one, other in zip(left, right, strict=True):
    for field, value in vars(one).items():
      np.testing.assert_array_equal(value, getattr(other, field), err_msg=field)


def test_a_sampler_process_equals_a_thread():
  results = {}
  for transport in ("threads", "local"):
    sampler = start_sampler(transport, SPEC, "float32")
    try:
      sampler.publish(0, params(0))
      sampler.put(order(0))
      sampler.put(order(1))
      first = sampler.get(120), sampler.get(120)
      if transport == "local":
        os.kill(sampler.health()["pid"], signal.SIGINT)  # Ctrl-C reaches both; it is the parent's
      sampler.publish(5, params(5))
      sampler.put(order(2, version=5))
      results[transport] = [*first, sampler.get(120)]
      assert sampler.health()["pending"] == 0
    finally:
      sampler.close()
  for thread, process in zip(results["threads"], results["local"], strict=True):
    assert thread.order_id == process.order_id
    same_rollouts(thread.rollouts, process.rollouts)


@pytest.fixture
def local_sampler():
  sampler = start_sampler("local", SPEC, "float32")
  sampler.publish(0, params())
  yield sampler
  sampler.close()


def test_a_killed_sampler_is_an_error_within_seconds(local_sampler):
  local_sampler.put(order(settings=Settings(max_new_tokens=4000)))
  os.kill(local_sampler.health()["pid"], signal.SIGKILL)
  started = time.monotonic()
  with pytest.raises(ChildDied, match="sampler process died.*SIGKILL"):
    local_sampler.get(60)
  assert time.monotonic() - started < 5
  assert not local_sampler.health()["alive"]
  with pytest.raises(ChildDied):
    local_sampler.put(order())


def test_a_failing_sampler_says_why(local_sampler):
  local_sampler.put(order(prompts=[[], [1]]))
  with pytest.raises(SamplerFailed, match="every prompt at least one token"):
    local_sampler.get(120)


def test_silence_is_a_timeout(local_sampler):
  with pytest.raises(TimeoutError, match="sampler process"):
    local_sampler.get(0.1)


def test_a_child_that_does_not_read_is_a_timeout(tmp_path, monkeypatch):
  (tmp_path / "deaf.py").write_text("import time\ntime.sleep(10)\n")
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.setattr(processes, "SEND_TIMEOUT_S", 1.0)
  child = processes.Child("deaf", name="deaf")
  with pytest.raises(TimeoutError, match="deaf process .* stopped reading"):
    child.send(bytes(10_000_000))  # more than the socket holds
  child.close(grace_s=0.1)
  assert not child.alive


def test_a_sampler_dies_with_its_parent():
  parent = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import time\n"
      "from vespo_jax import models\n"
      "from vespo_jax.runtime import start_sampler\n"
      f"sampler = start_sampler('local', models.{SPEC!r}, 'float32')\n"
      "print(sampler.health()['pid'], flush=True)\n"
      "time.sleep(600)",
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  pid = int(parent.stdout.readline())
  os.kill(pid, 0)  # it is there
  parent.kill()
  parent.wait()
  deadline = time.monotonic() + 20  # while it is importing, nobody is watching yet
  while time.monotonic() < deadline and _running(pid):
    time.sleep(0.05)
  assert not _running(pid)


def _running(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] != "Z"
  except FileNotFoundError:
    return False
