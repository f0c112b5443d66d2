"""Whole runs off the learner's clock: equal where theory says so, deterministic where promised."""

import json
import shutil
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.test_end_to_end import debug_config, rows
from vespo_jax import config as config_lib
from vespo_jax import launch, metrics, models, parts
from vespo_jax.config import ConfigError
from vespo_jax.learner.saved import SavedRollouts
from vespo_jax.tokenizers import byte_tokenizer

pytestmark = pytest.mark.usefixtures("no_report")
SMALL = {"evaluation.problems": 4, "evaluation.samples_per_problem": 1, "checkpoint.every": 0}
ASYNC = {"runtime.mode": "async", "staleness.minibatches": 1}
BEHIND = {**ASYNC, "runtime.max_staleness": 2, "runtime.clock": "logical"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def run(workdir, data_dir, **changes):
  config = debug_config(data_dir, **{**SMALL, "updates": 5, **changes})
  return config, launch.train(config, workdir)


def plans(workdir):
  return [
    json.loads(line)["plan"] for line in (workdir / "schedule.jsonl").read_text().splitlines()
  ]


def same_run(left, right, drop=()):
  """Metrics, timings aside, and every parameter, to the bit."""
  kept = [
    [
      {k: v for k, v in json.loads(row).items() if not k.startswith(drop or "\0")}
      for row in rows(d)
    ]
    for d in (left, right)
  ]
  assert kept[0] == kept[1]
  for one, other in zip(*(jax.tree.leaves(models.load(d)[1]) for d in (left, right)), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def logical(data_dir, tmp_path_factory):
  """Two updates behind on the logical clock, two samplers, every rollout saved."""
  workdir = tmp_path_factory.mktemp("logical") / "run"
  changes = {**BEHIND, "sampler.processes": 2, "rollouts.save_all": True}
  return workdir, run(workdir, data_dir, **changes)[0]


@pytest.mark.slow
def test_async_without_staleness_is_sync_of_one_minibatch(data_dir, tmp_path):
  run(tmp_path / "sync", data_dir, **{"staleness.minibatches": 1})
  run(tmp_path / "async", data_dir, **ASYNC, **{"runtime.max_staleness": 0})
  same_run(tmp_path / "sync", tmp_path / "async")
  assert all(row["staleness/max"] == 0 for row in metrics.read(tmp_path / "async/metrics.jsonl"))


def test_the_logical_clock_is_deterministic_whoever_is_slow(logical, tmp_path):
  """And whether or not it is evaluated on the way. `integrity/` judges each sampler by itself,
  and which of the two makes a group is theirs to settle."""
  workdir, config = logical
  assert plans(workdir) == [[[0, version]] for version in (0, 0, 0, 1, 2)]
  stored = metrics.read(workdir / "metrics.jsonl")
  assert [row["staleness/mean"] for row in stored] == [0, 1, 2, 2, 2]
  assert max(abs(row["weight/log_w_min"]) for row in stored) > 1e-3
  slow = lambda: time.sleep(0.3) is not None  # False, after a while
  values = ConfigDict(config.to_dict())
  values.evaluation.every = 1
  again = config_lib.validate(values)
  assert launch.train(again, tmp_path / "again", slow)["sampler_failures"] == []
  same_run(workdir, tmp_path / "again", drop=("evaluation/", "integrity/"))
  found = [row.get("evaluation/accuracy") for row in metrics.read(tmp_path / "again/metrics.jsonl")]
  assert [accuracy is not None for accuracy in found] == [True] * 4 + [False]


def test_saved_rollouts_train_the_same_policy_without_a_sampler(logical, data_dir, tmp_path):
  workdir, _ = logical
  source = {"sampler.source": f"replay:{workdir}", "rollouts.save_all": False}
  run(tmp_path / "replay", data_dir, **BEHIND, **source)
  same_run(workdir, tmp_path / "replay", drop=("integrity/",))


def test_of_another_runs_rollouts_only_the_first_weights_are_this_runs(data_dir, tmp_path):
  """Later ones of the same version are others, and what they differ by is no mismatch."""
  on_policy = {**SMALL, "staleness.minibatches": 1, "updates": 2}
  run(tmp_path / "one", data_dir, **on_policy, **{"rollouts.save_all": True})
  source = {"sampler.source": f"replay:{tmp_path / 'one'}", "objective.name": "grpo"}
  run(tmp_path / "other", data_dir, **on_policy, **source)
  measured = [
    ["mismatch/tokens" in row for row in metrics.read(tmp_path / name / "metrics.jsonl")]
    for name in ("one", "other")
  ]
  assert measured == [[True, True], [True, False]]


def test_saved_rollouts_that_cannot_be_trained_on_end_the_run_with_a_message(
  logical, data_dir, tmp_path
):
  workdir, config = logical
  source = {"sampler.source": f"replay:{tmp_path}", "rollouts.save_all": False}
  shutil.copytree(workdir / parts.SAVED, tmp_path / parts.SAVED)
  with pytest.raises(OSError, match="response of [0-9]+ tokens .* sampler.max_new_tokens=2$"):
    run(tmp_path / "short", data_dir, **BEHIND, **source, **{"sampler.max_new_tokens": 2})
  damaged = tmp_path / parts.SAVED / "000002.parquet"
  damaged.write_bytes(damaged.read_bytes()[:-9])
  with pytest.raises(OSError, match="000002.parquet cannot be trained on"):
    run(tmp_path / "damaged", data_dir, **BEHIND, **source)
  assert json.loads((tmp_path / "damaged" / "result.json").read_text())["updates"] == 1


@pytest.mark.slow
def test_saved_rollouts_train_another_objective_on_the_same_data(logical, data_dir, tmp_path):
  workdir, _ = logical
  source = {"sampler.source": f"replay:{workdir}", "rollouts.save_all": False}
  other = {**source, "objective.name": "grpo"}
  run(tmp_path / "other", data_dir, **BEHIND, **other)
  rewards = [
    [row["reward/mean"] for row in metrics.read(d / "metrics.jsonl")]
    for d in (workdir, tmp_path / "other")
  ]
  assert rewards[0] == rewards[1]  # another objective, the same data
  assert rows(workdir)[1:] != rows(tmp_path / "other")[1:]
  with pytest.raises(ConfigError, match="sampler.source.*lacks 1 of 6 minibatches"):
    run(tmp_path / "more", data_dir, **BEHIND, **other, updates=6)
  run(tmp_path / "more", data_dir, **BEHIND, **other, updates=2)  # the directory is still free


@pytest.mark.slow
def test_a_recorded_wall_clock_is_replayed(data_dir, tmp_path):
  wall = {**ASYNC, "runtime.max_staleness": 2}
  run(tmp_path / "wall", data_dir, **wall)
  clock = {"runtime.clock": f"replay:{tmp_path / 'wall'}"}
  run(tmp_path / "replayed", data_dir, **wall, **clock)
  assert plans(tmp_path / "wall") == plans(tmp_path / "replayed")
  same_run(tmp_path / "wall", tmp_path / "replayed")


@pytest.mark.slow
@pytest.mark.parametrize("partial", ["keep_cache", "recompute_cache"])
def test_responses_go_on_under_newer_weights(partial, data_dir, tmp_path):
  """While an order waits for them, evaluations of those there are do not wait for it."""
  changes = {"runtime.max_staleness": 3, "runtime.partial_rollouts": partial}
  changes |= {"evaluation.every": 1, "runtime.timeout_s": 60.0}
  config, _ = run(tmp_path, data_dir, **{**BEHIND, **changes}, **{"rollouts.save_all": True})
  assert plans(tmp_path)[4] == [[0, 1], [4, 2], [8, 3]]
  origin = parts.origin(config, byte_tokenizer())
  saved = SavedRollouts(tmp_path / parts.SAVED, origin, 5).read(5)
  versions = {tuple(rollout.weight_versions.tolist()) for rollout in saved}
  whole = (1,) * 4 + (2,) * 4 + (3,) * 4
  assert all(some == whole[: len(some)] for some in versions)
  assert any(len(some) > 4 for some in versions)
  row = metrics.read(tmp_path / "metrics.jsonl")[4]
  assert row["staleness/max"] == 3 and 1 < row["staleness/mean"] < 3
  assert row["integrity/flagged"] == 0
