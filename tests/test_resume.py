"""Runs that are stopped or killed anywhere, and go on as if nothing had happened."""

import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from configs import debug
from tests.watched import pickle_watch
from vespo_jax import config as config_lib
from vespo_jax import convert, launch, metrics
from vespo_jax.evaluation import Evaluation
from vespo_jax.hosts import Hosts
from vespo_jax.learner.intake import Intake
from vespo_jax.runtime import schedule as schedules
from vespo_jax.sampler.worker import Worker

pytestmark = pytest.mark.usefixtures("no_report")
REPOSITORY = Path(__file__).parent.parent
TEXT = {"answer_format": "text"}
SCHEDULES = {
  "sync": {"staleness.minibatches": 3, "updates": 6},
  "logical": {
    "staleness.minibatches": 1,
    "runtime.mode": "async",
    "runtime.clock": "logical",
    "runtime.max_staleness": 3,
    "runtime.sync_every": 2,
    "updates": 6,
  },
  # groups dropped and replaced, prompts chosen by their success rates, two tasks
  "chosen": {
    "staleness.minibatches": 3,
    "batch.dynamic.enabled": True,
    "batch.dynamic.max_rounds": 50,
    "task.curriculum.floor": 0.2,
    "task.mixture": {
      "words": {"name": "reasoning_gym/spell_backward", "weight": 3, "options": TEXT},
      "sums": {"name": "reasoning_gym/chain_sum", "weight": 1, "options": TEXT | {"max_terms": 2}},
    },
    "updates": 6,
  },
}
SCHEDULES["logical in pieces"] = SCHEDULES["logical"] | {"runtime.weights": "pieces"}
SCHEDULES["chosen ahead"] = SCHEDULES["chosen"] | SCHEDULES["logical"]
# with a proximal and a reference policy, evaluations on the way, and every rollout kept
CHANGES = {
  "correction.denominator": "proximal",
  "kl.coefficient": 0.1,
  "evaluation.every": 2,
  "evaluation.problems": 4,
  "checkpoint.every": 2,
  "checkpoint.keep_last": 3,
  "rollouts.save_all": True,
}


@pytest.fixture(scope="module", autouse=True)
def nothing_is_pickled():
  """Not by saving and restoring, either."""
  with pickle_watch.watched_here() as told:
    yield
  assert told == []


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def make_config(data_dir, name, **changes):
  config = debug.get_config()
  config.task.data_dir = data_dir
  config.runtime.transport = "threads"
  changes = {**CHANGES, **SCHEDULES[name], **changes}
  config.task.mixture = ConfigDict(changes.pop("task.mixture", {}))
  config.update_from_flattened_dict(changes)
  return config_lib.validate(config)


def outcome(workdir):
  """What two runs of the same seed share: metrics, final parameters and rollouts, as bytes."""
  rows = [json.dumps(metrics.strip_timings(row)) for row in metrics.read(workdir / "metrics.jsonl")]
  schedule = (workdir / "schedule.jsonl").read_text()
  texts = [path.read_text() for path in sorted((workdir / "rollouts").iterdir())]
  params = (workdir / "model" / "model.safetensors").read_bytes()
  return {"rows": rows, "schedule": schedule, "rollouts": texts, "params": params}


def assert_same(left, right):
  for key in left:
    assert left[key] == right[key], key


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
  """`whole(name)`: what an uninterrupted run of a schedule becomes."""
  known = {}

  def run(name):
    if name not in known:
      workdir = tmp_path_factory.mktemp("whole") / "run"
      launch.train(make_config(data_dir, name), workdir)
      known[name] = outcome(workdir)
    return known[name]

  return run


def test_what_was_written_after_the_checkpoint_is_cut_back(tmp_path):
  (tmp_path / "rollouts").mkdir()
  for name in ("000001.jsonl", "000002.jsonl", "000003.jsonl", "mine.jsonl"):
    (tmp_path / "rollouts" / name).write_text("{}\n")
  with metrics.MetricsWriter(tmp_path / "metrics.jsonl") as writer:
    for step in (1, 2, 3):
      writer.write({"step": step})
      schedules.record(tmp_path / "schedule.jsonl", step - 1, None)
    launch._cut_back(tmp_path, writer, None, 1)
  assert [row["step"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [1]
  assert len((tmp_path / "schedule.jsonl").read_text().splitlines()) == 1
  kept = [path.name for path in sorted((tmp_path / "rollouts").iterdir())]
  assert kept == ["000001.jsonl", "mine.jsonl"]


def lines(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.parametrize(
  "name,stops",
  [
    pytest.param("logical in pieces", 1, marks=pytest.mark.slow),
    pytest.param("logical", 9, marks=pytest.mark.slow),
    pytest.param("sync", 9, marks=pytest.mark.slow),
    pytest.param("chosen", 9, marks=pytest.mark.slow),
  ],
)
def test_a_run_that_was_stopped_ends_the_same(name, stops, whole, data_dir, tmp_path):
  """In the middle of a rollout batch too, and with rollouts waiting to be trained on; and however
  weights are published."""
  config, workdir, stopped_at = make_config(data_dir, name), tmp_path / "run", []
  while True:
    enough = lines(workdir) + 1 if len(stopped_at) < stops else math.inf
    result = launch.train(config, workdir, lambda enough=enough: lines(workdir) >= enough)
    if result["stop_reason"] == "finished":
      break
    stopped_at.append(result["updates"])
    assert lines(workdir) == result["updates"]
  assert len(stopped_at) >= min(stops, 2) and sorted(set(stopped_at)) == stopped_at
  assert_same(outcome(workdir), whole(name.removesuffix(" in pieces")))


def test_a_start_that_is_stopped_before_it_orders_leaves_its_checkpoint(
  data_dir, tmp_path, monkeypatch
):
  """It holds the weights that open orders need, which the sampler is not asked for again yet."""
  config, tick = make_config(data_dir, "logical"), Worker.tick
  two = 2 * config.batch.prompts  # the orders of as many minibatches
  with monkeypatch.context() as slow:  # no other ever comes
    slow.setattr(Worker, "tick", lambda worker: [one for one in tick(worker) if one.order_id < two])
    launch.train(config, tmp_path, lambda: lines(tmp_path) >= 2)
  about = tmp_path / "checkpoints" / "2" / "about" / "metadata"
  before = about.stat().st_ino, about.read_bytes()
  assert json.loads(before[1])["weights"]  # orders are open
  assert launch.train(config, tmp_path, lambda: True)["stop_reason"] == "preempted"
  assert (about.stat().st_ino, about.read_bytes()) == before
  assert launch.train(config, tmp_path)["stop_reason"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chosen", "chosen ahead"])
def test_a_run_stopped_in_the_middle_of_a_refill_ends_the_same(name, whole, data_dir, tmp_path):
  """Whenever an order of a refill is waited for, and at the bound of its rounds."""
  config, workdir = make_config(data_dir, name), tmp_path / "run"
  expected, refills = whole(name), set()
  original = Intake._ask

  def ask(self, update, prompts):
    portion = original(self, update, prompts)
    refills.update([portion.position] if prompts < config.batch.prompts else [])
    return portion

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Intake, "_ask", ask)
    while True:
      seen = len(refills)
      result = launch.train(config, workdir, lambda seen=seen: len(refills) > seen)
      if result["stop_reason"] == "finished":
        break
  assert len(refills) >= 3
  assert_same(outcome(workdir), expected)
  few = make_config(data_dir, name, **{"batch.dynamic.max_rounds": 1})
  again = tmp_path / "again"
  with pytest.raises(launch.NoSignal, match="batch.dynamic.max_rounds=1"):
    launch.train(few, again)
  stopped = json.loads((again / "result.json").read_text())
  assert stopped["stop_reason"].startswith("NoSignal: ")
  launch.train(config, again)
  assert_same(outcome(again), expected)


def test_a_run_whose_samplers_fail_is_saved_and_goes_on(whole, data_dir, tmp_path, monkeypatch):
  """Within a rollout batch, at no multiple of `checkpoint.every`; more patience may be asked."""
  original = Intake.get

  def get(self, update):
    if update == 4:
      raise TimeoutError("no result arrived")
    return original(self, update)

  with monkeypatch.context() as patch:
    patch.setattr(Intake, "get", get)
    with pytest.raises(TimeoutError, match="no result arrived"):
      launch.train(make_config(data_dir, "sync"), tmp_path)
  assert len(metrics.read(tmp_path / "metrics.jsonl")) == 4
  assert (tmp_path / "checkpoints" / "4").is_dir()
  launch.train(make_config(data_dir, "sync", **{"runtime.timeout_s": 900.0}), tmp_path)
  assert_same(outcome(tmp_path), whole("sync"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sync", "logical", "logical in pieces"])
def test_a_run_that_is_made_longer_ends_as_if_it_had_been_from_the_start(
  name, whole, data_dir, tmp_path
):
  """It ends with weights that the orders beyond its first end are sampled by."""
  launch.train(make_config(data_dir, name, updates=4), tmp_path)
  launch.train(make_config(data_dir, name), tmp_path)
  assert_same(outcome(tmp_path), whole(name))


@pytest.mark.slow
def test_adapters_are_resumed_and_their_checkpoint_converted(data_dir, tmp_path, capsys):
  """Stopped within a rollout batch; the merged model is that which the run itself exports."""
  changes = {"lora.rank": 2, "policy.dtype": "bfloat16", "correction.denominator": "proximal"}
  config = make_config(data_dir, "sync", **changes)
  workdir, exported = tmp_path / "run", tmp_path / "run" / "model" / "model.safetensors"
  launch.train(config, tmp_path / "whole")
  launch.train(config, workdir, lambda: lines(workdir) >= 1)
  assert convert.main(["", f"--model={workdir}", f"--out={tmp_path / 'stopped'}"]) == 0
  launch.train(config, workdir)
  assert_same(outcome(workdir), outcome(tmp_path / "whole"))
  expected = exported.read_bytes()
  assert (tmp_path / "stopped" / "model.safetensors").read_bytes() != expected
  shutil.rmtree(workdir / "model")
  assert convert.main(["", f"--model={workdir}", f"--out={tmp_path / 'converted'}"]) == 0
  assert (tmp_path / "converted" / "model.safetensors").read_bytes() == expected
  stored = json.loads((workdir / "config.json").read_text())
  stored["policy"]["path"] = str(tmp_path / "stopped")  # as if it had been trained again
  (workdir / "config.json").write_text(json.dumps(stored))
  assert convert.main(["", f"--model={workdir}", f"--out={tmp_path / 'refused'}"]) == 2
  assert "adapted another policy than" in capsys.readouterr().err


def test_only_a_run_that_goes_on_has_its_first_evaluation_already(tmp_path):
  """What died before its first checkpoint measured a policy that may be another by now."""
  accuracies = iter([0.25, 0.5])
  evaluator = SimpleNamespace(
    run=lambda sampler, version: Evaluation(next(accuracies), 0.0, 1.0, 4, 2)
  )
  sampler = SimpleNamespace(publish=lambda version, params: None)
  progress = SimpleNamespace(message=lambda text: None)
  found = [
    launch._evaluate_before(tmp_path, new, {}, sampler, evaluator, progress, Hosts()).accuracy
    for new in (True, True, False)
  ]
  assert found == [0.25, 0.5, 0.5]


def command(workdir, data_dir, *arguments):
  return [
    sys.executable,
    "-m",
    "vespo_jax.train",
    "--config=configs/debug.py",
    f"--workdir={workdir}",
    f"--config.task.data_dir={data_dir}",
    *arguments,
  ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sync", "logical"])
def test_a_run_killed_at_random_moments_ends_the_same(name, whole, data_dir, tmp_path):
  """SIGKILL, 25 times over the two schedules, every fourth time while a checkpoint is written."""
  rng, workdir, kills, in_a_save = random.Random(name), tmp_path / "run", 0, 0
  changes = [f"--config.{k}={v}" for k, v in {**CHANGES, **SCHEDULES[name]}.items()]
  arguments = command(workdir, data_dir, "--config.runtime.transport=threads", *changes)
  unnamed = workdir / "checkpoints"
  while kills < {"sync": 13, "logical": 12}[name]:
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    if kills % 4 == 3:
      wanted = lambda: list(unnamed.glob("*orbax-checkpoint-tmp*"))
      until = time.monotonic() + 120
    else:
      wanted, until = (lambda: False), time.monotonic() + rng.uniform(1, 25)
    while process.poll() is None and time.monotonic() < until and not wanted():
      time.sleep(0.001)
    in_a_save += bool(wanted())
    if process.poll() is None:
      process.kill()
      process.wait()
      kills += 1
    else:
      assert process.returncode == 0, process.stderr.read()
      shutil.rmtree(workdir)  # it got to the end: begin again
  done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert in_a_save
  assert_same(outcome(workdir), whole(name))


@pytest.mark.slow
def test_on_the_wall_clock_nothing_is_lost_or_repeated(data_dir, tmp_path):
  """Also of what was sampled and waited when the run was killed."""
  workdir, rng = tmp_path / "run", random.Random(0)
  changes = {**CHANGES, **SCHEDULES["logical"], "runtime.clock": "wall", "updates": 40}
  config = [f"--config.{key}={value}" for key, value in changes.items()]
  arguments = command(workdir, data_dir, "--config.sampler.processes=2", *config)
  for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    wanted, until = lines(workdir) + rng.randint(2, 6), time.monotonic() + 240
    while lines(workdir) < wanted and process.poll() is None and time.monotonic() < until:
      time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (-signal.SIGKILL, 75), errors
  done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert [row["step"] for row in metrics.read(workdir / "metrics.jsonl")] == list(range(1, 41))
  trained = [
    group
    for path in sorted((workdir / "rollouts.parquet").iterdir())
    for group in pq.read_table(path, columns=["group_id"])["group_id"].to_pylist()
  ]
  samples = debug.get_config().batch.samples_per_prompt
  assert trained == [group for group in range(len(trained) // samples) for _ in range(samples)]
