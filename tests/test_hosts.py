"""Several processes as one learner: what they agree on, how they end, and that it is one run."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import chex
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests import many_hosts
from vespo_jax import config as config_lib
from vespo_jax import launch, metrics
from vespo_jax.evaluation import Evaluator
from vespo_jax.hosts import Hosts
from vespo_jax.runtime import Preempted

TOGETHER = """
import json, os, signal, sys
from pathlib import Path
import jax, numpy as np
from vespo_jax import hosts, sharding
from vespo_jax.weights import pieces
index, how, asked = int(sys.argv[2]), sys.argv[3], []
many = hosts.join(
  coordinator_address=sys.argv[1], num_processes=2, process_id=index, initialization_timeout_s=60,
  heartbeat_timeout_s=10, timeout_s=5.0, stop=lambda: bool(asked),
)
print(many.count, many.first, flush=True)
with many.together():
  mesh = sharding.make_mesh({"data": 2})
  many.connect(mesh)
  if how == "agree":
    said = many.tell(lambda: {"from": index})
    parts = many.merge(b"ab" * 5000 if index else b"")
    none = many.merge(None if index else b"x")
    before = many.stopped()
    if index:
      asked.append(True)
    after = many.stopped()
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    placed = sharding.place({"x": rows}, sharding.batch_sharding(mesh))["x"]
    mine = np.asarray(placed.addressable_data(0)).tolist()
    whole = sharding.fetch({"x": placed})["x"]
    assert np.array_equal(whole, rows) and isinstance(whole, np.ndarray)
    pieces.write(Path(sys.argv[4]), 7, {"x": placed}, pieces.Wire(chunk_bytes=8))
    many.wait()
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = {"x": jax.ShapeDtypeStruct((4, 2), np.float32, sharding=local)}
    again, traffic = pieces.read(pieces.open_publication(Path(sys.argv[4])), like)
    assert np.array_equal(again["x"], rows) and traffic.pieces == 4  # two of each process
    print(json.dumps([said, [len(p) for p in parts], parts[1][-2:].decode(), none, before, after]))
    print(json.dumps(mine), flush=True)
    many.close()
  elif index and how == "raise":
    raise ValueError("the disk is full")
  elif index and how == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  elif index and how == "die in a collective":
    many.wait()
    os.kill(os.getpid(), signal.SIGKILL)
  if how == "die in a collective":
    spread = sharding.place(np.zeros(2), sharding.batch_sharding(mesh))
    many.wait()
    sharding.fetch(spread)
  if how != "agree":
    many.wait()
"""


def two(how, place):
  """Exit codes, outputs, and the seconds from the first word of both to the end of the first."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  children = [
    subprocess.Popen(
      [sys.executable, "-c", TOGETHER, address, str(index), how, str(place)],
      cwd=many_hosts.REPOSITORY,
      env=dict(os.environ, JAX_PLATFORMS="cpu"),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  assert [child.stdout.readline() for child in children] == ["2 True\n", "2 False\n"]
  begun = time.monotonic()
  codes, said = many_hosts.finish(children, 120)
  return codes, said, time.monotonic() - begun


def test_processes_agree_and_exchange(tmp_path):
  codes, said, _ = two("agree", tmp_path / "weights")
  assert codes == [0, 0], said
  for index, text in enumerate(said):
    *_, agreed, mine = text.splitlines()
    assert json.loads(agreed) == [{"from": 0}, [0, 10_000], "ab", None, False, True]
    assert json.loads(mine) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]][index]  # only its own rows


@pytest.mark.parametrize(
  ("how", "why"),
  [
    ("raise", "process 1 failed: ValueError: the disk is full"),
    ("die in a collective", "a collective failed, as when another process ends"),
    pytest.param("die", "process 1 did not come within 5 s", marks=pytest.mark.slow),
  ],
)
def test_where_one_process_fails_the_others_end_soon_and_say_why(how, why, tmp_path):
  codes, said, seconds = two(how, tmp_path)
  assert codes[0] not in (0, None) and codes[1] not in (0, None)
  assert why in said[0]
  assert seconds < 60


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def same_run(one, other):
  """The same rollouts to the byte, and metrics and policy to round-off."""
  left, right = (metrics.read(run / "metrics.jsonl") for run in (one, other))
  assert [row["step"] for row in left] == [row["step"] for row in right]
  assert all(row["grad/norm"] > 0 for row in left)
  for mine, its in zip(left, right, strict=True):
    mine, its = metrics.strip_timings(mine), metrics.strip_timings(its)
    assert mine.keys() == its.keys()
    for key, value in mine.items():
      if key.endswith("histogram"):  # of log W, which is round-off where nothing is stale
        assert sum(value) == sum(its[key])
      elif key != "integrity/score":  # a quotient of such numbers
        assert its[key] == pytest.approx(value, rel=1e-4, abs=2e-5), (mine["step"], key)
  files = [sorted((run / "rollouts.parquet").iterdir()) for run in (one, other)]
  assert [path.name for path in files[0]] == [path.name for path in files[1]]
  columns = ["prompt_ids", "response_ids", "weight_versions", "group_id", "example_id", "reward"]
  for mine, its in zip(*files, strict=True):
    assert pq.read_table(mine, columns=columns).equals(pq.read_table(its, columns=columns))
  models = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
  chex.assert_trees_all_close(*models, rtol=1e-4, atol=1e-5)
  results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
  for when in ("evaluation_before", "evaluation_after", "updates", "stop_reason"):
    assert results[0][when] == results[1][when]


@pytest.mark.slow
def test_two_processes_are_the_run_of_one(data_dir, tmp_path):
  """Also if its parameters are nowhere whole, and samplers read their own parts of them."""
  settings = {"sampler.processes": 2, "updates": 2, "mesh.data": 1, "mesh.fsdp": 2}
  apart = {"runtime.weights": "pieces", **settings}
  children = many_hosts.start(tmp_path / "two", data_dir, 2, **apart)
  codes, said = many_hosts.finish(children)
  assert codes == [0, 0], said
  assert "held-out accuracy after" in said[0] and "held-out" not in said[1]
  codes, said = many_hosts.finish(many_hosts.start(tmp_path / "one", data_dir, 1, 2, **settings))
  assert codes == [0], said
  same_run(tmp_path / "one", tmp_path / "two")


# four devices, under every change that a run may go through
FOUR = {
  "mesh.data": 2,
  "mesh.fsdp": 2,
  "sampler.processes": 4,
  "updates": 6,
  "evaluation.every": 4,
  "checkpoint.every": 2,
  "kl.coefficient": 0.1,
  "batch.dynamic.enabled": True,
  "batch.dynamic.max_rounds": 40,
  "task.curriculum.floor": 0.2,
}


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["whole", "pieces"])
def test_four_processes_are_stopped_killed_and_go_on_as_two(weights, data_dir, tmp_path):
  """With sampler processes, dynamic sampling, a curriculum, a reference and an evaluation between;
  stopped by a signal to one process in the middle of a rollout batch, killed later."""
  settings = {**FOUR, "runtime.transport": "local", "runtime.weights": weights}
  workdir = tmp_path / "four"
  children = many_hosts.start(workdir, data_dir, 4, **settings)
  many_hosts.interrupt(children, workdir, 1, victim=2)
  codes, said = many_hosts.finish(children)
  assert codes == [75] * 4, said
  children = many_hosts.start(workdir, data_dir, 4, **settings)
  many_hosts.interrupt(children, workdir, 4, victim=1, number=signal.SIGKILL)
  codes, said = many_hosts.finish(children)
  assert 0 not in codes and 75 not in codes, said
  codes, said = many_hosts.finish(many_hosts.start(workdir, data_dir, 2, 2, **settings))
  assert codes == [0, 0] and "resuming after update" in said[0], said
  whole = many_hosts.start(tmp_path / "one", data_dir, 1, 4, **FOUR)
  codes, said = many_hosts.finish(whole)
  assert codes == [0], said
  same_run(tmp_path / "one", workdir)


@pytest.mark.slow
def test_to_be_stopped_in_the_last_evaluation_is_no_failure(
  data_dir, tmp_path, monkeypatch, no_report
):
  """Which would be announced to all hosts, and end them."""
  failures, evaluate = [], Evaluator.run

  class Witness(Hosts):
    @contextlib.contextmanager
    def together(self):
      try:
        yield
      except BaseException as error:
        failures.append(error)
        raise

  def stopped(self, sampler, weight_version):
    if weight_version:
      raise Preempted
    return evaluate(self, sampler, weight_version)

  monkeypatch.setattr(Evaluator, "run", stopped)
  flags = many_hosts.flags({**many_hosts.SMALL, "task.data_dir": data_dir, "updates": 1})
  config, _ = config_lib.parse(["train", "--config=configs/debug.py", "--workdir=w", *flags])
  result = launch.train(config, tmp_path / "run", hosts=Witness())
  assert result["stop_reason"] == "preempted" and result["updates"] == 1 and not failures


@pytest.mark.slow
def test_an_update_that_diverges_ends_all_processes_alike(data_dir, tmp_path):
  settings = {"sampler.processes": 2, "guards.max_grad_norm": 1e-9}
  children = many_hosts.start(tmp_path / "run", data_dir, 2, **settings)
  codes, said = many_hosts.finish(children)
  assert codes == [3, 3] and all("update 1 is bad" in text for text in said)
  names = {"report.json", "rollouts.jsonl", "rollouts.parquet", "checkpoints"}
  assert {path.name for path in (tmp_path / "run" / "failure").iterdir()} == names


@pytest.mark.slow
def test_what_several_processes_cannot_do_is_refused(data_dir, tmp_path):
  """Fewer samplers than processes; and nobody waits for what does not come."""
  codes, said = many_hosts.finish(many_hosts.start(tmp_path / "run", data_dir, 2))
  assert codes == [2, 2] and all("sampler.processes=1 must be at least 2" in s for s in said)
  lonely = many_hosts.start(
    tmp_path / "run", data_dir, 2, **{"distributed.initialization_timeout_s": 5}
  )
  lonely[1].kill()
  codes, said = many_hosts.finish(lonely)
  assert codes[0] not in (0, 75)
