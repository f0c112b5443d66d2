"""Supervised fine-tuning as a user runs it: what it leaves, how it resumes, what it refuses."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import debug
from vespo_jax import config as config_lib
from vespo_jax import (
  config_supervised,
  convert,
  files,
  fine_tuning,
  launch,
  metrics,
  models,
  rewriting,
  sft,
)

REPOSITORY = Path(__file__).parent.parent
SMALL = {
  "policy.path": "",
  "policy.width": 16,
  "policy.layers": 1,
  "policy.heads": 2,
  "policy.kv_heads": 1,
  "policy.head_width": 8,
  "policy.mlp_width": 16,
  "updates": 6,
  "batch.prompts": 8,
  "batch.micro_batches": 2,
  "optimizer.learning_rate": 1e-2,
  "optimizer.decay": "cosine",
  "evaluation.every": 2,
  "checkpoint.every": 2,
  "sft.row_tokens": 24,
  "sft.held_out": 5,
}


def write_data(path, count=40, letters="ab"):
  """Demonstrations of two letters, of different lengths, and one that is too long."""
  rng = np.random.default_rng(0)
  rows = [
    {"prompt": "x" * int(rng.integers(1, 5)), "response": letters * int(rng.integers(1, 5))}
    for _ in range(count)
  ]
  rows.append({"prompt": "x", "response": "a" * 100})
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def make_config(data, **changes):
  config = debug.get_config()
  config.update_from_flattened_dict({**SMALL, "sft.data": data, **changes})
  return config_lib.validate(config)


def outcome(workdir):
  rows = [json.dumps(metrics.strip_timings(row)) for row in metrics.read(workdir / "metrics.jsonl")]
  return rows, (workdir / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  place = tmp_path_factory.mktemp("sft")
  data = write_data(place / "data.jsonl")
  return data, place / "run", fine_tuning.train(make_config(data), place / "run")


def test_a_run_leaves_its_directory_and_has_learned(run):
  _, workdir, result = run
  assert json.loads((workdir / "result.json").read_text()) == result
  assert (result["stop_reason"], result["updates"]) == ("finished", 6)
  counts = {"train": 35, "held_out": 5, "left_out": {"longer than 24 tokens": 1}}
  assert {**result["data"], "digest": ""} == {**counts, "digest": ""}
  before, after = (result[f"held_out_{when}"]["nll_per_token"] for when in ("before", "after"))
  assert after < before - 0.1 and before == pytest.approx(math.log(259), abs=0.5)
  rows = metrics.read(workdir / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert [row["step"] for row in rows if "held_out/nll" in row] == [2, 4]
  assert rows[-1]["data/epoch"] == pytest.approx(48 / 35)
  for row in rows:
    assert row["data/nll"] == pytest.approx(row["objective/loss"], rel=1e-5)
    assert not [key for key in row if key.startswith(("weight/", "kl/", "reward/"))]
  assert result["padding_fraction"] == np.mean([row["data/padding_fraction"] for row in rows])
  assert rows[-1]["optimizer/learning_rate"] < rows[2]["optimizer/learning_rate"]
  spec, params, tokenizer = models.load(workdir)
  assert spec.width == 16 and tokenizer.vocab_size == 259
  text = fine_tuning.summary(result, workdir)
  assert "held-out data before:" in text and "of the tokens computed" in text


def test_a_run_that_was_stopped_ends_with_the_same_bytes(run, tmp_path):
  """Whatever an attempt that died before its first checkpoint has measured."""
  data, whole, finished = run
  config, stops = make_config(data), []
  (tmp_path / "held_out_before.json").write_text("{}")
  lines = lambda: len(metrics.read(tmp_path / "metrics.jsonl")) if stops else 0
  for wanted in (1, 3):  # once where a held-out loss is due next, once within an interval

    def stop(wanted=wanted):
      path = tmp_path / "metrics.jsonl"
      return path.is_file() and len(metrics.read(path)) >= wanted

    result = fine_tuning.train(config, tmp_path, stop)
    stops.append(result["updates"])
    assert result["stop_reason"] == "preempted" and lines() == result["updates"]
  result = fine_tuning.train(config, tmp_path)
  assert result["stop_reason"] == "finished"
  assert result["held_out_before"] == finished["held_out_before"]
  assert stops[0] < stops[1] < 6
  assert outcome(tmp_path) == outcome(whole)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  assert fine_tuning.train(config, tmp_path)["updates"] == 6  # is not run again
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_directory_of_other_data_config_or_command_is_refused(run):
  data, workdir, _ = run
  with pytest.raises(config_lib.ConfigError, match="another updates; give another"):
    fine_tuning.train(make_config(data, updates=7), workdir)  # the rate falls to the end of a run
  with pytest.raises(config_lib.ConfigError, match="another sft.loss"):
    fine_tuning.train(make_config(data, **{"sft.loss": "dft"}), workdir)
  before = (workdir / "result.json").read_bytes()
  with pytest.raises(config_lib.ConfigError, match="holds a run of 'sft', not 'rewrite'"):
    rewriting.train(make_config(data), workdir)
  asked = []

  def stop():
    with pytest.raises(config_lib.ConfigError, match="is being written by another process"):
      fine_tuning.train(make_config(data), workdir.parent / "two")
    return asked.append(None) is None

  assert fine_tuning.train(make_config(data), workdir.parent / "two", stop)["updates"] < 6 and asked
  assert (workdir / "result.json").read_bytes() == before
  text = Path(data).read_text()
  try:
    write_data(Path(data), letters="ba")
    with pytest.raises(config_lib.ConfigError, match="holds a run on other data"):
      fine_tuning.train(make_config(data), workdir)  # which has finished
    (workdir / "result.json").rename(workdir / "result.bak")
    with pytest.raises(config_lib.ConfigError, match="holds a run on other data"):
      fine_tuning.train(make_config(data), workdir)
  finally:
    Path(data).write_text(text)
    (workdir / "result.bak").rename(workdir / "result.json")


@pytest.mark.parametrize(
  "arguments,words",
  [
    (["--config.sft.data=none.jsonl"], "sft.data='none.jsonl': no such file"),
    (["--config.sft.held_out_data=none.jsonl"], "sft.held_out_data='none.jsonl': no such file"),
    (["--config.sft.loss=ce"], "sft.loss='ce' must be one of 'cross_entropy', 'dft'"),
    (["--config.sft.held_out=51"], "sft.held_out=51 must be at most task.test_size=50"),
    (["--config.guards.max_log_w=5"], "guards.max_log_w=5.0 needs importance weights"),
    (["--config.optimizer.ess_scaling=sqrt"], "optimizer.ess_scaling='sqrt' needs importance"),
    (["--config.runtime.profile_updates=1"], "runtime.profile_updates is of vespo_jax.train"),
    (["--config.optimizer.decay=linear"], "optimizer.decay='linear' must be one of"),
  ],
)
def test_what_cannot_be_is_one_message_and_exit_code_2(arguments, words, tmp_path, capsys):
  argv = ["sft", "--config=configs/debug.py", f"--workdir={tmp_path}/run", *arguments]
  held_out = [] if "held_out=" in arguments[0] else ["--config.sft.held_out=0"]
  with contextlib.chdir(REPOSITORY):
    assert sft.main([*argv, *held_out]) == 2
  assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_data_that_cannot_be_read_or_is_all_left_out_is_refused(run, tmp_path):
  broken = tmp_path / "broken.jsonl"
  broken.write_text('{"prompt": "a"}\n')
  with pytest.raises(config_lib.ConfigError, match="sft.data: .*broken.jsonl, line 1: must be"):
    fine_tuning.train(make_config(str(broken)), tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()  # the corrected config may have it
  with pytest.raises(config_lib.ConfigError, match="nothing to train on: .*longer than 2 tokens"):
    fine_tuning.train(make_config(run[0], **{"sft.row_tokens": 2}), tmp_path / "run")
  with pytest.raises(config_lib.ConfigError, match="41 demonstrations, 41 of them held out"):
    fine_tuning.train(make_config(run[0], **{"sft.held_out": 50}), tmp_path / "run")


def test_a_bad_update_leaves_what_it_trained_on(run, tmp_path):
  """One may be skipped, and no step of the schedule is taken in it."""
  config = make_config(run[0], **{"guards.max_grad_norm": 1e-9, "guards.max_skipped": 1})
  with pytest.raises(launch.Diverged, match="update 2 is bad: its gradient norm .* is above"):
    fine_tuning.train(config, tmp_path)
  rates = [row["optimizer/learning_rate"] for row in metrics.read(tmp_path / "metrics.jsonl")]
  assert len(rates) == 2 and rates[0] == rates[1]
  assert rates[0] != metrics.read(run[1] / "metrics.jsonl")[1]["optimizer/learning_rate"]
  result = json.loads((tmp_path / "result.json").read_text())
  assert "Diverged" in result["stop_reason"] and result["updates"] == 1
  examples = (tmp_path / "failure" / "examples.jsonl").read_text().splitlines()
  assert len(examples) == 8 and "x\n" in json.loads(examples[0])["text"]
  assert (tmp_path / "failure" / "checkpoints" / "1").is_dir()


def test_a_bad_update_is_one_even_if_the_disk_is_full(run, tmp_path, monkeypatch):
  write = files.write

  def refused(path, *what):
    if "failure" in path.parts:
      raise OSError(28, "No space left on device")
    write(path, *what)

  monkeypatch.setattr(files, "write", refused)
  with pytest.raises(launch.Diverged, match="update 1 is bad: .* could not be written: .*No space"):
    fine_tuning.train(make_config(run[0], **{"guards.max_grad_norm": 1e-9}), tmp_path)


@pytest.mark.slow
def test_adapters_epochs_and_held_out_data_of_its_own(run, tmp_path):
  changes = {"lora.rank": 2, "sft.loss": "dft", "sft.epochs": 2.0, "sft.held_out_data": run[0]}
  result = fine_tuning.train(make_config(run[0], **changes), tmp_path / "run")
  assert result["updates"] == 10  # 2 x 40 / 8
  assert result["data"]["held_out"] == result["data"]["train"] == 40
  rows = metrics.read(tmp_path / "run" / "metrics.jsonl")
  assert all(0 < row["objective/loss"] < row["data/nll"] for row in rows)
  assert (tmp_path / "run" / "adapter").is_dir()
  (tmp_path / "run" / "model").rename(tmp_path / "exported")  # as of a run that has not finished
  out = tmp_path / "converted"
  with contextlib.redirect_stdout(io.StringIO()):
    assert convert.main(["", f"--model={tmp_path / 'run'}", f"--out={out}"]) == 0
  ours, theirs = (models.load(place)[1] for place in (tmp_path / "exported", out))
  np.testing.assert_array_equal(ours["layers"]["query"], theirs["layers"]["query"])


def command(module, *arguments, env=None):
  done = subprocess.run(
    [sys.executable, "-m", f"vespo_jax.{module}", *arguments],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=500,
    env=env,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_eight_devices_learn_the_same(run, tmp_path):
  """In a process of its own, with rows spread over both axes of the mesh."""
  data, whole, _ = run
  changes = {**SMALL, "sft.data": data, "mesh.data": 4, "mesh.fsdp": 2, "batch.prompts": 16}
  flags = [f"--config.{key}={value}" for key, value in changes.items()]
  devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
  spread, alone = tmp_path / "spread", tmp_path / "alone"
  argv = ["--config=configs/debug.py", f"--workdir={spread}", *flags]
  command("sft", *argv, env={**os.environ, "XLA_FLAGS": devices})
  fine_tuning.train(make_config(data, **{"batch.prompts": 16}), alone)
  losses = [
    [row["data/nll"] for row in metrics.read(workdir / "metrics.jsonl")]
    for workdir in (spread, alone)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_fine_tuning_then_reinforcement_learning(tmp_path):
  """The commands as a user gives them: a task's solutions, then its rewards."""
  data_dir = f"--config.task.data_dir={tmp_path / 'data'}"
  small = [f"--config.{key}={value}" for key, value in SMALL.items() if key.startswith("policy")]
  flags = ["--config.sft.held_out=20", "--config.updates=4", data_dir]
  warm = tmp_path / "warm"
  output = command("sft", "--config=configs/debug.py", f"--workdir={warm}", *small, *flags)
  assert f"model: {warm / 'model'}" in output
  output = command(
    "train",
    "--config=configs/debug.py",
    f"--workdir={tmp_path / 'run'}",
    f"--config.policy.path={warm}",
    "--config.updates=2",
    data_dir,
  )
  assert "held-out accuracy after:" in output
  assert models.load(tmp_path / "run")[0].width == 16
  refused = subprocess.run(
    [sys.executable, "-m", "vespo_jax.train", "--config=configs/debug.py", f"--workdir={warm}"]
    + [*small, *flags],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert refused.returncode == 2 and "error: " in refused.stderr  # a directory of another command


@pytest.mark.slow
def test_sizes_of_0_are_all_of_a_dataset(tmp_path):
  """Also fewer held-out problems than are asked for; and `rewrite` counts the same way."""
  data = tmp_path / "mine.jsonl"
  rows = [{"prompt": f"{i}?", "answer": i} for i in range(20)]
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = make_config(
    "",
    **{
      "updates": 1,
      "sft.held_out": 100,
      "task.name": f"jsonl:{data}",
      "task.options": {"verifier": "exact", "held_out": 0.25},
      "task.train_size": 0,
      "task.test_size": 0,
      "task.data_dir": str(tmp_path / "prepared"),
    },
  )
  config_supervised.check_sft(config)
  config_supervised.check_rewrite(config)
  result = fine_tuning.train(config, tmp_path / "run")
  assert (result["data"]["train"], result["data"]["held_out"]) == (15, 5)
