"""Splits on disk: exact, disjoint, the same in every process, never half-written."""

import fcntl
import json
import os
import subprocess
import sys
import time

import hostile_family  # noqa: F401  (registers the family)
import pytest

from vespo_jax import tasks
from vespo_jax.processes import ChildDied

SIZES = dict(seed=1, train_size=40, test_size=10)


def test_sizes_and_disjointness(tmp_path):
  task = tasks.make("reasoning_gym/chain_sum", min_digits=1, max_digits=1, max_terms=2)
  splits = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert (len(splits.train), len(splits.test)) == (40, 10)
  questions = [example.question for split in (splits.train, splits.test) for example in split]
  assert len(set(questions)) == 50
  assert [example.id for example in splits.train] == list(range(40))


@pytest.mark.parametrize(
  "dataset", [pytest.param("chain_sum", marks=pytest.mark.slow), "isomorphic_strings"]
)
def test_the_same_in_every_process(tmp_path, dataset):
  """isomorphic_strings depends on the hash seed of the process that generates it."""
  script = (
    "import sys, json\nfrom vespo_jax import tasks\n"
    f"task = tasks.make('reasoning_gym/{dataset}')\n"
    f"splits = tasks.open_splits(task, data_dir=sys.argv[1], **{SIZES!r})\n"
    "print(json.dumps([[e.question, e.answer] for s in (splits.train, splits.test) for e in s]))"
  )
  outputs = []
  for hash_seed in ("1", "2"):
    done = subprocess.run(
      [sys.executable, "-c", script, str(tmp_path / hash_seed)],
      env={**os.environ, "PYTHONHASHSEED": hash_seed},
      capture_output=True,
      text=True,
      timeout=200,
      check=True,
    )
    outputs.append(json.loads(done.stdout))
  assert outputs[0] == outputs[1] and len(outputs[0]) == 50


def test_files_that_name_a_class_to_import_are_refused(tmp_path, monkeypatch):
  """tensorflow-datasets imports the module of every class in `features.json`."""
  task = tasks.make("hostile/x")
  tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  (path,) = tmp_path.glob("*/*/*/features.json")
  (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  text = path.read_text()
  assert text.count("text_feature.Text") == 3
  path.write_text(text.replace("tensorflow_datasets.core.features.text_feature.Text", "harmful.X"))
  with pytest.raises(ValueError, match="features.json was not written here: it names 'harmful.X'"):
    tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert not (tmp_path / "harm").exists()


def test_other_seeds_are_other_data(tmp_path):
  task = tasks.make("hostile/x", random=True)
  one = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  other = tasks.open_splits(task, data_dir=tmp_path, **{**SIZES, "seed": 2})
  assert one.test[0].question != other.test[0].question
  assert one.test[0].answer == other.test[0].answer  # the global generators have a seed, too
  assert len(visible(tmp_path)) == 2


def test_whatever_a_dataset_is_made_of_names_its_directory(tmp_path, monkeypatch):
  asked = []

  def note(order, directory):
    asked.append(directory)
    raise ValueError("not now")

  monkeypatch.setattr(tasks.dataset, "build_in_child", note)
  changes = ({}, {"name": "hostile/y"}, {"options": {"distinct": 90}}, {"version": "2"}, {})
  for change in changes:
    task = tasks.make("hostile/x")
    vars(task).update(change)
    with pytest.raises(ValueError, match="not now"):
      tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  for size in SIZES:
    with pytest.raises(ValueError, match="not now"):
      tasks.open_splits(tasks.make("hostile/x"), data_dir=tmp_path, **{**SIZES, size: 20})
  assert asked[0] == asked[4] and len(set(asked)) == 4 + len(SIZES)


def test_too_few_distinct_questions_is_an_error_that_counts_them(tmp_path):
  task = tasks.make("hostile/x", distinct=7)
  with pytest.raises(ValueError, match="only 7 distinct questions"):
    tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert not visible(tmp_path)  # nothing half-built is left


def test_a_finished_dataset_is_not_built_again(tmp_path, monkeypatch):
  task = tasks.make("hostile/x")
  first = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  monkeypatch.setattr(tasks.dataset, "Child", lambda *a, **k: pytest.fail("built again"))
  again = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert list(first.train) == list(again.train)


def test_two_runs_at_once_build_once(tmp_path):
  options = {"log": str(tmp_path / "log"), "pause_s": 0.02}
  runs = [start_open(tmp_path / "data", options) for _ in range(2)]
  assert [run.wait(60) for run in runs] == [0, 0]
  assert (tmp_path / "log").read_text() == "generates\n"


def test_a_killed_run_leaves_nothing_that_is_read(tmp_path):
  data, options = tmp_path / "data", {"log": str(tmp_path / "log"), "pause_s": 0.5}
  run = start_open(data, options)  # twenty-five seconds, if it were not killed
  wait_until((tmp_path / "log").exists)
  run.kill()
  run.wait(10)
  (lock,) = data.glob(".*.lock")
  with lock.open() as held:  # the builder ends with the run, and so gives the lock back
    wait_until(lambda: acquired(held))
  assert not visible(data)


def test_what_a_killed_builder_left_is_thrown_away(tmp_path):
  task = tasks.make("hostile/x")
  tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  (directory,) = visible(tmp_path)
  scratch = directory.with_name(f".{directory.name}.building")
  directory.rename(scratch)  # killed one moment before its rename
  next(scratch.rglob("*train*")).write_bytes(b"half")
  assert len(list(tasks.open_splits(task, data_dir=tmp_path, **SIZES).train)) == 40
  assert visible(tmp_path) == [directory]


def test_a_builder_that_crashes_is_no_error_of_the_config(tmp_path):
  task = tasks.make("hostile/x", crash=True)
  with pytest.raises(ChildDied, match="dataset builder process died"):
    tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert not visible(tmp_path)


def test_a_build_has_a_time_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(tasks.dataset, "BUILD_TIMEOUT_S", 0.5)
  with pytest.raises(TimeoutError, match="took over 0.5 s"):
    tasks.open_splits(tasks.make("hostile/x", pause_s=10), data_dir=tmp_path, **SIZES)


def start_open(data_dir, options):
  """Another process that opens the splits of the hostile task."""
  script = (
    "import sys, json, hostile_family\nfrom vespo_jax import tasks\n"
    "task = tasks.make('hostile/x', **json.loads(sys.argv[2]))\n"
    f"tasks.open_splits(task, data_dir=sys.argv[1], **{SIZES!r})\n"
  )
  return subprocess.Popen([sys.executable, "-c", script, str(data_dir), json.dumps(options)])


def visible(directory):
  return [path for path in directory.iterdir() if path.suffix != ".lock"]


def wait_until(condition, seconds=20):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def acquired(file):
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True
