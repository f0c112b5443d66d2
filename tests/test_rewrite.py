"""Rewriting as a user runs it, with the quickstart's policy."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from configs import debug
from vespo_jax import config as config_lib
from vespo_jax import config_supervised, fine_tuning, metrics, rewriting

PROBLEMS = 24


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def make_config(data_dir, **changes):
  config = debug.get_config()
  config.task.data_dir = data_dir
  config.runtime.transport = "threads"
  config.update_from_flattened_dict(
    {
      "batch.prompts": 8,
      "rewrite.problems": PROBLEMS,
      "rewrite.samples": 2,
      "rewrite.guided_samples": 1,
      "sft.row_tokens": 80,
      **changes,
    }
  )
  return config_lib.validate(config)


def records(workdir):
  return [json.loads(line) for line in (workdir / "rewritten.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_policys_own_words_are_nearer_to_it_and_can_be_learned(data_dir, tmp_path):
  workdir = tmp_path / "run"
  result = rewriting.train(make_config(data_dir), workdir)
  made = records(workdir)
  assert [record["example_id"] for record in made] == list(range(PROBLEMS))
  assert result["problems"] == PROBLEMS and sum(result["tags"].values()) == PROBLEMS
  assert result["tags"]["self"] > PROBLEMS // 4  # it solves about half of them
  for record in made:
    assert record["response"] == record["expert"]  # the one correct spelling of this task
    assert (
      record["prompt"].startswith("Spell this word backward") and "correct" not in record["prompt"]
    )
    assert record["tag"] != "self" or record["correct"] > 0
  assert result["gap_after"]["all"] == result["gap_before"]["all"]  # as the texts are the same
  gap = result["gap_after"]
  assert gap["self"]["nll_per_token"] < gap["expert"]["nll_per_token"]
  assert f"data: {workdir / 'rewritten.jsonl'}" in rewriting.summary(result, workdir)

  before = (workdir / "rewritten.jsonl").read_bytes()
  assert rewriting.train(make_config(data_dir), workdir) == result  # is not made again
  stopped = tmp_path / "stopped"
  shutil.copytree(workdir, stopped)
  (stopped / "result.json").unlink()
  cut = before[: before.rindex(b'"example_id": 17') + 40]  # in the middle of a line
  (stopped / "rewritten.jsonl").write_bytes(cut)
  again = rewriting.train(make_config(data_dir), stopped)
  assert (stopped / "rewritten.jsonl").read_bytes() == before and again["tags"] == result["tags"]

  data = {"sft.data": str(workdir / "rewritten.jsonl"), "sft.held_out": 4, "updates": 2}
  learned = fine_tuning.train(make_config(data_dir, **data), tmp_path / "sft")
  assert learned["data"]["train"] == PROBLEMS - 4
  rows = metrics.read(tmp_path / "sft" / "metrics.jsonl")
  assert rows[0]["data/nll"] == pytest.approx(gap["all"]["nll_per_token"], abs=0.15)


@pytest.mark.slow
def test_it_stops_between_pieces_and_goes_on(data_dir, tmp_path):
  config, asked = make_config(data_dir, **{"rewrite.problems": 16}), []

  def stop():
    asked.append(None)
    return (tmp_path / "rewritten.jsonl").read_bytes().count(b"\n") >= 8

  result = rewriting.train(config, tmp_path, stop)
  assert (result["stop_reason"], result["problems"]) == ("preempted", 8) and asked
  digest = (tmp_path / rewriting.POLICY).read_text()
  (tmp_path / rewriting.POLICY).write_text("another's\n")  # as if policy.path held another by now
  with pytest.raises(
    config_lib.ConfigError, match="was begun with another policy than policy.path"
  ):
    rewriting.train(config, tmp_path)
  (tmp_path / rewriting.POLICY).write_text(digest)
  result = rewriting.train(config, tmp_path)
  assert (result["stop_reason"], result["problems"]) == ("finished", 16)
  assert len(records(tmp_path)) == 16


def test_nothing_whole_is_cut_off_however_often_a_start_is_refused(tmp_path):
  path = tmp_path / "rewritten.jsonl"
  lines = [b'{"example_id": %d}\n' % number for number in range(10)]
  for there, kept in ((8, 8), (10, 8), (4, 4), (3, 0)):  # pieces of four, of more problems
    path.write_bytes(b"".join(lines[:there]) + b'{"exam')
    for _ in range(2):
      records, problems = rewriting._cut_back(path, 4, 20)
      assert len(records) == problems == kept
      assert path.read_bytes() == b"".join(lines[:kept])
  path.write_bytes(b"".join(lines))
  assert rewriting._cut_back(path, 4, 10)[1] == 10  # all there are
  del lines[2], lines[5]  # problems 2 and 6 have neither a correct sample nor a solution
  for there, kept, done in ((6, 6, 8), (7, 6, 8), (5, 3, 4)):
    path.write_bytes(b"".join(lines[:there]))
    records, problems = rewriting._cut_back(path, 4, 20)
    assert (len(records), problems) == (kept, done)
    assert path.read_bytes() == b"".join(lines[:kept])
  assert rewriting._cut_back(tmp_path / "none", 4, 10) == ([], 0)


WORDS = {"name": "reasoning_gym/spell_backward"}
MIXTURE = {
  "long": {**WORDS, "weight": 1, "options": {"min_word_len": 5, "answer_format": "text"}},
  "short": {**WORDS, "weight": 3, "options": {"max_word_len": 4, "answer_format": "text"}},
}


def test_more_problems_than_all_tasks_have_are_refused(data_dir):
  sizes = {"task.train_size": 30, "task.mixture": MIXTURE}
  check = config_supervised.check_rewrite
  check(make_config(data_dir, **sizes, **{"rewrite.problems": 60}))
  with pytest.raises(config_lib.ConfigError, match="=61 must be at most .*=60 of the mixture"):
    check(make_config(data_dir, **sizes, **{"rewrite.problems": 61}))
  with pytest.raises(config_lib.ConfigError, match="=31 must be at most task.train_size=30$"):
    check(make_config(data_dir, **{"task.train_size": 30, "rewrite.problems": 31}))


@pytest.mark.slow
def test_of_a_mixture_each_task_has_its_share(data_dir, tmp_path):
  rewriting.train(
    make_config(data_dir, **{"task.mixture": MIXTURE, "rewrite.problems": 8}), tmp_path
  )
  made = records(tmp_path)
  assert [record["example_id"] for record in made] == list(range(8))
  assert sorted(len(record["expert"]) > 4 for record in made) == [False] * 6 + [True] * 2


@pytest.mark.slow
def test_two_devices_of_the_expert_axis_measure_the_same(data_dir, tmp_path):
  """Its rows, of which so few problems need one, are as many as the devices. A policy that does not
  divide over them is refused before anything is sampled."""
  changes = {"rewrite.problems": 3, "batch.prompts": 2, "batch.micro_batches": 1}
  spread, alone = tmp_path / "spread", tmp_path / "alone"
  flags = {
    **{"mesh.expert": 2, "task.data_dir": data_dir, "sft.row_tokens": 80, "rewrite.samples": 2},
    **{"rewrite.guided_samples": 1, **changes},
  }
  argv = [f"--config.{key}={value}" for key, value in flags.items()]
  devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
  run = lambda workdir, *more: subprocess.run(
    [sys.executable, "-m", "vespo_jax.rewrite", "--config=configs/debug.py"]
    + [f"--workdir={workdir}", *argv, *more],
    capture_output=True,
    text=True,
    timeout=300,
    env={**os.environ, "XLA_FLAGS": devices},
  )
  refused = run(tmp_path / "refused", "--config.mesh.expert=1", "--config.mesh.tensor=2")
  assert refused.returncode == 2 and "axis of 259 does not divide" in refused.stderr
  assert not (tmp_path / "refused" / "rewritten.jsonl").exists()
  done = run(spread)
  assert done.returncode == 0, done.stderr
  rewriting.train(make_config(data_dir, **changes), alone)
  gaps = [json.loads((w / "result.json").read_text())["gap_before"] for w in (spread, alone)]
  assert gaps[0]["all"]["nll_per_token"] == pytest.approx(gaps[1]["all"]["nll_per_token"], rel=1e-4)
